"""Counts the docstrings of public functions and classes that say too little. Usage: python tools/prose.py

A docstring says too little with fewer than four words, or when it starts with "The same": it cannot be read alone.
ALLOWED holds how many each folder still has. The numbers may only fall.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = {"gpuhealth": 6, "tests": 0, "tools": 0, "dashboards": 0}
_LEAST_WORDS = 4


def poor(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring in a Python source that says too little."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            docstring = ast.get_docstring(node)
            if docstring is not None and (len(docstring.split()) < _LEAST_WORDS or docstring.startswith("The same")):
                yield node.lineno, docstring


def found(root: Path) -> dict[str, list[str]]:
    """The poor docstrings below each folder of the repository, with their places."""
    return {
        folder: [
            f"{path.relative_to(root)}:{line}: {text}"
            for path in sorted((root / folder).rglob("*.py"))
            for line, text in poor(path.read_text(encoding="utf-8"))
        ]
        for folder in ALLOWED
    }


def verdict(folder: str, count: int) -> str:
    """One sentence where a folder has more poor docstrings than allowed, or fewer; else nothing."""
    allowed = ALLOWED[folder]
    if count == allowed:
        return ""
    cure = f"set ALLOWED in tools/prose.py to {count}" if count < allowed else "write what a reader needs to know"
    return f"{folder}: {count} docstrings say too little, {allowed} are allowed: {cure}."


def main() -> int:
    """0 where each folder has as many poor docstrings as are allowed; else 1, with their list."""
    problems = 0
    for folder, places in found(ROOT).items():
        if sentence := verdict(folder, len(places)):
            problems += 1
            print(*(places if len(places) > ALLOWED[folder] else []), f"prose: {sentence}", sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
