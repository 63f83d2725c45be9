"""One agent for each node: a lock in the folder of its journal, which all agents of a node share.

Two agents with different settings would undo each other's marks. The lock is flock(2): the kernel releases it when its
process ends, however that ends. An agent that does not get it leaves its name for the other one, and ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import msgspec

_LOCK, _REFUSED = "instance.lock", "instance.refused"
_RETRY_SECONDS = 0.2
_NAME_LIMIT = 300  # bytes


class RefusedInstance(msgspec.Struct, frozen=True, tag=True):
    """An agent that ended because another one was running."""

    name: str
    seconds_ago: float


class InstanceLock:
    """The lock of one folder. It is kept until the process ends, or `release` is called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = -1

    def take(self, name: str, within_seconds: float) -> bool:
        """Whether this process has the lock now; if not, its name is left for the one that has.

        It waits for a process that is ending. Raises OSError where the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        until = time.monotonic() + within_seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(_RETRY_SECONDS)
                    continue
                self.release()
                (self._folder / _REFUSED).write_text(name, encoding="utf-8")
                return False
            return True

    def release(self) -> None:
        """Give the lock up before the process ends; nothing happens where it was not taken."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def refused_instance(folder: Path) -> RefusedInstance | None:
    """The last process that did not get the lock; None if there was none. Raises OSError."""
    path = folder / _REFUSED
    try:
        with path.open("rb") as file:
            name = file.read(_NAME_LIMIT).decode(errors="replace")
            changed = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    return RefusedInstance(name, max(0.0, time.time() - changed))
