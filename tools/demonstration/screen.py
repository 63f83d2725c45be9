"""What the demo prints: headings, prose, and what the operator's programs say, all within the terminal's width."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from gpuhealth.cli.output import align_columns

_MOST_COLUMNS = 100
_PIPE_COLUMNS = 80
_INDENT = 2
_HANGING = 4  # of what is continued
_UUID = re.compile(r"\b(GPU-[0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PIECE = re.compile(r"[^ ,]*[ ,]?")
_STYLES = {
    r"\b(unhealthy|False|critical|quarantined|NoSchedule)\b": "bold red",
    r"\b(healthy|True)\b": "green",
    r"^[A-Z][A-Z ]+$": "dim",
}


class Screen:
    """Standard output; colours on a terminal only, and none where NO_COLOR is set."""

    def __init__(self) -> None:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a locale without our dashes
        width = min(_MOST_COLUMNS, Console().width) if sys.stdout.isatty() else _PIPE_COLUMNS
        plain = Console(width=width).no_color
        self._console = Console(
            width=width, highlight=False, markup=False, emoji=False, color_system=None if plain else "auto"
        )

    @property
    def environment(self) -> dict[str, str]:
        """For a program whose output is shown here: the room it has, and whether it may use colours."""
        coloured = {"FORCE_COLOR": "1"} if self._console.color_system else {}
        return {"COLUMNS": str(self._console.width - _INDENT), **coloured}

    def heading(self, title: str) -> None:
        """Shows that a step of the demonstration begins."""
        self._console.print()
        self._console.print(Text(f"── {title} ".ljust(self._console.width, "─"), style="bold cyan"))

    def say(self, text: str) -> None:
        """What happens, in a sentence or two."""
        self._console.print()
        for line in text.splitlines():
            self._console.print(Text(textwrap.fill(line, self._console.width)), soft_wrap=True)

    def command(self, line: str, output: str | Iterable[str]) -> None:
        """What an operator types or looks at, and what it shows; colours in it are kept."""
        self._console.print()
        self._console.print(Text(f"$ {line}", style="bold"))
        self.lines(output.splitlines() if isinstance(output, str) else output)

    def lines(self, lines: Iterable[str]) -> None:
        """Lines as they are, as far as there is room."""
        for line in lines:
            for part in self._folded(line):
                part.rstrip()
                self._console.print(Text(" " * _INDENT if part else "") + part, soft_wrap=True)

    def table(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """The rows with their cells in columns; the last columns are left out where there is no room."""
        lines = [line.plain for line in align_columns([[Text(cell) for cell in row] for row in rows])]
        fits = max(map(len, lines)) <= self._console.width - _INDENT
        return lines if fits else self.table([row[:-1] for row in rows])

    def _folded(self, line: str) -> list[Text]:
        """A line as lines that fit, broken behind blanks and commas; uuids are cut to the part that people compare."""
        if "\x1b" in line:
            return [Text.from_ansi(line)]  # already formatted to the screen width by its program
        line = _UUID.sub(r"\1…", line)
        margin = " " * (len(line) - len(line.lstrip()) or _HANGING)
        parts = [""]
        for piece in _PIECE.findall(line):
            if len((parts[-1] + piece).rstrip()) > self._console.width - _INDENT and parts[-1].strip():
                parts.append(margin)
            parts[-1] += piece
        return [_coloured(part) for part in parts]


def _coloured(line: str) -> Text:
    text = Text(line)
    for pattern, style in _STYLES.items():
        text.highlight_regex(pattern, style)
    return text
