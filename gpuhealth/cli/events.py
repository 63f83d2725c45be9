"""`gpuhealth events`: prints the journal of this node's agent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.output import CommandError, align_columns, console, print_labelled, short_name
from gpuhealth.cli.streams import standard
from gpuhealth.runtime.text import printable

if TYPE_CHECKING:
    from gpuhealth.runtime.journal import Entry

_WIDE = 160  # minimum columns for messages on the same line as the other columns
_FOREVER = 400 * 86400.0  # seconds; longer than any journal is retained


def command(
    since: Annotated[str, typer.Option(metavar="DURATION", help="How far back to go: 30m, 24h, 14d.")] = "24h",
    code: Annotated[
        str, typer.Option(metavar="PATTERN", help="Show only this finding code or pattern, such as xid.79 or 'ecc.*'.")
    ] = "*",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Show at most the N newest entries.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: one object per entry.")] = False,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Journal to read; default: the one in the settings.")
    ] = None,
    config: options.Config = None,
) -> None:
    """Print the journal of this node's agent.

    It holds what the agent has found and done, oldest first.
    """
    lookback = options.duration(since, "--since")
    path = journal or options.load_settings(config).journal.path
    start = datetime.now(UTC) - timedelta(seconds=min(lookback, _FOREVER))
    pattern = code if any(char in code for char in "*?[.") else f"{code}.*"
    entries = _read(path, start, pattern, limit)
    if as_json:
        import msgspec

        for line in [msgspec.json.encode(entry) for entry in entries]:  # all are encoded before the first is written
            standard.write_line(line)
    elif entries:
        _table(entries)
        if len(entries) == limit:
            typer.echo(f"These are the {limit} newest entries; for more, use --limit.", err=True)
    else:
        selected = "" if pattern == "*" else f" for {pattern}"
        typer.echo(f"No events{selected} in the last {since}.")


def _read(path: Path, since: datetime, pattern: str, limit: int) -> list[Entry]:
    from gpuhealth.runtime.journal import Journal, JournalError

    try:
        if not path.exists():
            raise CommandError(
                f"no journal at {path}: has the agent run on this node? (use --journal for another path)"
            )
        journal = Journal(path, keep_seconds=_FOREVER, max_entries=limit, read_only=True)
        try:
            return list(journal.entries(since, pattern, limit))
        finally:
            journal.close()
    except JournalError as error:
        raise CommandError(str(error)) from None
    except OSError as error:  # such as a name that is too long
        raise CommandError(f"cannot read journal {path}: {error.strerror}") from None


def _table(entries: list[Entry]) -> None:
    """One line per entry where the output is wide enough, as in a pipe; else the message on the next line."""
    from rich.text import Text

    from gpuhealth.cli.wording import STYLE

    out = console()
    wide = out.width >= _WIDE
    rows = [[Text(heading, style="dim") for heading in ("time", "event", "code", "component")]]
    for entry in entries:
        style = STYLE.get(entry.severity, "") if entry.kind == "raised" else ""
        cells = (
            f"{entry.time:%Y-%m-%d %H:%M:%SZ}",
            printable(entry.kind),
            printable(entry.code),
            short_name(entry.component.id),
        )
        rows.append([Text(cell, style=style) for cell in cells])
    messages = [Text("message", style="dim"), *(Text(printable(entry.message)) for entry in entries)]
    if wide:
        for line in align_columns([[*row, message] for row, message in zip(rows, messages, strict=True)]):
            out.print(line)
        return
    heading, *lines = align_columns(rows)
    out.print(heading)
    for line, message in zip(lines, messages[1:], strict=True):
        out.print(line)
        print_labelled(out, "", message, margin=4)
