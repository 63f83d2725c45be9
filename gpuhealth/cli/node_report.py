"""The details of `gpuhealth node`: read from the cluster, and printed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from rich.text import Text

from gpuhealth.api.names import (
    CONDITION,
    GROUP,
    MANUAL,
    OUT_OF_SERVICE,
    OVERRIDE,
    RELEASE_GPUS,
    RESTORED,
    STATE_LABEL,
    TAINT,
)
from gpuhealth.api.report import DrainPhase, Finding, GpuBurnin, Inventory, NotChecked, QuarantineState
from gpuhealth.cli import cluster_access
from gpuhealth.cli.output import CommandError, align_columns, print_labelled, short_name
from gpuhealth.cli.wording import ACTIONS, STYLE, age, counted
from gpuhealth.kube.errors import ForbiddenError, NotFoundError, UnreadableError
from gpuhealth.kube.kinds import BUDGETS, EVENTS, REPORTS
from gpuhealth.kube.objects import read
from gpuhealth.kube.selectors import matches
from gpuhealth.model.burnin_run import TestStatus
from gpuhealth.model.component import Kind
from gpuhealth.model.verdict import State
from gpuhealth.quarantine.marks import annotations_of, condition, labels, taints, unschedulable
from gpuhealth.runtime.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from gpuhealth.kube.client import Client

_T = TypeVar("_T")
_LAST_EVENTS = 10
_MARGIN = 12


class NodeDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as `node --json` prints it."""

    node: str
    condition: dict[str, Any]
    state: str
    taint: str
    cordoned: bool
    annotations: dict[str, str]  # of gpuhealth, without the group
    budgets: list[dict[str, Any]]  # status of those that select the node
    report: dict[str, Any]  # the status of its GPUHealthReport
    events: list[dict[str, Any]]  # the latest ones of gpuhealth


class _Quarantine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    state: str = QuarantineState.NONE
    code: str = ""
    since: str = ""  # a text that is no time is printed as it is
    reason: str = ""
    slots: tuple[str, ...] = ()


