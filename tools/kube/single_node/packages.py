"""Debian's packages, unpacked in a cache folder: nothing is installed on this machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SOFTWARE = (
    "containerd", "runc", "containernetworking-plugins", "busybox-static",
    "buildah", "golang-github-containers-common", "golang-github-containers-image",  # the latter two: its settings
    "libsubid4", "libgpgme11", "libassuan0", "libdevmapper1.02.1", "libseccomp2",  # what they are linked with
)  # fmt: skip
"""A container runtime, and a builder of images."""

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpuhealth"
"""Where packages and images are kept for the next run."""


class PackagesError(RuntimeError):
    """The packages could not be fetched or unpacked; the text is apt's or dpkg's."""


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """The folder of that name in the cache, while no other process works on it."""
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """A folder of that name with the files of the packages, none of whose scripts have run; raises PackagesError."""
    with locked(name) as folder:
        done = folder / "packages"
        if not done.exists() or done.read_text().split() != list(packages):
            shutil.rmtree(folder / "root", ignore_errors=True)
            _unpack(packages, folder / "root")
            done.write_text("\n".join(packages))
        return folder / "root"


def _unpack(packages: Sequence[str], root: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gpuhealth-packages-") as folder:
        try:
            _run("apt-get", "download", *packages, cwd=folder)
        except PackagesError:  # the lists of packages are old, or this machine has none yet
            _run("apt-get", "update", cwd=folder)
            _run("apt-get", "download", *packages, cwd=folder)
        for package in sorted(Path(folder).glob("*.deb")):
            _run("dpkg-deb", "--extract", str(package), str(root), cwd=folder)
    for name in ("bin", "sbin", "lib", "lib64"):  # on Debian, links to the folders below usr
        if (root / name).is_dir():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)
        (root / name).symlink_to(f"usr/{name}")


def _run(*command: str, cwd: str) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackagesError(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")


def with_packages(root: Path, command: Sequence[str], writable: Path | None = None) -> list[str]:
    """The command in a mount namespace of its own, whose /usr is this machine's with the packages on top.

    What it writes to /usr goes to the folder `writable`; without one it cannot be written.
    """
    options = f"lowerdir={root}/usr:/usr"
    if writable:
        upper, work = writable / "usr", writable / "usr.work"
        upper.mkdir()
        work.mkdir()
        options += f",upperdir={upper},workdir={work}"
    script = f"mount -t overlay overlay -o '{options}' /usr && exec \"$@\""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]
