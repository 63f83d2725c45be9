"""Where a node has its driver's libnvidia-ml.so.1: a search in folders, below the root at which the node's files are.

The node's root may be mounted elsewhere, as in a container. Its absolute symbolic links are resolved within it, and so
are those of a driver container within that container's root. Files that this process could not load are skipped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpuhealth.monitors.nvidia.readings import LibrarySearch, NvmlLibrary
from gpuhealth.runtime.files import open_file
from gpuhealth.runtime.text import printable

_MACHINE = platform.machine()
_FOLDERS = (
    f"usr/lib/{_MACHINE}-linux-gnu",  # Debian, Ubuntu
    "usr/lib64",  # Red Hat, SUSE, Amazon Linux; driver containers of these
    "usr/lib",
    f"usr/lib/{_MACHINE}-linux-gnu/nvidia/current",  # Debian's package, behind /etc/alternatives
    f"lib/{_MACHINE}-linux-gnu",  # without merged /usr
    "lib64",
    "lib",
)
_FOLDERS_OF_NODES = (
    "home/kubernetes/bin/nvidia/lib64",  # GKE
    "var/lib/nvidia/lib64",  # Container-Optimized OS without GKE
    "run/opengl-driver/lib",  # NixOS
    "usr/lib/nvidia/tesla",  # Bottlerocket
    "usr/local/glibc/lib",  # Talos, up to 1.8
    "usr/local/glibc/usr/lib",  # Talos
    "usr/local/lib",
    "usr/local/nvidia/lib64",
)
DRIVER_CONTAINER = "run/nvidia/driver"
"""Where the GPU operator mounts the root of its driver container."""

_NAME = re.compile(r"libnvidia-ml\.so\.(?:1|\d+\.\d+[\d.]*)", re.ASCII)
_VERSION = re.compile(r"libnvidia-ml\.so\.(\d+\.\d+[\d.]*)", re.ASCII)
_OF_MODULE = re.compile(rb"Kernel Module.*?\s(\d+\.\d+[\d.]*)\s")
_MOST_LINKS = 40  # as the kernel
_MOST_FOLDERS = 200
_LARGEST_CONFIGURATION = 1 << 16  # bytes

_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
_ELF_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_ELF_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


class _Root(NamedTuple):
    """A root filesystem as this process sees it."""

    path: Path
    folders: tuple[str, ...]


def find_libraries(root: Path, module: str, paths: tuple[Path, ...] = ()) -> LibrarySearch:
    """Every libnvidia-ml.so.1 of the node, the best one first. It may block as long as a disk hangs.

    `paths` are files or folders of the node that are searched first. The libraries of the version of the kernel module
    come before those whose version their name does not show, and these before others.
    """
    found: dict[str, NvmlLibrary] = {}
    skipped: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    for path in _candidates(root, paths):
        try:
            status = path.stat()
            identity = status.st_dev, status.st_ino
            if identity in seen:
                continue
            seen.add(identity)
            problem = _unusable(path)
        except OSError as error:
            problem = error.strerror or str(error)
        shown = printable(str(path))
        if problem:
            skipped[shown] = problem
        else:
            version = _VERSION.fullmatch(path.name)
            found[str(path)] = NvmlLibrary(str(path), version[1] if version else "")
    ranked = sorted(found.values(), key=lambda library: _rank(library, module))
    listed = tuple(f"{path}: {problem}" for path, problem in skipped.items())
    return LibrarySearch(tuple(ranked), listed, elsewhere=_is_elsewhere(root))


def module_version(sys: Path, proc: Path) -> str:
    """The version of the loaded kernel module; empty if none is loaded, or its version cannot be read."""
    with contextlib.suppress(OSError):
        return (sys / "module" / "nvidia" / "version").read_text(errors="replace").strip()
    try:
        match = _OF_MODULE.search((proc / "driver" / "nvidia" / "version").read_bytes())
    except OSError:
        return ""
    return match[1].decode() if match else ""


def _rank(library: NvmlLibrary, module: str) -> int:
    if not module or library.version == module:
        return 0
    return 1 if not library.version else 2


def _is_elsewhere(root: Path) -> bool:
    """Whether the node's root is there, and is not ours."""
    try:
        return not root.samefile("/") and any(root.iterdir())
    except OSError:
        return False


