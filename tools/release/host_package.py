"""Builds gpuhealth for machines without containers: `tools/host-package`, a tar.gz and a Debian package.

Both hold the folder /opt/gpuhealth with all dependencies, for one version of Python; a unit of systemd, settings, and
scripts for Slurm.
"""

from __future__ import annotations

import argparse
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from release.image import ROOT, version
from release.lock import IMAGE

HOST = ROOT / "daemonset" / "host"
_LEVELS = ("0", "2")  # for commands; and PYTHONOPTIMIZE of the unit
_CONTROL = """\
Package: gpuhealth
Version: {version}
Architecture: {architecture}
Depends: {python}
Maintainer: gpuhealth
Installed-Size: {kilobytes}
Description: Health checks of NVIDIA GPU nodes, without Kubernetes
"""


def main() -> None:
    """Build what the arguments ask for, and print the files."""
    parser = argparse.ArgumentParser(prog="tools/host-package", description="Builds gpuhealth for hosts.")
    parser.add_argument("--python", default="python3", help="the hosts' Python, 3.11 or newer (default: python3)")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder of the packages (default: dist)")
    options = parser.parse_args()
    python = shutil.which(options.python)
    if python is None:
        parser.error(f"{options.python} is not on PATH")
    minor = _printed(python, "import sys; print(f'{sys.version_info[0]}.{sys.version_info[1]}')")
    if tuple(map(int, minor.split("."))) < (3, 11):
        parser.error(f"{options.python} is Python {minor}: gpuhealth needs 3.11 or newer")
    options.output.mkdir(parents=True, exist_ok=True)
    machine = _printed(python, "import platform; print(platform.machine())")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        make_tree(root, python, minor, Path(folder))
        name = options.output / f"gpuhealth-{version()}-python{minor}-{machine}.tar.gz"
        owner = ["--owner=0", "--group=0", "--sort=name"]
        subprocess.run(["tar", "--create", "--gzip", "--file", name, "--directory", root, *owner, "."], check=True)
        print(name)
        if shutil.which("dpkg-deb"):
            print(_debian(root, minor, options.output))


def make_tree(root: Path, python: str, minor: str, temporary: Path) -> None:
    """Fill a folder with what is installed under / on a host."""
    opt, library = root / "opt" / "gpuhealth", root / "opt" / "gpuhealth" / "lib"
    _install(library, python, temporary)
    runpy.run_path(str(IMAGE / "trim.py"))["trim"](library)
    shutil.rmtree(library / "bin", ignore_errors=True)
    levels = [option for level in _LEVELS for option in ("-o", level)]
    compiled = [python, "-m", "compileall", "-q", *levels, "--invalidation-mode", "unchecked-hash", str(library)]
    subprocess.run([*compiled, "-s", str(root)], check=True)
    for source in (HOST / "gpuhealth", *(HOST / "slurm").iterdir()):
        target = opt / ("slurm" if source.parent.name == "slurm" else "bin") / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace("@PYTHON@", f"python{minor}"))
        target.chmod(source.stat().st_mode & 0o777)
    for source, to in (
        (HOST / "gpuhealth.service", "usr/lib/systemd/system"),
        (HOST / "gpuhealth.yaml", "etc/gpuhealth"),
    ):
        (root / to).mkdir(parents=True)
        shutil.copy(source, root / to)
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "gpuhealth").symlink_to("/opt/gpuhealth/bin/gpuhealth")


def _install(library: Path, python: str, temporary: Path) -> None:
    """Install the locked dependencies and gpuhealth, built by locked tools, with that Python."""
    subprocess.run([python, "-m", "venv", temporary / "venv"], check=True)
    pip: list[str | Path] = [
        temporary / "venv" / "bin" / "python",
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
    ]
    locked: list[str | Path] = ["--no-compile", "--no-deps", "--require-hashes", "--requirement"]
    subprocess.run([*pip, "install", *locked, IMAGE / "build.lock"], check=True)
    subprocess.run([*pip, "install", "--target", library, *locked, IMAGE / "requirements.lock"], check=True)
    with tempfile.TemporaryDirectory() as copied:  # hatchling takes what lies in the folder
        source = Path(copied)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, source)
        shutil.copytree(ROOT / "gpuhealth", source / "gpuhealth", ignore=shutil.ignore_patterns("__pycache__"))
        build: list[str | Path] = ["--no-compile", "--no-deps", "--no-build-isolation", "--no-index", source]
        subprocess.run([*pip, "install", "--target", library, *build], check=True)


def _debian(root: Path, minor: str, output: Path) -> Path:
    control = root / "DEBIAN"
    shutil.copytree(HOST / "debian", control)
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    kilobytes = sum(path.lstat().st_size for path in root.rglob("*")) // 1024
    fields = {"version": version(), "architecture": architecture, "python": f"python{minor}", "kilobytes": kilobytes}
    (control / "control").write_text(_CONTROL.format(**fields))
    (control / "conffiles").write_text("/etc/gpuhealth/gpuhealth.yaml\n")
    package = output / f"gpuhealth_{version()}_python{minor}_{architecture}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, package], check=True, stdout=sys.stderr)
    return package


def _printed(python: str, statement: str) -> str:
    return subprocess.run([python, "-c", statement], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
