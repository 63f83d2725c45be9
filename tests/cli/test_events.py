"""`gpuhealth events`: the node's history, for people and for programs."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from testing.command import Node, Run

from gpuhealth.cli import events
from gpuhealth.cli.output import CommandError
from gpuhealth.model.component import NODE, Component, gpu
from gpuhealth.runtime.journal import Entry, Journal

GPU = gpu("GPU-5f3c8e1d-0a1b-2c3d-4e5f-60718293a4b5")


def entry(age: timedelta, kind: str, code: str, message: str, component: Component = GPU) -> Entry:
    """A critical entry of that age."""
    when = datetime.now(UTC) - age
    return Entry(time=when, kind=kind, code=code, component=component, message=message, severity="critical")


@pytest.fixture
def journal(node: Node) -> None:
    """The node's agent has left three entries: of two hours, one hour and ten minutes ago."""
    journal = Journal(node.journal, 14 * 86400.0, 1000)
    journal.write(
        [
            entry(timedelta(hours=2), "raised", "xid.79", "GPU has fallen off the bus"),
            entry(timedelta(hours=1), "cleared", "xid.79", "the node has rebooted"),
            entry(timedelta(minutes=10), "raised", "ecc.uncorrectable", "2 errors\x1b[2J"),
        ]
    )
    journal.close()


@pytest.mark.usefixtures("journal")
def test_table(run: Run) -> None:
    """Oldest first, one line per event in a pipe, with the GPU's short name, and without control characters."""
    said = run("events")
    assert (said.code, said.err) == (0, "")
    heading, *lines = said.out.splitlines()
    assert heading.split() == ["time", "event", "code", "component", "message"]
    assert [line.split()[3] for line in lines] == ["xid.79", "xid.79", "ecc.uncorrectable"]
    assert "GPU-5f3c8e1d  GPU has fallen off the bus" in lines[0]
    assert "\x1b" not in said.out


@pytest.mark.usefixtures("journal")
def test_80_columns(run: Run) -> None:
    """On a narrow terminal, the message is on a line of its own."""
    lines = run("events", COLUMNS="80").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2] == "    GPU has fallen off the bus"


@pytest.mark.usefixtures("journal")
def test_json(node: Node) -> None:
    """--json writes one object per line."""
    lines = [json.loads(line) for line in node.run("events", "--json").out.splitlines()]
    assert [line["kind"] for line in lines] == ["raised", "cleared", "raised"]
    assert lines[0]["component"] == {"kind": "gpu", "id": GPU.id}


@pytest.mark.usefixtures("journal")
def test_filters(run: Run) -> None:
    """Events are filtered by time, by code or subject, and by number."""

    def codes(*arguments: str) -> list[str]:
        return [json.loads(line)["code"] for line in run("events", "--json", *arguments).out.splitlines()]

    assert codes("--since", "90m") == ["xid.79", "ecc.uncorrectable"]
    assert codes("--code", "xid.79") == ["xid.79", "xid.79"]
    assert codes("--code", "ecc") == ["ecc.uncorrectable"]
    assert codes("--code", "ecc.*") == ["ecc.uncorrectable"]
    assert codes("--limit", "1") == ["ecc.uncorrectable"]


@pytest.mark.usefixtures("journal")
def test_nothing_happened(run: Run) -> None:
    """No events is an answer, not an error."""
    said = run("events", "--since", "1m")
    assert (said.code, said.out) == (0, "No events in the last 1m.\n")
    assert run("events", "--since", "1m", "--json") == (0, "", "")


def test_no_journal(node: Node, run: Run) -> None:
    """Without a journal, the error names its path."""
    said = run("events")
    assert (said.code, said.out) == (3, "")
    assert f"no journal at {node.journal}" in said.err
    assert not node.journal.exists()


def test_file_that_is_no_journal(node: Node, run: Run) -> None:
    """A file that is no journal is named, and not changed."""
    node.journal.write_text("text " * 1000)
    said = run("events", "--journal", node.journal)
    assert said.code == 3
    assert "is no journal" in said.err
    assert node.journal.read_text() == "text " * 1000


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("time", 1e300),
        ("time", "soon"),
        ("time", b"x"),
        ("message", b"x"),
        ("code", b"x"),
        ("kind", b"x"),
        ("component", b"x"),
        ("component", "GPU-1"),
        ("component", '{"kind":"gpu"}'),
        ("component", '{"kind":"planet","id":"x"}'),
        ("component", "[" * 100_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_spoiled_entries_are_left_out(node: Node, run: Run, column: str, value: object) -> None:
    """An entry with an invalid value is skipped with a warning on standard error."""
    journal = Journal(node.journal, 1e9, 1000)
    journal.write([entry(timedelta(), "raised", f"xid.{n}", "m", NODE) for n in (1, 2)])
    journal._database.execute(f"UPDATE entries SET {column} = ? WHERE code = 'xid.1'", (value,))
    journal._database.execute("UPDATE entries SET message = CAST(x'ff41' AS TEXT) WHERE code = 'xid.2'")
    journal.close()
    for options in ((), ("--json",)):
        said = run("events", *options)
        assert said.code == 0
        assert "xid.2" in said.out
        assert "\ufffdA" in said.out
        assert "xid.1" not in said.out
        assert "Traceback" not in said.err


def test_spoiled_memory_stops_no_check(node: Node) -> None:
    """A stored value of the wrong type is reported and does not stop the check."""
    journal = Journal(node.journal, 1e9, 1000)
    journal.write(state={"findings": b"{}"})
    for value in ("text", 10**9, None):
        journal._database.execute("INSERT OR REPLACE INTO state VALUES ('findings', ifnull(?, 1.5))", (value,))
        said = node.run("check")
        assert "the stored value of findings is damaged" in said.out
        assert "Traceback" not in said.err
    journal.close()


def test_no_column_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of a journal that somebody has edited has no control characters in any column."""
    escape = "\x1b[2J"
    events._table([Entry(time=datetime.now(UTC), kind=escape, code=escape, component=gpu(escape), message=escape)])
    assert escape not in capsys.readouterr().out


def test_a_path_that_no_file_can_have() -> None:
    """A name that is too long is one sentence, as for any other file that cannot be read."""
    with pytest.raises(CommandError, match="File name too long"):
        events._read(Path("x" * 5000), datetime.now(UTC), "*", 10)
