"""Looks into Python sources, for tests of what is written in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string in a Python source, parts of f-strings included, docstrings not."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value
