"""JSON patches (RFC 6902) whose every change is under a precondition.

The API server refuses a patch as a whole (422, `InvalidError`) when one of its `test` operations finds another value.
So a change that begins with a test of the value it replaces never overwrites a concurrent change.
"""

from __future__ import annotations

from typing import Any

Operation = dict[str, Any]
"""One operation of a JSON patch."""


def pointer(*keys: str | int) -> str:
    """The JSON pointer (RFC 6901) to a value, with `~` and `/` in the keys escaped."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def replace_unchanged(path: str, old: Any, new: Any) -> list[Operation]:
    """Replace the value at `path`, which must still be `old`."""
    return [{"op": "test", "path": path, "value": old}, {"op": "replace", "path": path, "value": new}]


def remove_unchanged(path: str, old: Any) -> list[Operation]:
    """Remove the value at `path`, which must still be `old`."""
    return [{"op": "test", "path": path, "value": old}, {"op": "remove", "path": path}]
