"""Times with a zone, and their text form."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec

ZonedTime = Annotated[datetime, msgspec.Meta(tz=True)]


"""A time with a zone; a time without one cannot be compared, and is rejected when read from a file."""

_USABLE_YEARS = (1970, 9000)  # with room for sums on both sides


def is_usable(time: datetime) -> bool:
    """Whether a stored time has a zone, and can be shifted and compared."""
    return time.tzinfo is not None and _USABLE_YEARS[0] <= time.year <= _USABLE_YEARS[1]


def to_second(time: datetime) -> datetime:
    """The time in UTC, truncated to seconds, as the API server keeps it."""
    return time.astimezone(UTC).replace(microsecond=0)


def format_time(time: datetime) -> str:
    """The time as RFC 3339 text in UTC, to the second, as the API server writes it: 2026-03-01T12:00:00Z."""
    return to_second(time).strftime("%Y-%m-%dT%H:%M:%SZ")
