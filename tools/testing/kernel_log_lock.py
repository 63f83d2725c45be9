"""A lock for tests on /dev/kmsg: all processes of a machine share the log, and the rate at which it takes lines."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def kernel_log_lock() -> Iterator[None]:
    """Holds the lock, and waits for it as long as another test on this machine has it."""
    with (Path(tempfile.gettempdir()) / "gpuhealth-kernel-log.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