class _Drain(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    phase: str = ""
    deadline: str = "-"  # a text that is no time is printed as it is
    remaining: int = 0
    evicted: int = 0
    deleted: int = 0
    message: str = ""


class _BudgetStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    limit: int | None = None  # None until the controller has counted
    used: int = 0
    blocked: int = 0


async def read_node(client: Client, name: str) -> NodeDetails:
    """Read the node, its report, budgets and Events. Raises CommandError if gpuhealth has no data about it."""
    node = await cluster_access.get_node(client, name)
    try:
        report = (await client.get(REPORTS, name)).get("status") or {}
    except NotFoundError:
        if condition(node) is None:
            raise CommandError(
                f"nothing is known about the GPUs of node {name}: no agent has reported for it"
            ) from None
        report = {}
    budgets, events = [], []
    with contextlib.suppress(ForbiddenError):  # a user who may read the node need not be permitted to read these
        budgets = [
            status
            for budget in (await client.list(BUDGETS)).items
            if (status := _status_if_selecting(budget, labels(node))) is not None
        ]
        about = f"involvedObject.kind=Node,involvedObject.name={name}"
        events = [
            {key: event.get(key) for key in ("lastTimestamp", "type", "reason", "message", "count")}
            for event in (await client.list(EVENTS, "default", fields=about)).items
            if "gpuhealth" in (event.get("source") or {}).get("component", "")
        ]
    return NodeDetails(
        node=name,
        condition=condition(node) or {},
        state=labels(node).get(STATE_LABEL, ""),
        taint=next((taint.get("value", "") for taint in taints(node) if taint["key"] == TAINT), ""),
        cordoned=unschedulable(node),
        annotations={
            key.removeprefix(f"{GROUP}/"): value
            for key, value in annotations_of(node).items()
            if key.startswith(f"{GROUP}/")
        },
        budgets=budgets,
        report=report,
        events=sorted(events, key=lambda event: event["lastTimestamp"] or "")[-_LAST_EVENTS:],
    )


def _status_if_selecting(budget: Any, node_labels: dict[str, str]) -> dict[str, Any] | None:
    """The status of a budget that selects a node with these labels, also of one that cannot be read; else None."""

    def status(item: dict[str, Any]) -> dict[str, Any] | None:
        if not matches(item["spec"]["nodeSelector"], node_labels):
            return None
        return {"name": item["metadata"]["name"], **(item.get("status") or {})}

    try:
        return read(BUDGETS.kind, budget, status)
    except UnreadableError as error:
        return {"name": error.name, "unreadable": error.problem}


# --- printing ---------------------------------------------------------------------------------------------------------


def show(out: Console, details: NodeDetails) -> None:
    """Print all sections; one that cannot be read is named, and the others are printed."""
    report = details.report
    _section(out, "node", lambda: _header(out, details.node, report))
    _section(out, CONDITION, lambda: _condition(out, details.condition))
    _line(out, "state", ", ".join(_state(details)))
    if since := report.get("silentSince"):
        _line(out, "agent", f"silent since {since}: what follows is from before")
    if reason := _annotation(details, OUT_OF_SERVICE):
        _line(out, "manual", f"quarantine: {reason}")
    if override := _annotation(details, OVERRIDE):
        _line(out, "manual", f"override: {override}")
    if when := _annotation(details, RESTORED):
        _line(out, "manual", f"restored at {when}")
    _section(out, "quarantine", lambda: _line(out, "quarantine", _quarantine(_part(report, "quarantine", _Quarantine))))
    if report.get("drain"):
        _section(out, "drain", lambda: _line(out, "drain", _drain(_part(report, "drain", _Drain))))
    for budget in details.budgets:
        _section(out, "budget", partial(_show_budget, out, budget))
    _section(out, "GPUs", lambda: _gpus(out, report))
    _section(out, "findings", lambda: _findings(out, report.get("findings") or []))
    _section(out, "not checked", lambda: _not_checked(out, report.get("notChecked") or []))
    _section(out, "Events", lambda: _events(out, details.events))


def _annotation(details: NodeDetails, name: str) -> str:
    return details.annotations.get(name.removeprefix(f"{GROUP}/"), "")


def _part(report: dict[str, Any], name: str, kind: type[_T]) -> _T:
    """A section of the report; an empty one where there is none. Raises ValidationError."""
    return msgspec.convert(report.get(name) or {}, kind)


def _header(out: Console, node: str, report: dict[str, Any]) -> None:
    line = Text.assemble((printable(node), "bold"))
    driver = _part(report, "inventory", Inventory).driver or "-"
    out.print(line.append(printable(f"  driver {driver}  agent {report.get('agentVersion') or '-'}")))


def _condition(out: Console, condition: dict[str, Any]) -> None:
    style = STYLE[{"True": "healthy", "False": "unhealthy"}.get(condition.get("status", ""), "unknown")]
    values = [condition.get(key, "-") for key in ("status", "reason", "message")]
    text = "{}, {}: {}".format(*values) if condition else "none: no agent has reported"
    _line(out, CONDITION, Text(printable(text), style=style))


def _findings(out: Console, findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        out.print()
        _section(out, "finding", partial(_finding, out, finding))


def _section(out: Console, label: str, print_section: Callable[[], None]) -> None:
    """Print a section, or a line with the reason why it cannot be read."""
    try:
        print_section()
    except OSError:  # of the terminal
        raise
    except Exception as error:  # noqa: BLE001 - the report may contain anything
        _line(out, label, f"cannot be read: {type(error).__name__}: {error}")


def _line(out: Console, label: str, text: Any) -> None:
    print_labelled(out, label, text if not isinstance(text, str) else printable(text), margin=_MARGIN + 2)


def _state(details: NodeDetails) -> list[str]:
    parts = [details.state or "no label"]
    if details.taint:
        parts.append(f"tainted {details.taint}")
    if details.cordoned:
        parts.append("cordoned")
    if _annotation(details, RELEASE_GPUS) == "true":
        parts.append("driver released")
    return parts


def _quarantine(quarantine: _Quarantine) -> str:
    state, code, reason = quarantine.state, quarantine.code, quarantine.reason
    texts: dict[str, str] = {
        QuarantineState.BLOCKED: f"blocked, the node stays in service: {code}: {reason}",
        QuarantineState.QUARANTINED: "quarantined by hand" if code == MANUAL else f"quarantined for {code}",
        QuarantineState.DISMISSED: f"dismissed by hand for {code}: {reason}",
        QuarantineState.WOULD_QUARANTINE: f"would be quarantined for {code}: {reason}",
    }
    text = texts.get(state, state)  # none, and a state of another version, are printed as they are
    if quarantine.since:
        text += f", since {quarantine.since} ({_ago(quarantine.since)} ago)"
    if quarantine.slots:
        text += f", slots {', '.join(quarantine.slots)}"
    return text


def _drain(drain: _Drain) -> str:
    text = f"{drain.phase}: {counted(drain.remaining, 'pod')} left, {drain.evicted} evicted, {drain.deleted} deleted"
    if drain.phase == DrainPhase.DRAINING:
        text += f"; the rest is deleted at {drain.deadline}"
    return text + (f"; {drain.message}" if drain.message else "")


def _show_budget(out: Console, budget: dict[str, Any]) -> None:
    _line(out, "budget", _budget(budget))


def _budget(budget: dict[str, Any]) -> str:
    if "unreadable" in budget:
        return f"{budget['name']}: cannot be read: {budget['unreadable']}"
    status = msgspec.convert(budget, _BudgetStatus)
    if status.limit is None:
        return f"{budget['name']}: not counted yet"
    blocked = f", {status.blocked} blocked" if status.blocked else ""
    return f"{budget['name']}: {status.used} of {status.limit} slots taken{blocked}"


def _gpus(out: Console, report: dict[str, Any]) -> None:
    gpus = _part(report, "inventory", Inventory).gpus
    if not gpus:
        return
    burnins = msgspec.convert((report.get("burnin") or {}).get("gpus") or {}, dict[str, GpuBurnin])
    headings = ("GPU", "model", "PCI", "uuid", "serial", "state", "last burn-in")
    rows = [[Text(heading, style="dim") for heading in headings]]
    for gpu in gpus:
        index = "-" if gpu.index is None else str(gpu.index)
        cells = [index, gpu.model.removeprefix("NVIDIA "), gpu.pci, short_name(gpu.uuid), gpu.serial]
        row = [Text(printable(cell or "-")) for cell in cells]
        state = State.UNKNOWN if report.get("silentSince") else gpu.verdict
        verdict = Text(state, style=STYLE[state])
        rows.append([*row, verdict, Text(printable(_burnin(burnins.get(gpu.uuid))))])
    out.print()
    for line in align_columns(rows, right=(0,)):
        out.print(line)


def _burnin(run: GpuBurnin | None) -> str:
    if run is None:
        return "-"
    failed = [name for name, test in run.tests.items() if test.status == TestStatus.FAILED]
    ended = f" {_ago(run.ended_at)} ago" if run.ended_at else ""
    return f"{run.level} {run.status}{ended}" + (f": {', '.join(failed)}" if failed else "")


def _finding(out: Console, raw: Any) -> None:
    finding = msgspec.convert(raw, Finding)
    evidence = finding.evidence
    heading = Text.assemble((finding.severity.upper(), STYLE[finding.severity]))
    out.print(heading.append(f"  {printable(finding.code)}", style="bold"))
    where = "" if finding.component.kind == Kind.NODE else f"  [{short_name(finding.component.id)}]"
    threshold = f" (threshold {evidence.threshold})" if evidence.threshold else ""
    print_labelled(out, "what", printable(finding.message) + printable(where))
    if evidence.reading:
        print_labelled(out, "read", printable(f"{evidence.reading}{threshold}"))
    if evidence.line:
        print_labelled(out, "line", printable(evidence.line))
    print_labelled(out, "source", printable(evidence.source or "-"))
    first, last = finding.first_seen, finding.last_seen
    print_labelled(out, "seen", printable(f"first {first} ({_ago(first)} ago), last {last}"))
    print_labelled(out, "action", printable(f"{finding.action}: {ACTIONS.get(finding.action, '')}"))
    print_labelled(out, "clears", f"when {printable(finding.clears_when)}")


def _not_checked(out: Console, raw: list[Any]) -> None:
    if raw:
        out.print()
        out.print(Text(f"{counted(len(raw), 'check')} could not run:"))
        for entry in msgspec.convert(raw, tuple[NotChecked, ...]):
            print_labelled(out, "-", printable(f"{entry.check}: {entry.reason}"), margin=4)


def _events(out: Console, events: list[dict[str, Any]]) -> None:
    if events:
        out.print()
        out.print(Text("Last Events:"))
        for event in events:
            times = f" ({event['count']} times)" if (event["count"] or 1) > 1 else ""
            print_labelled(
                out, "-", printable(f"{event['lastTimestamp']} {event['reason']}: {event['message']}{times}"), 4
            )


def _ago(time: str) -> str:
    try:
        return age(datetime.now(UTC) - datetime.fromisoformat(time))
    except (TypeError, ValueError, OverflowError):  # edited by hand, or absent
        return "-"
