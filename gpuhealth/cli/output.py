"""Output of the command: plain text that survives pipes, colour only on a terminal, errors as one sentence.

Only results go to standard output; progress, errors and the log go to standard error. With `--json`, standard output
holds one JSON document; without a result it is `{"error": "the sentence that is on standard error"}`. `events --json`
and `classify` write JSON lines: any number of complete objects, one per line; the exit code says whether that is all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from typing import IO, TYPE_CHECKING

from gpuhealth.runtime.text import printable

if TYPE_CHECKING:  # importing rich takes longer than `classify` needs to read a log
    from rich.console import Console
    from rich.text import Text

# Exit codes of all commands; 130, 141 and 143 are those that a shell reports for Ctrl-C, SIGPIPE and SIGTERM.
HEALTHY = 0
DEGRADED = 1
UNHEALTHY = 2
UNKNOWN = 3  # also: the command could not do what was asked
INTERRUPTED = 130
PIPE_CLOSED = 141
TERMINATED = 143

_NO_LIMIT = 100_000  # columns: a pipe gets whole lines, for grep and for programs that wrap themselves


class CommandError(Exception):
    """The command cannot do what was asked; the text is the one sentence to print."""


def console(stream: IO[str] | None = None) -> Console:
    """A console that truncates nothing: it wraps at a terminal's width, and writes whole lines into a pipe."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # handled in main.py; rich would exit with 1, which means degraded

    stream = stream or sys.stdout
    unlimited = not stream.isatty() and not os.environ.get("COLUMNS")
    return Plain(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        width=_NO_LIMIT if unlimited else None,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


def align_columns(rows: Sequence[Sequence[Text]], right: Collection[int] = ()) -> list[Text]:
    """The rows as lines with aligned columns; the columns numbered in `right` are aligned to the right."""
    from rich.text import Text

    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        line = Text()
        for number, cell in enumerate(row):
            blank = " " * (widths[number] - cell.cell_len)
            line.append("  " if number else "")
            line.append_text(Text(blank).append_text(cell) if number in right else cell + Text(blank))
        line.rstrip()
        lines.append(line)
    return lines


def print_labelled(out: Console, label: str, text: Text | str, margin: int = 10) -> None:
    """Print a label and its text; wrapped lines are indented by the margin."""
    from rich.text import Text

    body = Text(text) if isinstance(text, str) else text
    prefix = Text.assemble((f"  {label}".ljust(margin)[:margin], "dim"))
    for line in body.wrap(out, max(20, out.width - margin)):
        line.rstrip()
        out.print(prefix + line, soft_wrap=True)
        prefix = Text(" " * margin)


def short_name(component: str) -> str:
    """The part of a uuid that people compare: GPU-5f3c8e1d for GPU-5f3c8e1d-0a1b-…; other names unchanged."""
    kind, dash, rest = component.partition("-")
    return printable(f"{kind}{dash}{rest.partition('-')[0]}" if kind in ("GPU", "MIG") else component)


def did_you_mean(word: str, known: list[str], count: int = 3) -> str:
    """`; did you mean …?` with the most similar known words; empty where none is similar."""
    from difflib import get_close_matches

    matches = get_close_matches(word, known, n=count, cutoff=0.5)
    return f"; did you mean {', '.join(matches)}?" if matches else ""
