"""Reads the YAML text of settings within bounds: any text results in values or one error, in limited time.

Aliases can make a small text large: each counts as the size of its target.
"""

from __future__ import annotations

from typing import Any

import yaml

MOST_CHARACTERS = 1 << 18
MOST_VALUES = 50_000
DEEPEST = 50


class TextError(ValueError):
    """The text cannot be used; `reason` continues a sentence that begins with the position in the text."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line  # counted from 1


def values_of(text: str) -> object:
    """The values in the text. Raises TextError."""
    if len(text) > MOST_CHARACTERS:
        raise TextError(f"is longer than {MOST_CHARACTERS >> 10} KiB")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = str(error.problem) if isinstance(error, _BoundError) else "is not valid YAML"
        raise TextError(reason, mark.line + 1 if mark else None) from None


class _BoundError(yaml.MarkedYAMLError):
    """Valid YAML that is not valid settings."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader with bounds that are checked before a value is made, and whose only error is a YAMLError."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = self._depth = 0
        self._sizes: dict[int, int] = {}  # by the identity of a node: its number of values, aliases expanded

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _BoundError(problem="has an alias of a value that contains it", problem_mark=mark)
            return self._counted(node, self._sizes[id(node)], mark)
        if self._depth >= DEEPEST:
            raise _BoundError(problem=f"is nested deeper than {DEEPEST} levels", problem_mark=mark)
        before = self._count
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._count - before + 1
        return self._counted(node, 1, mark)

    def _counted(self, node: Any, size: int, mark: Any) -> Any:
        self._count += size
        if self._count > MOST_VALUES:
            raise _BoundError(problem=f"makes it more than {MOST_VALUES} values", problem_mark=mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # noqa: BLE001 - constructors of dates, numbers and so on raise arbitrary exceptions
            problem = "has a value that cannot be read; text goes in quotes"
            raise _BoundError(problem=problem, problem_mark=node.start_mark) from None
