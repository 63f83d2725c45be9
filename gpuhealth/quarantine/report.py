"""The GPUHealthReport of our node: what the marks have no room for, written only when it changes.

The agent owns the fields that it writes and leaves the others of the status to the controller, so it sends merge
patches of the difference. What changes in every round without saying anything new (when a finding was last seen) is
written along with the next real change, and a mere change of wording at most once in `REFRESH`.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AlreadyExistsError, NotFoundError
from gpuhealth.kube.kinds import REPORTS
from gpuhealth.kube.objects import format_time
from gpuhealth.model.finding import Finding
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.burnin_results.readings import BurninRun
from gpuhealth.monitors.nvidia.readings import Release
from gpuhealth.quarantine import report_burnins as tested
from gpuhealth.quarantine.condition import REFRESH, by_severity

MAX_FINDINGS = 500
"""An object may have 1.5 MB; a node with more findings than this has said enough."""
_TEXT_LIMIT = 2048


class Gpu(msgspec.Struct, frozen=True, rename="camel"):
    """One GPU of the inventory."""

    index: int  # -1 for one that NVML no longer enumerates
    uuid: str
    pci: str
    model: str
    serial: str = ""


class Inventory(msgspec.Struct, frozen=True, rename="camel"):
    """What the node has."""

    driver: str = ""
    gpus: tuple[Gpu, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """What the report says beside verdict and marks; the caller knows it."""

    inventory: Inventory = Inventory()
    boot_id: str = ""
    counters: dict[str, int] = {}  # since the agent's journal began, for the fleet's statistics
    agent_version: str = ""
    burnin: tuple[BurninRun, ...] | None = None  # the oldest first; None while the results cannot be read


class Quarantine(msgspec.Struct, frozen=True, rename="camel"):
    """How it stands with taking the node out of service."""

    state: str = (
        "none"  # none, quarantined, blocked (by a budget), awaiting_test, dismissed (by a person), would_quarantine
    )
    code: str = ""
    since: datetime | None = None
    drain: bool = False
    budget: str = ""  # that blocks it
    limit: str = ""  # of the budget: maxUnavailable, maxPerWindow or maxPerFault
    reason: str = ""
    slots: tuple[str, ...] = ()


def status_of(
    verdict: Verdict,
    quarantine: Quarantine,
    facts: Facts,
    would_do: tuple[str, ...] = (),
    release: Release | None = None,
) -> Object:
    """The agent's part of the report's status."""
    findings = by_severity(verdict.findings)
    states = {gpu.uuid or gpu.pci: str(gpu.verdict) for gpu in verdict.gpus}
    inventory = facts.inventory.gpus or [Gpu(gpu.index, gpu.uuid, gpu.pci, gpu.model) for gpu in verdict.gpus]
    gpus = [{**_present(gpu), "verdict": states.get(gpu.uuid or gpu.pci, str(State.UNKNOWN))} for gpu in inventory]
    known = [uuid for uuid in dict.fromkeys([*(gpu.uuid for gpu in inventory), *states]) if uuid]
    out: Object = msgspec.to_builtins(quarantine)
    out["slots"] = list(quarantine.slots)  # a tuple would never equal what the server sends back
    out["since"] = format_time(quarantine.since) if quarantine.since else None
    return {
        "verdict": str(verdict.verdict),
        "worst": findings[0].code if findings else "",
        "bootID": facts.boot_id,
        "agentVersion": facts.agent_version,
        "inventory": {"driver": facts.inventory.driver, "gpuCount": len(gpus), "gpus": gpus},
        "findings": [_finding(finding) for finding in findings[:MAX_FINDINGS]],
        "findingsOmitted": max(0, len(findings) - MAX_FINDINGS),
        "notChecked": [{"check": c.check, "reason": c.reason[:_TEXT_LIMIT]} for c in verdict.coverage.not_checked],
        "driverReleased": {"reasons": list(release.reasons), "since": format_time(release.since)} if release else {},
        "quarantine": {key: value for key, value in out.items() if value is not None},
        "counters": dict(sorted(facts.counters.items())),
        "wouldDo": list(would_do),
        **({} if facts.burnin is None else {"burnin": tested.status_of(facts.burnin, known)}),
    }


def _present(gpu: Gpu) -> Object:
    """A GPU's fields; NVML gives no index to one that is gone."""
    return {key: value for key, value in msgspec.to_builtins(gpu).items() if key != "index" or value >= 0}


