"""The GPUHealthReport of our node: details that do not fit in the marks, written only on changes.

The agent owns the fields that it writes and leaves the others of the status to the controller, so it sends merge
patches of the difference. Data that changes in every round without new information (when a finding was last seen) is
written along with the next real change, and a mere change of wording at most once in `REFRESH`.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from gpuhealth.api.report import (
    DriverReleased,
    Gpu,
    Inventory,
    Quarantine,
    ReportStatus,
    finding_of,
    not_checked,
)
from gpuhealth.api.resource import body
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AlreadyExistsError, NotFoundError
from gpuhealth.kube.kinds import REPORTS
from gpuhealth.model.burnin_run import BurninRun
from gpuhealth.model.time import format_time, to_second
from gpuhealth.model.verdict import GpuVerdict, State, Verdict
from gpuhealth.monitors.nvidia.readings import Release
from gpuhealth.quarantine.condition import REFRESH, by_severity
from gpuhealth.quarantine.report_burnins import burnin_of

MAX_FINDINGS = 500
"""An object may have 1.5 MB; people read the worst findings, and the report counts those left out."""


class Facts(msgspec.Struct, frozen=True):
    """Content of the report other than verdict and marks, supplied by the caller."""

    inventory: Inventory = Inventory()
    boot_id: str = ""
    counters: dict[str, int] = {}  # since the agent's journal began, for the fleet's statistics
    agent_version: str = ""
    burnin: tuple[BurninRun, ...] | None = None  # the oldest first; None while the results cannot be read
    settings_digest: str = ""  # of the settings file in use


def status_of(
    verdict: Verdict,
    quarantine: Quarantine,
    facts: Facts,
    would_do: tuple[str, ...] = (),
    release: Release | None = None,
) -> ReportStatus:
    """The agent's part of the report's status."""
    findings = by_severity(verdict.findings)
    states = {gpu.uuid or gpu.pci: gpu.verdict for gpu in verdict.gpus}
    inventory = facts.inventory.gpus or [_seen_before(gpu) for gpu in verdict.gpus]
    gpus = [replace(gpu, verdict=states.get(gpu.uuid or gpu.pci, State.UNKNOWN)) for gpu in inventory]
    known = [uuid for uuid in dict.fromkeys([*(gpu.uuid for gpu in inventory), *states]) if uuid]
    return ReportStatus(
        verdict=verdict.verdict,
        worst=findings[0].code if findings else "",
        boot_id=facts.boot_id,
        agent_version=facts.agent_version,
        settings_digest=facts.settings_digest,
        inventory=Inventory(driver=facts.inventory.driver, gpu_count=len(gpus), gpus=tuple(gpus)),
        findings=tuple(finding_of(finding) for finding in findings[:MAX_FINDINGS]),
        findings_omitted=max(0, len(findings) - MAX_FINDINGS),
        not_checked=tuple(not_checked(check, reason) for check, reason in verdict.coverage.in_words()),
        driver_released=_released(release),
        quarantine=replace(quarantine, since=to_second(quarantine.since)) if quarantine.since else quarantine,
        counters=dict(sorted(facts.counters.items())),
        would_do=would_do,
        burnin=None if facts.burnin is None else burnin_of(facts.burnin, known),
    )


def _seen_before(gpu: GpuVerdict) -> Gpu:
    """A GPU that is known from its findings alone; NVML gives no index to one that is gone."""
    return Gpu(index=gpu.index if gpu.index >= 0 else None, uuid=gpu.uuid, pci=gpu.pci, model=gpu.model)


def _released(release: Release | None) -> DriverReleased:
    if release is None:
        return DriverReleased()
    return DriverReleased(reasons=tuple(release.reasons), since=format_time(release.since))


def merge_patch(old: Any, new: Object) -> Object:
    """The smallest JSON merge patch that turns the fields of `old` which `new` has into those of `new`."""
    before = old if isinstance(old, dict) else {}
    patch: Object = {}
    for key, value in new.items():
        if isinstance(value, dict):
            known = before.get(key)
            names = known if isinstance(known, dict) else None  # None: a patch creates the map
            gone = {name: None for name in names or {} if name not in value}
            if (inner := merge_patch(known, value) | gone) or names is None:
                patch[key] = inner
        elif key not in before or before[key] != value:
            patch[key] = value
    return patch


def substance(status: Object) -> Object:
    """The parts of a report worth an immediate write: not counters, nor times, wording and evidence of findings."""
    keys = ("code", "severity", "component", "action")
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

    async def write(self, node: Object, new: ReportStatus, now: datetime) -> bool:
        """Bring the server's report up to date, if that is worth a write; whether it was written."""
        status = body(new)
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
        except NotFoundError:  # it was deleted
            self._status = await self._read_or_create(node)
            answer = await self._client.patch(REPORTS, self._node, {"status": status}, subresource="status")
        # What the server leaves out, by a definition of an older version, must not be sent again and again.
        self._status = (answer.get("status") or {}) | status
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
            # The Node was recreated under the same name: the garbage collector would delete the report.
            adopted = {"metadata": {"ownerReferences": [owner]}}
            found = await self._client.patch(REPORTS, self._node, adopted)
        return found.get("status") or {}
