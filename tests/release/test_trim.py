"""What the images leave out of libraries is not needed: gpuhealth imports and works without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from kube import ControlPlane
from kube.control_plane import ADMIN_TOKEN
from release.lock import IMAGE
from testing.paths import ROOT

_IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path[:0] = sys.argv[1:]
import gpuhealth
for module in pkgutil.walk_packages(gpuhealth.__path__, "gpuhealth."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
print(len([name for name in sys.modules if name.startswith("gpuhealth.")]))
"""
_COMMAND = "import sys; sys.path[:0] = sys.argv[1:3]; from gpuhealth.cli.main import run; sys.exit(run(sys.argv[3:]))"


def _locked() -> list[str]:
    lines = (IMAGE / "requirements.lock").read_text().splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line and not line.startswith(" ")]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the agent's image, from this environment, trimmed as in the image."""
    folder = tmp_path_factory.mktemp("packages")
    for name in _locked():
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for Windows only
            continue
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            if ".." not in file.parts and source.is_file() and "__pycache__" not in file.parts:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / file)
    subprocess.run([sys.executable, IMAGE / "trim.py", folder], check=True)
    return folder


def _run(code: str, trimmed: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code with the standard library, the trimmed packages and gpuhealth, and nothing else."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(trimmed), str(ROOT), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=trimmed,
        env={"PATH": os.environ["PATH"], "HOME": "/", **environment},
    )


def test_every_module_is_imported(trimmed: Path) -> None:
    """Every module of gpuhealth can be imported, but for those that need torch."""
    done = _run(_IMPORT_ALL, trimmed)
    assert done.stderr == ""
    assert int(done.stdout) > 150


def test_a_large_part_is_left_out(trimmed: Path) -> None:
    """Of the Kubernetes client less than a tenth is left, and packages that nothing imports are gone."""
    assert _size(trimmed / "kubernetes") < 2_000_000
    assert not [name for name in ("requests", "urllib3", "pygments", "oauthlib") if (trimmed / name).exists()]
    assert (trimmed / "typer").is_dir()


def test_commands_print_tables_and_help(trimmed: Path) -> None:
    """Help and tables, which other packages can draw, need none of what is left out."""
    done = _run(_COMMAND, trimmed, "check", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    done = _run(_COMMAND, trimmed, "explain", "79")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_api_server_is_read(trimmed: Path, plane: ControlPlane) -> None:
    """A command with a kubeconfig works on a real API server."""
    done = _run(_COMMAND, trimmed, "fleet", "--json", KUBECONFIG=str(plane.write_kubeconfig("trim", ADMIN_TOKEN)))
    assert done.stderr == ""
    assert done.stdout.startswith("{")
