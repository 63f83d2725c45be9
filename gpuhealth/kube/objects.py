"""Reading objects that others wrote: whatever is in one of them costs that object and nothing else.

The API server's types are wider than ours: it takes times that are none for Python, and people may write anything into
annotations. An object that cannot be read is logged and counted once for each of its versions.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec
import structlog

from gpuhealth.kube.errors import UnreadableError

log = structlog.get_logger()

_T = TypeVar("_T")
_Identity: TypeAlias = tuple[str, str, str]

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time of an object; one without a time zone is none."""


def read(kind: str, item: Any, slim: Callable[[Any], _T]) -> _T:
    """What `slim` makes of an object of this kind; UnreadableError where it cannot."""
    try:
        return slim(item)
    except Exception as error:  # there is no end to what somebody may have written there
        raise UnreadableError(kind, item, error) from error


class Reader(Generic[_T]):
    """Reads the objects of one kind, and remembers which of them it could not."""

    def __init__(
        self, kind: str, slim: Callable[[Any], _T], noted: Callable[[UnreadableError], None] = lambda _error: None
    ) -> None:
        """`noted` gets each version of an object that `slim` cannot read, once."""
        self._kind = kind
        self._slim = slim
        self._noted = noted
        self._known: dict[_Identity, str] = {}  # unreadable objects and their versions

    def read(self, item: Any) -> _T:
        """The object as `slim` makes it; UnreadableError where it cannot."""
        try:
            found = read(self._kind, item, self._slim)
        except UnreadableError as error:
            self.note(error)
            raise
        if self._known:
            self._known.pop(_identity(UnreadableError(self._kind, item, ValueError())), None)
        return found

    def read_all(self, items: Any) -> tuple[list[_T], list[UnreadableError]]:
        """The objects of a list, and the errors of those that cannot be read."""
        found, errors = [], []
        for item in items if isinstance(items, list) else []:
            try:
                found.append(self.read(item))
            except UnreadableError as error:
                errors.append(error)
        return found, errors

    def note(self, error: UnreadableError) -> None:
        """Log and count an object that cannot be read, unless this version of it is known."""
        if self._known.get(_identity(error)) == error.version:
            return
        self._known[_identity(error)] = error.version
        log.warning(
            "unreadable object",
            kind=error.kind,
            namespace=error.namespace,
            name=error.name,
            version=error.version,
            problem=error.problem,
        )
        self._noted(error)

    def keep_only(self, errors: list[UnreadableError]) -> None:
        """Forget the unreadable objects that are not among these: they exist no more."""
        self._known = {key: self._known[key] for error in errors if (key := _identity(error)) in self._known}

    def forget(self, error: UnreadableError) -> None:
        """The object is deleted."""
        self._known.pop(_identity(error), None)


def _identity(error: UnreadableError) -> _Identity:
    return error.namespace, error.name, error.uid


def labels_of(item: Any) -> dict[str, str] | None:
    """The labels of an object that cannot be read otherwise; None where they cannot be either."""
    try:
        return msgspec.convert(item["metadata"].get("labels") or {}, dict[str, str])
    except (TypeError, KeyError, AttributeError, msgspec.ValidationError):
        return None


def parse_time(text: Any) -> datetime:
    """A time as the API writes it, in UTC. Raises ValueError where it is none, or none that Python can hold."""
    try:
        return msgspec.convert(text, Time).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"{text!r} is no time: {error}") from None


def text_of(value: Any, otherwise: str = "") -> str:
    """A text, or another where there is none. Raises TypeError for anything else."""
    if value is None:
        return otherwise
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
