"""How the command speaks: plain text that survives pipes, colour on a terminal only, errors as one sentence.

Standard output carries results and nothing else; progress, errors and the log go to standard error. With `--json`,
standard output holds one JSON document (`events`: one object a line), and where there is no result
`{"error": "the sentence that is on standard error"}`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # rich takes longer to import than `classify` to read a log
    from rich.console import Console
    from rich.text import Text

# Exit codes of every command; 130 and 141 are what a shell reports for Ctrl-C and for a reader that went away.
HEALTHY = 0
DEGRADED = 1
UNHEALTHY = 2
COULD_NOT = 3
INTERRUPTED = 130
READER_GONE = 141

_NO_LIMIT = 100_000  # columns: what reads a pipe wraps by itself, and grep wants whole messages


class CommandError(Exception):
    """The command cannot do what was asked; the text is the one sentence that the user reads."""


def console(stream: IO[str] | None = None) -> Console:
    """A console that cuts nothing: wrapped at a terminal's width, whole lines in a pipe."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # main.py knows what to do; rich would exit with 1, which says degraded

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


def columns(rows: Sequence[Sequence[Text]], right: Collection[int] = ()) -> list[Text]:
    """The rows as lines with their cells in columns; those named in `right` are set flush right."""
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


def labelled(out: Console, label: str, text: Text | str, margin: int = 10) -> None:
    """Prints a label and its text, which keeps its margin where it wraps."""
    from rich.text import Text

    body = Text(text) if isinstance(text, str) else text
    head = Text.assemble((f"  {label}".ljust(margin)[:margin], "dim"))
    for line in body.wrap(out, max(20, out.width - margin)):
        line.rstrip()
        out.print(head + line, soft_wrap=True)
        head = Text(" " * margin)


def printable(text: str) -> str:
    """Text from a log or a capture without what would steer the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def short(component: str) -> str:
    """GPU-5f3c8e1d of GPU-5f3c8e1d-0a1b-…: the part that people compare."""
    kind, dash, rest = component.partition("-")
    return printable(f"{kind}{dash}{rest.partition('-')[0]}" if kind in ("GPU", "MIG") else component)


def near(word: str, known: list[str], count: int = 3) -> str:
    """`; did you mean …?` with the closest of the known words, or nothing."""
    from difflib import get_close_matches

    matches = get_close_matches(word, known, n=count, cutoff=0.5)
    return f"; did you mean {', '.join(matches)}?" if matches else ""
