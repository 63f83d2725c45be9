"""Times with a zone."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

ZonedTime = Annotated[datetime, msgspec.Meta(tz=True)]


"""A time with its zone: without one it cannot be compared, and is refused when it is read from a file."""
