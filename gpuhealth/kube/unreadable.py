"""Objects that the API server has and that cannot be read: each version of one is logged and counted once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import structlog

from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.kinds import Kind

log = structlog.get_logger()

_MOST = 1000  # objects that are remembered as logged
_TEXT_LIMIT = 500  # of a reason, which may quote what somebody wrote


class Unreadable:
    """The unreadable objects that one client has met."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # by kind
        self._noted: dict[tuple[str, str], str] = {}  # version by kind and name

    def count(self, error: UnreadableError) -> None:
        """Counts an object that a watch has logged."""
        self.counts[error.kind] += 1

    def note(self, kind: Kind, item: dict[str, Any], reason: str) -> None:
        """Logs and counts an object, unless this version of it has been."""
        metadata = item["metadata"]
        key, version = (kind.kind, metadata["name"]), str(metadata.get("resourceVersion"))
        if self._noted.get(key) == version:
            return
        if len(self._noted) >= _MOST:
            self._noted.clear()
        self._noted[key] = version
        self.counts[kind.kind] += 1
        log.warning("unreadable object", kind=kind.kind, name=key[1], version=version, reason=reason[:_TEXT_LIMIT])
