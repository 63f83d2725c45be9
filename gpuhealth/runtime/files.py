"""Reading files of /proc, /sys and the agent's own folders."""

from __future__ import annotations

from pathlib import Path

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.runtime.text import printable


def file_missing(error: OSError) -> Missing:
    """Why a file of /sys or /proc could not be read."""
    name = printable(str(error.filename))
    if isinstance(error, FileNotFoundError):
        return Missing(MissingReason.NOT_INSTALLED, f"{name} does not exist")
    if isinstance(error, PermissionError):
        return Missing(MissingReason.NO_PERMISSION, f"{name} may not be read")
    return Missing(MissingReason.ERROR, f"{name}: {error.strerror}")


def boot_id(proc: Path) -> str:
    """The kernel's id of this boot; empty if it cannot be read."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
