"""`gpuhealth events`: what the agent has seen and done on this node, from its journal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.output import CommandError, columns, console, labelled, printable, short
from gpuhealth.cli.streams import standard

if TYPE_CHECKING:
    from gpuhealth.runtime.journal import Entry

_ROOMY = 160  # columns
_FOREVER = 400 * 86400.0  # seconds: longer than any journal is kept


def command(
    since: Annotated[str, typer.Option(metavar="DURATION", help="How far back: 30m, 24h, 14d.")] = "24h",
    code: Annotated[
        str, typer.Option(metavar="PATTERN", help="Only findings of this code or pattern, such as xid.79 or 'ecc.*'.")
    ] = "*",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most the N newest.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The journal; else the one of the settings.")
    ] = None,
    config: options.Config = None,
) -> None:
    """What the agent has seen and done on this node, oldest first."""
    back = options.duration(since, "--since")
    path = journal or options.load_settings(config).journal.path
    start = datetime.now(UTC) - timedelta(seconds=min(back, _FOREVER))
    pattern = code if any(char in code for char in "*?[.") else f"{code}.*"
    entries = _read(path, start, pattern, limit)
    if as_json:
        import msgspec

        for line in [msgspec.json.encode(entry) for entry in entries]:  # all are encoded before one is written
            standard.write_line(line)
    elif entries:
        _table(entries)
        if len(entries) == limit:
            typer.echo(f"The {limit} newest; there may be more: --limit.", err=True)
    else:
        what = "" if pattern == "*" else f" of {pattern}"
        typer.echo(f"No events{what} in the last {since}.")


def _read(path: Path, since: datetime, pattern: str, limit: int) -> list[Entry]:
    from gpuhealth.runtime.journal import Journal, JournalError

    if not path.exists():
        raise CommandError(f"no journal at {path}: has the agent run on this node? (--journal names another)")
    try:
        journal = Journal(path, keep_seconds=_FOREVER, max_entries=limit, read_only=True)
        try:
            return list(journal.entries(since, pattern, limit))
        finally:
            journal.close()
    except JournalError as error:
        raise CommandError(str(error)) from None


def _table(entries: list[Entry]) -> None:
    """One line an event where there is room for it, as in a pipe; else its message stands below."""
    from rich.text import Text

    from gpuhealth.cli.wording import STYLE

    out = console()
    roomy = out.width >= _ROOMY
    rows = [[Text(heading, style="dim") for heading in ("time", "what", "code", "component")]]
    for entry in entries:
        style = STYLE.get(entry.severity, "") if entry.kind == "raised" else ""
        cells = (f"{entry.time:%Y-%m-%d %H:%M:%SZ}", entry.kind, printable(entry.code), short(entry.component.id))
        rows.append([Text(cell, style=style) for cell in cells])
    messages = [Text("message", style="dim"), *(Text(printable(entry.message)) for entry in entries)]
    if roomy:
        for line in columns([[*row, message] for row, message in zip(rows, messages, strict=True)]):
            out.print(line)
        return
    heading, *lines = columns(rows)
    out.print(heading)
    for line, message in zip(lines, messages[1:], strict=True):
        out.print(line)
        labelled(out, "", message, margin=4)
