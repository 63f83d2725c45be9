"""Reading files of /proc, /sys and the agent's own folders."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.runtime.text import printable

_NULL = os.makedev(1, 3)  # /dev/null, an empty file
_BOOT_ID_CHARACTERS = 100  # at most; the kernel's has 36


def file_missing(error: OSError) -> Missing:
    """Why a file of /sys or /proc could not be read."""
    name = printable(str(error.filename))
    if isinstance(error, FileNotFoundError):
        return Missing(MissingReason.NOT_INSTALLED, f"{name} does not exist")
    if isinstance(error, PermissionError):
        return Missing(MissingReason.NO_PERMISSION, f"{name} may not be read")
    return Missing(MissingReason.ERROR, f"{name}: {error.strerror}")


def open_file(path: Path) -> IO[bytes]:
    """Opens a file for reading. Raises OSError, also for a pipe or a device, which may have no end or no writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) or status.st_rdev == _NULL:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def boot_id(proc: Path) -> str:
    """The kernel's id of this boot; empty if it cannot be read."""
    try:
        return printable((proc / "sys/kernel/random/boot_id").read_text(errors="replace").strip())[:_BOOT_ID_CHARACTERS]
    except OSError:
        return ""
