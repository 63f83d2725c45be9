"""API objects that cannot be read: each version of one is logged and counted once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import structlog

from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.kinds import Kind

log = structlog.get_logger()

_MAX_REMEMBERED = 1000  # objects
_REASON_LIMIT = 500  # characters, since it may quote the object


class UnreadableObjects:
    """The unreadable objects that one client has received."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # by kind
        self._logged: dict[tuple[str, str], str] = {}  # versions by kind and name

    def count(self, error: UnreadableError) -> None:
        """Count an object that a watch has logged."""
        self.counts[error.kind] += 1

    def note(self, kind: Kind, item: dict[str, Any], reason: str) -> None:
        """Log and count an object, unless this version of it has been logged."""
        metadata = item["metadata"]
        key, version = (kind.kind, metadata["name"]), str(metadata.get("resourceVersion"))
        if self._logged.get(key) == version:
            return
        if len(self._logged) >= _MAX_REMEMBERED:
            self._logged.clear()
        self._logged[key] = version
        self.counts[kind.kind] += 1
        log.warning("unreadable object", kind=kind.kind, name=key[1], version=version, reason=reason[:_REASON_LIMIT])