def _candidates(root: Path, paths: tuple[Path, ...]) -> Iterator[Path]:
    """The resolved path of every file with a name of the library, as this process sees it."""
    for path in paths:
        try:
            at = resolved(root, str(path))
        except OSError:
            continue
        if at.is_dir():
            yield from _in_folder(root, str(path))
        else:
            yield at
    for system in _roots(root):
        folders = dict.fromkeys((*system.folders, *_configured(system.path)))
        for folder in list(folders)[:_MOST_FOLDERS]:
            yield from _in_folder(system.path, folder)


def _roots(root: Path) -> Iterator[_Root]:
    with contextlib.suppress(OSError):  # no driver container
        yield _Root(resolved(root, DRIVER_CONTAINER), _FOLDERS)
    yield _Root(root, (*_FOLDERS, *_FOLDERS_OF_NODES))


def _in_folder(root: Path, folder: str) -> Iterator[Path]:
    try:
        names = os.listdir(resolved(root, folder))  # noqa: PTH208 - names only
    except OSError:
        return
    for name in sorted(name for name in names if _NAME.fullmatch(name)):
        try:
            yield resolved(root, f"{folder}/{name}")
        except OSError:
            continue  # a link to nothing, as in the middle of an upgrade


def _configured(root: Path) -> list[str]:
    """The folders that the loader's configuration of a system names, /etc/ld.so.conf and /etc/ld.so.conf.d."""
    files = ["etc/ld.so.conf"]
    try:
        names = sorted(os.listdir(resolved(root, "etc/ld.so.conf.d")))  # noqa: PTH208 - names only
    except OSError:
        names = []
    files += [f"etc/ld.so.conf.d/{name}" for name in names if name.endswith(".conf")]
    folders: list[str] = []
    for file in files:
        try:
            with open_file(resolved(root, file)) as configuration:
                text = configuration.read(_LARGEST_CONFIGURATION).decode(errors="surrogateescape")
        except OSError:
            continue
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        folders += [line for line in lines if line.startswith("/") and "\0" not in line]
    return folders


def resolved(root: Path, path: str) -> Path:
    """The path of a file below a root, without symbolic links, which never lead out of that root. Raises OSError."""
    left = path.split("/")[::-1]
    done: list[str] = []
    links = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        at = root.joinpath(*done, part)
        try:
            target = os.readlink(at)  # noqa: PTH115 - text, which is resolved here
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is no link
                raise
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(at))
        if target.startswith("/"):
            done = []
        left += target.split("/")[::-1]
    return root.joinpath(*done)


def _unusable(path: Path) -> str:
    """Why this process cannot load a file as a library; empty if it can. Raises OSError if it cannot be read."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = file.read(_ELF_HEADER.size)
        if len(header) < _ELF_HEADER.size or header[:4] != b"\x7fELF":
            return "no ELF file" if header else "empty"
        (_, bits, _, kind, machine, _, _, programs, sections, _, _, length, count, section_length, section_count, _) = (
            _ELF_HEADER.unpack(header)
        )
        if bits != 2 or kind != 3 or machine != _ELF_MACHINES.get(_MACHINE, machine):
            return "a library of another architecture"
        if sections + section_length * section_count > size or length != _ELF_PROGRAM_HEADER.size:
            return "truncated"
        file.seek(programs)
        table = file.read(length * count)
        if len(table) < length * count:
            return "truncated"
        for _, _, offset, _, _, stored, _, _ in _ELF_PROGRAM_HEADER.iter_unpack(table):
            if offset + stored > size:
                return "truncated"
    return ""