def _finding(finding: Finding) -> Object:
    evidence = {key: str(value)[:_TEXT_LIMIT] for key, value in msgspec.to_builtins(finding.evidence).items()}
    if finding.evidence.time is not None:
        evidence["time"] = format_time(finding.evidence.time)
    full = {
        "code": finding.code,
        "severity": str(finding.severity),
        "component": finding.component,
        "gpu": finding.gpu,
        "migInstance": finding.mig_instance,
        "message": finding.message[:_TEXT_LIMIT],
        "action": str(finding.action),
        "evidence": evidence,
        "firstSeen": format_time(finding.first_seen),
        "lastSeen": format_time(finding.last_seen),
        "clearsWhen": finding.clears_when,
    }
    return {key: value for key, value in full.items() if value != ""}


def merge_patch(old: Any, new: Object) -> Object:
    """The smallest JSON merge patch that turns the fields of `old` which `new` has into those of `new`."""
    before = old if isinstance(old, dict) else {}
    patch: Object = {}
    for key, value in new.items():
        if isinstance(value, dict):
            gone = {name: None for name in before.get(key) or {} if name not in value}
            if (inner := merge_patch(before.get(key), value) | gone) or key not in before:
                patch[key] = inner
        elif key not in before or before[key] != value:
            patch[key] = value
    return patch


def substance(status: Object) -> Object:
    """What of a report is worth a write at once: not counters, and not times, wording and evidence of findings."""
    keys = ("code", "severity", "component", "gpu", "action")
    findings = [{key: finding.get(key) for key in keys} for finding in status.get("findings") or []]
    unchecked = [item["check"] for item in status.get("notChecked") or []]
    return {**status, "findings": findings, "notChecked": unchecked, "counters": {}}


def _without_last_seen(status: Object) -> Object:
    findings = status.get("findings") or []
    bare = [
        {k: v for k, v in f.items() if k != "lastSeen"}
        | {"evidence": {k: v for k, v in f.get("evidence", {}).items() if k != "time"}}
        for f in findings
    ]
    return {**status, "findings": bare}


class Report:
    """The report of one node."""

    def __init__(self, client: Client, node: str) -> None:
        self._client = client
        self._node = node
        self._status: Object | None = None  # as the server has it
        self._written: datetime | None = None

    async def write(self, node: Object, status: Object, now: datetime) -> bool:
        """Make the server's report say this; whether it had to be written."""
        if self._status is None:
            self._status = await self._read_or_create(node)
        if not merge_patch(_without_last_seen(self._status), _without_last_seen(status)):
            return False
        reworded = not merge_patch(substance(self._status), substance(status))
        if reworded and self._written is not None and timedelta(0) <= now - self._written < REFRESH:
            return False
        patch = merge_patch(self._status, status)
        try:
            answer = await self._client.patch(REPORTS, self._node, {"status": patch}, subresource="status")
        except NotFoundError:  # somebody deleted it
            self._status = await self._read_or_create(node)
            answer = await self._client.patch(REPORTS, self._node, {"status": status}, subresource="status")
        self._status = answer.get("status") or {}
        self._written = now
        return True

    async def _read_or_create(self, node: Object) -> Object:
        """The report's status; an empty one at first. The Node owns it, so it goes when the Node goes."""
        metadata = node["metadata"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": metadata["name"], "uid": metadata["uid"]}
        try:
            found = await self._client.get(REPORTS, self._node)
        except NotFoundError:
            with suppress(AlreadyExistsError):  # then the patch finds it there
                await self._client.create(REPORTS, {"metadata": {"name": self._node, "ownerReferences": [owner]}})
            return {}
        if all(reference["uid"] != owner["uid"] for reference in found["metadata"].get("ownerReferences", [])):
            # A Node of the same name that was made anew: the garbage collector would take the report away.
            adopted = {"metadata": {"ownerReferences": [owner]}}
            found = await self._client.patch(REPORTS, self._node, adopted)
        return found.get("status") or {}
