"""The package for hosts without containers, built as for a release and run from a folder of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import pytest
from testing.paths import BASE, ROOT
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from gpuhealth.monitors.settings import load


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which tools/host-package has put a tar.gz and, where dpkg-deb exists, a .deb."""
    output = tmp_path_factory.mktemp("dist")
    command: list[str | Path] = [ROOT / "tools" / "host-package", "--python", sys.executable, "--output", output]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode and re.search(
        r"No matching distribution|Could not find a version|connection|resolve", done.stderr
    ):
        pytest.skip("no package index can be reached: the host package cannot be built")
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def installed(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the tar.gz, in a folder instead of /."""
    root = tmp_path_factory.mktemp("root")
    (archive,) = packages.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        assert {(member.uid, member.gid) for member in tar} == {(0, 0)}
        tar.extractall(root, filter="fully_trusted")
    return root


def _environment(sim: SimulatedNode) -> dict[str, str]:
    """The environment of a host's user, on which neither this checkout nor its packages are on Python's path."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    return {"PATH": folders, "PYTHONOPTIMIZE": "2", **sim.own_env}


def test_nothing_needless_is_in_it(installed: Path) -> None:
    """Every module is compiled for commands and for the unit, and there are no installers, tests or stray programs."""
    library = installed / "opt" / "gpuhealth" / "lib"
    names = {path.name for path in library.iterdir()}
    assert {"gpuhealth", "kubernetes", "pydantic"} <= names
    assert not names & {"pip", "setuptools", "bin", "requests", "hatchling", "tests", "tools"}
    sources = [path for path in library.rglob("*.py") if "__pycache__" not in path.parts]
    compiled = {path.name for path in library.rglob("*.pyc")}
    assert {suffix for name in compiled for suffix in re.findall(r"\.cpython-\d+(.*)\.pyc", name)} == {"", ".opt-2"}
    assert len(list(library.rglob("*.pyc"))) == 2 * len(sources)
    assert sorted(path.name for path in (installed / "opt" / "gpuhealth" / "bin").iterdir()) == ["gpuhealth"]
    assert "@PYTHON@" not in "".join(path.read_text() for path in (installed / "opt" / "gpuhealth" / "slurm").iterdir())


def test_commands_and_agent_run(installed: Path, tmp_path: Path) -> None:
    """check finds the node healthy with the packages of the folder alone, and the agent starts, serves and ends."""
    sim = SimulatedNode(tmp_path, gpus=2)
    program, environment = installed / "opt" / "gpuhealth" / "bin" / "gpuhealth", _environment(sim)
    done = subprocess.run([program, "check", "--json"], check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["gpus"]) == 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sim.configure({"http": {"host": "127.0.0.1", "port": port}})
    agent = subprocess.Popen([program, "agent", "--config", sim.config], env=environment, stderr=subprocess.DEVNULL)

    def metrics() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    try:
        wait_for("the metrics", lambda: "gpuhealth_gpus" in metrics() or "gpuhealth_gpu_" in metrics())
        maps = Path(f"/proc/{agent.pid}/maps").read_text()
        assert str(installed / "opt" / "gpuhealth" / "lib") in maps
        assert "/site-packages/" not in maps
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0
        sim.driver.release()


def test_the_debian_package(packages: Path) -> None:
    """It needs the Python that it was built for, and keeps the settings of the host."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    (package,) = packages.glob("*.deb")

    def shown(*words: str | Path) -> str:
        return subprocess.run(["dpkg-deb", *words], check=True, capture_output=True, text=True).stdout

    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert shown("--field", package, "Depends").strip() == python
    assert shown("--info", package, "conffiles").strip() == "/etc/gpuhealth/gpuhealth.yaml"
    assert "./usr/bin/gpuhealth -> /opt/gpuhealth/bin/gpuhealth" in shown("--contents", package)


def test_the_unit_is_valid(tmp_path: Path) -> None:
    """systemd has no remark about the unit, but that the program is not installed here."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = (BASE / "host" / "gpuhealth.service").read_text()
    assert "ExecStart=/opt/gpuhealth/bin/gpuhealth agent " in text
    unit = tmp_path / "gpuhealth.service"
    unit.write_text(text.replace("/opt/gpuhealth/bin/gpuhealth", sys.executable))
    done = subprocess.run([analyze, "verify", unit], check=False, capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if "gpuhealth" in line] == []
    assert done.returncode == 0


def test_the_settings_are_valid() -> None:
    """The settings file of the package has no Kubernetes, and the defaults of a host."""
    settings = load(BASE / "host" / "gpuhealth.yaml")
    assert not settings.kubernetes.enabled
    assert (str(settings.roots.sys), str(settings.journal.path.parent)) == ("/sys", "/var/lib/gpuhealth")
