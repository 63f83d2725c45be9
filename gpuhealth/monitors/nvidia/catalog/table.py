"""Reads the data files of this folder: CSV with comment lines that name the sources."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

_HERE = Path(__file__).parent


def rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of a data file, as column -> text."""
    with (_HERE / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(line for line in file if not line.startswith("#"))
