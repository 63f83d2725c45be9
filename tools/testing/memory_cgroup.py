"""A memory cgroup of this machine, as the kubelet makes one for a container: version 1 or 2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")
_SWAPS = Path("/proc/swaps")


class MemoryCgroup:
    """A group whose processes share one limit of memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._v2 = (folder / "memory.max").exists()

    @property
    def enter(self) -> str:
        """Python code that moves its own process into the group."""
        return f"import os; open({str(self._folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"

    def limit(self, mebibytes: int) -> None:
        """Sets the limit that the processes of the group share."""
        name = "memory.max" if self._v2 else "memory.limit_in_bytes"
        (self._folder / name).write_text(str(mebibytes << 20))

    def anonymous(self) -> int:
        """The memory in use without page cache, which can be reclaimed; in mebibytes."""
        lines = (line.split() for line in (self._folder / "memory.stat").read_text().splitlines())
        return int(dict(lines)["anon" if self._v2 else "rss"]) >> 20


@contextlib.contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """A new group, removed at the end; skips the test where this user may make none, or memory can be swapped out."""
    if len(_SWAPS.read_text().splitlines()) > 1:
        pytest.skip("this machine swaps: a limit of memory kills nobody")
    parent = _ROOT / "memory" if (_ROOT / "memory").is_dir() else _ROOT
    folder = parent / f"gpuhealth-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        if not any((folder / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            pytest.skip(f"{parent} has no memory controller")
        yield MemoryCgroup(folder)
    finally:
        folder.rmdir()
