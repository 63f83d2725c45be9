"""Mirror conditions: our condition once more, under the types and with the meaning that a platform repairs nodes by.

A mirror has its unhealthy status only while the node is out of service by our action: what a platform repairs or
replaces then is within the QuarantineBudgets. A mirror that another program writes, too, is written again at most once
in REFRESH, so that two programs that disagree do not flood the API server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from gpuhealth.kube.client import STRATEGIC_MERGE_PATCH, Client, Object
from gpuhealth.kube.kinds import NODES
from gpuhealth.quarantine.condition import REFRESH, Summary, condition_patch, condition_reason, is_due
from gpuhealth.quarantine.marks import condition, is_out, record
from gpuhealth.quarantine.other_writer import OtherWriter
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.runtime.settings import MirrorCondition

_OPPOSITE = {"True": "False", "False": "True"}


def mirrored(mirror: MirrorCondition, node: Object, ours: Summary) -> Summary:
    """A mirror's content for a Node whose condition GPUHealthy is to have the given content."""
    found = record(node)
    if found is not None and is_out(node):
        return Summary(mirror.status_when_unhealthy, _reason(mirror, found.code), ours.message)
    if ours.status == "Unknown":
        return Summary("Unknown", ours.reason, ours.message)
    return Summary(_OPPOSITE[mirror.status_when_unhealthy], ours.reason, ours.message)


def _reason(mirror: MirrorCondition, code: str) -> str:
    """The reason for a code: that of the code itself, then of the longest pattern, else the code in CamelCase."""
    matching = [pattern for pattern in mirror.reason_map if fnmatchcase(code, pattern)]
    best = max(matching, key=lambda pattern: (pattern == code, len(pattern)), default=None)
    return condition_reason(code) if best is None else mirror.reason_map[best]


class MirrorConditions:
    """Writes the mirrors of our Node's condition."""

    def __init__(
        self,
        client: Client,
        node: OwnNode,
        mirrors: Iterable[MirrorCondition],
        *,
        warn: Callable[[str, str], None],
        now: Callable[[], datetime],
    ) -> None:
        """`warn` records an Event of type Warning, given its reason and message."""
        self._client = client
        self._node = node
        self._now = now
        self._mirrors = {mirror.type: mirror for mirror in mirrors}
        self._writers = {kind: OtherWriter(warn, kind) for kind in self._mirrors}
        self._sent: dict[str, tuple[Summary, datetime]] = {}

    async def write(self, node: Object, ours: Summary) -> tuple[Object, dict[str, Summary]]:
        """Write those that are due, in one request; returns the Node and what was written."""
        now = self._now()
        wanted = {kind: mirrored(mirror, node, ours) for kind, mirror in self._mirrors.items()}
        for kind, writer in self._writers.items():
            writer.see(condition(node, kind), now)
        due = {kind: one for kind, one in wanted.items() if is_due(node, one, now, kind) and self._may_write(kind, one)}
        if not due:
            return node, {}
        new = [condition_patch(node, one, now, kind)["status"]["conditions"][0] for kind, one in due.items()]
        for each in new:
            self._writers[each["type"]].sending(each)
            self._sent[each["type"]] = (due[each["type"]], now)
        patch = {"status": {"conditions": new}}
        node = await self._client.patch(
            NODES, self._node.name, patch, content_type=STRATEGIC_MERGE_PATCH, subresource="status"
        )
        self._node.see(node)
        return node, due

    def _may_write(self, kind: str, wanted: Summary) -> bool:
        """Whether the last request was for another status or reason, or long enough ago."""
        sent, at = self._sent.get(kind, (None, None))
        if sent is None or at is None or sent[:2] != wanted[:2]:
            return True
        return not timedelta(0) <= self._now() - at < REFRESH
