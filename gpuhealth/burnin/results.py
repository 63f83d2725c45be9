"""Writes the result of a run to the directory where the node's agent reads it, one JSON file per run."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec

from gpuhealth.model.burnin_run import BurninRun

MAX_FILES = 20


def save(run: BurninRun, folder: Path) -> Path:
    """Write `<start>.json` atomically, and delete all but the newest MAX_FILES results. Raises OSError.

    The history of older runs is in the node's GPUHealthReport.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.started:%Y%m%dT%H%M%S.%fZ}.json"
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - opens a descriptor
            file.write(msgspec.json.encode(run))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:  # after any interruption, no partial file is left behind
        Path(temporary).unlink(missing_ok=True)
        raise
    for old in sorted(folder.glob("*.json"))[:-MAX_FILES]:
        with contextlib.suppress(FileNotFoundError):  # another run deletes old files as well
            old.unlink()
    return path
