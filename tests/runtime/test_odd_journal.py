"""Journals with content that no agent has written: each part that can be read is, and the agent starts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpuhealth.agent.state import restore
from gpuhealth.cli.snapshot import load_memory, read_journal
from gpuhealth.model.component import gpu
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.clock import SteadyClock
from gpuhealth.runtime.journal import Entry, Journal, JournalError

DAY = 86400.0
ENTRY = Entry(
    time=datetime(2026, 3, 1, 12, 0, tzinfo=UTC), kind="raised", code="xid.79", component=gpu("GPU-1"), message="lost"
)


def journal(path: Path) -> Journal:
    """A journal in the folder."""
    return Journal(path / "journal.sqlite", 14 * DAY, 100)


def spoiled(path: Path, state: dict[str, bytes] | None = None) -> Path:
    """A journal with this stored state, or one whose schema is no text."""
    first = journal(path)
    first.write([ENTRY], state or {})
    first.close()
    file = path / "journal.sqlite"
    if state is None:
        file.write_bytes(file.read_bytes().replace(b"CREATE TABLE entries", b"CREATE TABLE \xa1ntrie\x19"))
    return file


def test_a_schema_that_is_no_text(tmp_path: Path) -> None:
    """SQLite quotes a damaged schema in its error, which then cannot be decoded: the journal is set aside as others."""
    file = spoiled(tmp_path)
    with pytest.raises(JournalError) as refused:
        Journal(file, DAY, 100, read_only=True)
    assert str(refused.value).isprintable()
    second = journal(tmp_path)
    assert second.set_aside is not None
    assert list(second.entries()) == []
    second.close()


@pytest.mark.parametrize(
    "state",
    [
        {
            "findings": b'{"last_complete":{"\xff":"2026-03-01T12:00:00Z"}}',
            "checks": b'{"history":{"\xff":1},"baselines":{}}',
        },
        {"kmsg": b'{"boot_id":"\xff","sequence":1}'},
        {"written": b'{"boot_id":"boot-1","time":"2026-03-01T12:00:00Z","monotonic_seconds":1e300}'},
        {"written": b'{"boot_id":"boot-1","time":"2026-03-01T12:00:00","monotonic_seconds":1}'},
        {"written": b'{"boot_id":"boot-1","time":"0001-01-01T00:00:00+14:00","monotonic_seconds":1}'},
        {"findings": b'{"last_complete":{"nvidia":"9999-12-31T23:59:59Z"}}'},
    ],
)
def test_stored_state_of_any_content(tmp_path: Path, state: dict[str, bytes]) -> None:
    """Text that is no UTF-8, and times that cannot be calculated with, are logged and left out: the agent starts."""
    file = spoiled(tmp_path, state)
    opened = Journal(file, DAY, 100)
    with capture_logs() as logs:
        found = restore(opened, SteadyClock(), "boot-1")
    opened.close()
    assert found.tracker.last_complete == {}
    assert any("discarded" in line["event"] for line in logs)
    known = read_journal(Settings.model_validate({"journal": {"path": file}}))
    assert (known.active, known.problem) == ((), "")
    assert load_memory(known.checks).baselines == {}
