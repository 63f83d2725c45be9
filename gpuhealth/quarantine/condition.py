"""The condition `GPUHealthy` of a Node: its content for a verdict, and the patch that writes it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from gpuhealth.api.names import CONDITION, ConditionReason, Override
from gpuhealth.kube.objects import parse_time
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Finding, Severity
from gpuhealth.model.missing import MissingReason
from gpuhealth.model.time import format_time
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.nvidia.readings import Release
from gpuhealth.quarantine.marks import Object, condition

MESSAGE_LIMIT = 32_768
"""Bytes of a condition's message. The API server sets no limit for those of Nodes; this is the one of
metav1.Condition."""
REFRESH = timedelta(minutes=1)
"""How often a text is written again that differs in its numbers alone: a temperature in it costs no write a round."""
STAYS_IN_SERVICE = "; stays in service: "
"""Precedes, in the message, why a node that should be out of service is not."""
_STATUS = {State.UNHEALTHY: "False", State.UNKNOWN: "Unknown"}


class Summary(NamedTuple):
    """Content of the condition."""

    status: str  # True, False or Unknown
    reason: str
    message: str


def condition_reason(code: str) -> str:
    """A finding's code in CamelCase: xid.79 is Xid79, ecc.uncorrectable is EccUncorrectable."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", code))


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, equal ones in a stable order."""
    return sorted(findings, key=lambda f: (-f.severity.rank, f.code, f.component))


def summary(verdict: Verdict, override: Override | None = None, release: Release | None = None) -> Summary:
    """The condition for a verdict. With warnings alone it is True: the node can work.

    While the driver is released it keeps the status that was known before, and the message mentions the release.
    """
    worrying = [finding for finding in by_severity(verdict.findings) if finding.severity is not Severity.INFO]
    findings = _one_line(worrying)
    if override is Override.HEALTHY:
        found = f"; found: {findings}" if findings else ""
        return Summary("True", ConditionReason.OVERRIDE, f"declared healthy by annotation{found}")
    parts = [f"{release}: NVML is not measured"] if release else []
    if findings:
        parts.append(findings)
    if verdict.verdict is State.UNKNOWN:
        excused = MissingReason.RELEASED if release else None
        missing = {f"{check} ({reason})" for check, reason in verdict.coverage.in_words(excused)}
        if missing or not release:
            parts.append("not measured: " + (", ".join(sorted(missing)) or "anything yet"))
    if worrying:
        reason = condition_reason(worrying[0].code)
    elif release:
        reason = ConditionReason.DRIVER_RELEASED
    else:
        is_unknown = verdict.verdict is State.UNKNOWN
        reason = ConditionReason.NOT_MEASURED if is_unknown else ConditionReason.HEALTHY
    message = ("; ".join(parts) or "no fault found")[:MESSAGE_LIMIT]
    return Summary(_STATUS.get(verdict.verdict, "True"), reason, message)


def _one_line(findings: list[Finding]) -> str:
    """All findings on one line; beyond the limit, the number of those omitted."""
    parts: list[str] = []
    length = 0
    for index, finding in enumerate(findings):
        component = "" if finding.component == NODE else f" {finding.component.id}"
        part = " ".join(f"{finding.code}{component}: {finding.message}".split())
        length += len(part.encode()) + 2
        if length > MESSAGE_LIMIT - 200:  # room for this sentence, and for what was not measured
            return "; ".join([*parts, f"and {len(findings) - index} more, see kubectl get ghr"])
        parts.append(part)
    return "; ".join(parts)


def is_due(node: Object, wanted: Summary, now: datetime, kind: str = CONDITION) -> bool:
    """Whether our condition, or a mirror of it, has to be written.

    Another message alone is written at most once in REFRESH. Whether the node stays in service is written at once.
    """
    current = condition(node, kind) or {}
    if (current.get("status"), current.get("reason")) != (wanted.status, wanted.reason):
        return True
    message = str(current.get("message"))
    if message == wanted.message:
        return False
    if (STAYS_IN_SERVICE in message) != (STAYS_IN_SERVICE in wanted.message):
        return True
    try:
        heartbeat = parse_time(current.get("lastHeartbeatTime"))
    except ValueError:  # none, or one that the API server takes and Python does not
        return True
    return not timedelta(0) <= now - heartbeat < REFRESH  # a heartbeat from the future: clocks may be off


def condition_patch(node: Object, wanted: Summary, now: datetime, kind: str = CONDITION) -> Object:
    """The strategic merge patch that sets our condition, or a mirror of it, and leaves those of others alone."""
    current = condition(node, kind) or {}
    changed = format_time(now)
    if current.get("status") == wanted.status:
        changed = current.get("lastTransitionTime") or changed
    new = {"type": kind, "status": wanted.status, "reason": wanted.reason, "message": wanted.message}
    times = {"lastTransitionTime": changed, "lastHeartbeatTime": format_time(now)}
    return {"status": {"conditions": [{**new, **times}]}}
