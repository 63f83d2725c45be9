"""Reading API objects that others wrote: invalid content affects the object that has it, and no other.

The API server accepts more than Python can hold, such as the year 0, and people may write anything into annotations. An
object that cannot be read is logged and counted once for each of its versions.
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
"""A time in an object; it must have a time zone."""


def read(kind: str, item: Any, parse: Callable[[Any], _T]) -> _T:
    """Parse an object of this kind. Raises UnreadableError where `parse` raises anything."""
    try:
        return parse(item)
    except Exception as error:  # the content there is arbitrary
        raise UnreadableError(kind, item, error) from error


class Reader(Generic[_T]):
    """Reads the objects of one kind, and remembers those that cannot be read."""

    def __init__(
        self,
        kind: str,
        parse: Callable[[Any], _T],
        on_unreadable: Callable[[UnreadableError], None] = lambda _error: None,
    ) -> None:
        """`on_unreadable` is called once for each version of an object that `parse` cannot read."""
        self._kind = kind
        self._parse = parse
        self._on_unreadable = on_unreadable
        self._known: dict[_Identity, str] = {}  # unreadable objects and their versions

    def read(self, item: Any) -> _T:
        """Parse an object. Raises UnreadableError, and logs it, where that fails."""
        try:
            found = read(self._kind, item, self._parse)
        except UnreadableError as error:
            self.note(error)
            raise
        if self._known:
            self._known.pop(_identity(UnreadableError(self._kind, item, ValueError())), None)
        return found

    def read_all(self, items: Any) -> tuple[list[_T], list[UnreadableError]]:
        """Parse the objects of a list; the errors are of those that cannot be read."""
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
        self._on_unreadable(error)

    def keep_only(self, errors: list[UnreadableError]) -> None:
        """Forget the unreadable objects that are not among these: they no longer exist."""
        self._known = {key: self._known[key] for error in errors if (key := _identity(error)) in self._known}

    def forget(self, error: UnreadableError) -> None:
        """Forget an unreadable object that was deleted."""
        self._known.pop(_identity(error), None)


def _identity(error: UnreadableError) -> _Identity:
    return error.namespace, error.name, error.uid


def labels_of(item: Any) -> dict[str, str] | None:
    """The labels of an object whose other fields cannot be read; None where they cannot be read either."""
    try:
        return msgspec.convert(item["metadata"].get("labels") or {}, dict[str, str])
    except (TypeError, KeyError, AttributeError, msgspec.ValidationError):
        return None


def parse_time(text: Any) -> datetime:
    """Parse a time as the API writes it, to UTC. Raises ValueError, also for times that Python cannot hold."""
    try:
        return msgspec.convert(text, Time).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"{text!r} is no valid time: {error}") from None


def text_of(value: Any, otherwise: str = "") -> str:
    """The text, or `otherwise` for None. Raises TypeError for anything else."""
    if value is None:
        return otherwise
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value
