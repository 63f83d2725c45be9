"""Checks the prose of docstrings and comments. Usage: python tools/prose.py

A public docstring says too little with fewer than four words, or when it starts with "The same": it cannot be read
alone. ALLOWED holds how many each folder still has; the numbers may only fall. The words and phrases in DENIED are
written nowhere in docstrings and comments: they are not what an engineer would write.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = {"gpuhealth": 0, "tests": 0, "tools": 0, "dashboards": 0}
DENIED = re.compile(r"\b(anew|beside|tells?|told|(?:is|are) to be|let go|the house)\b", re.IGNORECASE)
_LEAST_WORDS = 4
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_TEXTS = ("README.md", "daemonset/**/*.yaml")  # read as a whole


def poor(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring in a Python source that says too little."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            docstring = ast.get_docstring(node)
            if docstring is not None and (len(docstring.split()) < _LEAST_WORDS or docstring.startswith("The same")):
                yield node.lineno, docstring


def denied(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring line and comment in a Python source with a word that is denied."""
    lines = source.splitlines()
    prose = {number: text for number, text in _comments(source) if DENIED.search(text)}
    for node in ast.walk(ast.parse(source)):
        for statement in node.body if isinstance(node, _DOCUMENTED) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                for number in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1):
                    if DENIED.search(lines[number - 1]):
                        prose[number] = lines[number - 1].strip()
    yield from sorted(prose.items())


def _comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


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


def found_denied(root: Path) -> list[str]:
    """The places of denied words in Python sources, the README and the comments and texts of manifests."""
    sources = sorted(path for folder in ALLOWED for path in (root / folder).rglob("*.py"))
    places = [(path, *place) for path in sources for place in denied(path.read_text(encoding="utf-8"))]
    for pattern in _TEXTS:
        for path in sorted(root.glob(pattern)):
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            places += [(path, number, line.strip()) for number, line in lines if DENIED.search(line)]
    return [f"{path.relative_to(root)}:{line}: {text}" for path, line, text in places]


def verdict(folder: str, count: int) -> str:
    """One sentence where a folder has more poor docstrings than allowed, or fewer; else nothing."""
    allowed = ALLOWED[folder]
    if count == allowed:
        return ""
    cure = f"set ALLOWED in tools/prose.py to {count}" if count < allowed else "write what a reader needs to know"
    return f"{folder}: {count} docstrings say too little, {allowed} are allowed: {cure}."


def main() -> int:
    """0 where each folder has as many poor docstrings as are allowed, and no line a denied word; else 1."""
    problems = 0
    for folder, places in found(ROOT).items():
        if sentence := verdict(folder, len(places)):
            problems += 1
            print(*(places if len(places) > ALLOWED[folder] else []), f"prose: {sentence}", sep="\n", file=sys.stderr)
    if places := found_denied(ROOT):
        problems += 1
        sentence = f"{len(places)} lines have words that DENIED in tools/prose.py lists: use plain ones."
        print(*places, f"prose: {sentence}", sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
