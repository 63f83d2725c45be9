"""Results on disk: one file a run, for the node's agent to read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec

from gpuhealth.model.burnin_run import BurninRun

KEPT = 20


def save(run: BurninRun, folder: Path) -> Path:
    """Writes `<start>.json` whole or not at all, and lets the oldest go. Raises OSError.

    Only the newest runs are kept: the report on the cluster holds the history.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.started:%Y%m%dT%H%M%S.%fZ}.json"
    handle, part = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(msgspec.json.encode(run))
            file.flush()
            os.fsync(file.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except BaseException:  # whatever stops it, no half file is left behind
        Path(part).unlink(missing_ok=True)
        raise
    for old in sorted(folder.glob("*.json"))[:-KEPT]:
        with contextlib.suppress(FileNotFoundError):  # another run makes room as well
            old.unlink()
    return path
