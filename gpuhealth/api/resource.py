"""Building blocks of custom resources: types of fields, printer columns, definitions.

A struct is written and read as JSON by msgspec, and `crd` makes its schema. Bounds, formats and allowed values are only
in the schema, so that the API server enforces them on writers: a reader of another version must be able to read a state
unknown to it. Readers check types only, and read no more fields than they need.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""A time for display, as text: a value that Python cannot represent must not invalidate the fields around it."""
NonEmpty = Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1})]
"""A text of at least one character."""
Count = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 0})]
"""A number of items."""
Int64 = Annotated[int, msgspec.Meta(extra_json_schema={"format": "int64"})]
"""A number that may grow beyond 32 bits."""


def one_of(values: Iterable[str]) -> msgspec.Meta:
    """The values that the API server accepts for a text."""
    return msgspec.Meta(extra_json_schema={"enum": [str(value) for value in values]})


class Column(msgspec.Struct, frozen=True):
    """A printer column of kubectl."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False  # shown with -o wide only
    description: str = ""


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """One of our kinds: cluster-scoped, with the subresource status."""

    kind: str
    plural: str
    short_name: str
    struct: type[msgspec.Struct]
    columns: tuple[Column, ...]


def body(part: msgspec.Struct) -> dict[str, Any]:
    """A struct as the JSON object that the API server returns: tuples become lists, fields of None are omitted."""
    found: dict[str, Any] = _without_nulls(msgspec.json.decode(msgspec.json.encode(part)))
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
