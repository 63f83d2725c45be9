"""Results on disk: whole files, in their order, and not too many of them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from testing.burnin_results import result, run

from gpuhealth.burnin import results
from gpuhealth.model.burnin_run import BurninRun


def test_a_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    """The directory is created if necessary, and the file is readable by everyone."""
    one = run(result(figures={"bf16_tflops": 712.5}))
    path = results.save(one, tmp_path / "new" / "burnin")
    assert path.name == "20260101T000000.000000Z.json"
    assert msgspec.json.decode(path.read_bytes(), type=BurninRun) == one
    assert path.stat().st_mode & 0o777 == 0o644


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Only the newest twenty runs are kept; other files are not touched."""
    (tmp_path / "notes.txt").touch()
    paths = [results.save(run(result(), at=60 * number), tmp_path) for number in range(results.MAX_FILES + 2)]
    assert sorted(tmp_path.glob("*.json")) == paths[2:]
    assert (tmp_path / "notes.txt").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write leaves neither a partial file nor a temporary one."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.save(run(result()), tmp_path)
    assert list(tmp_path.iterdir()) == []
