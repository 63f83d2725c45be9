"""What `gpuhealth node` tells of a node: asked of its cluster, and shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from gpuhealth.cli import cluster_access as reaching
from gpuhealth.cli.output import CommandError, columns, labelled, printable, short
from gpuhealth.cli.wording import DO, STYLE, age, counted
from gpuhealth.kube.errors import ForbiddenError, NotFoundError, UnreadableError
from gpuhealth.kube.kinds import BUDGETS, EVENTS, GROUP, REPORTS, STATE_LABEL, TAINT
from gpuhealth.kube.objects import read
from gpuhealth.kube.selectors import matches
from gpuhealth.quarantine.marks import annotations_of, condition, labels, taints, unschedulable

if TYPE_CHECKING:
    from rich.console import Console

    from gpuhealth.kube.client import Client

_LAST_EVENTS = 10
_MARGIN = 12


class Known(msgspec.Struct, frozen=True):
    """What is told of a node."""

    node: str
    condition: dict[str, Any]
    state: str
    taint: str
    cordoned: bool
    annotations: dict[str, str]  # ours, without the group
    budgets: list[dict[str, Any]]  # that select the node, with their status
    report: dict[str, Any]  # status of the GPUHealthReport
    events: list[dict[str, Any]]  # the last ones


async def ask(client: Client, name: str) -> Known:
    """Raises CommandError where nothing is known."""
    node = await reaching.found(client, name)
    try:
        report = (await client.get(REPORTS, name)).get("status") or {}
    except NotFoundError:
        if condition(node) is None:
            raise CommandError(f"nothing is known of the GPUs of node {name}: no agent has spoken of it") from None
        report = {}
    budgets, events = [], []
    with contextlib.suppress(ForbiddenError):  # who may see the node may not have to see these
        budgets = [
            found
            for each in (await client.list(BUDGETS)).items
            if (found := _selecting(each, labels(node))) is not None
        ]
        about = f"involvedObject.kind=Node,involvedObject.name={name}"
        events = [
            {key: each.get(key) for key in ("lastTimestamp", "type", "reason", "message", "count")}
            for each in (await client.list(EVENTS, "default", fields=about)).items
            if "gpuhealth" in (each.get("source") or {}).get("component", "")
        ]
    return Known(
        name,
        condition(node) or {},
        labels(node).get(STATE_LABEL, ""),
        next((taint.get("value", "") for taint in taints(node) if taint["key"] == TAINT), ""),
        unschedulable(node),
        {
            key.removeprefix(f"{GROUP}/"): value
            for key, value in annotations_of(node).items()
            if key.startswith(f"{GROUP}/")
        },
        budgets,
        report,
        sorted(events, key=lambda event: event["lastTimestamp"] or "")[-_LAST_EVENTS:],
    )


def _selecting(budget: Any, known: dict[str, str]) -> dict[str, Any] | None:
    """The status of a budget that selects a node with these labels, or may: what cannot be read is shown as such."""

    def status(item: dict[str, Any]) -> dict[str, Any] | None:
        said = {"name": item["metadata"]["name"], **(item.get("status") or {})}
        return said if matches(item["spec"]["nodeSelector"], known) else None

    try:
        return read(BUDGETS.kind, budget, status)
    except UnreadableError as error:
        return {"name": error.name, "unreadable": error.problem}


# --- showing ----------------------------------------------------------------------------------------------------------


def show(out: Console, known: Known) -> None:
    """Prints it all."""
    report = known.report
    _part(out, "node", lambda: _head(out, known.node, report))
    _part(out, "GPUHealthy", lambda: _condition(out, known.condition))
    _line(out, "state", ", ".join(_state(known)))
    if wish := known.annotations.get("out-of-service"):
        _line(out, "by a person", f"out of service: {wish}")
    if override := known.annotations.get("override"):
        _line(out, "by a person", f"override: {override}")
    if when := known.annotations.get("restored"):
        _line(out, "by a person", f"declared well at {when}")
    _part(out, "quarantine", lambda: _line(out, "quarantine", _quarantine(report.get("quarantine") or {})))
    if drain := report.get("drain"):
        _part(out, "drain", lambda: _line(out, "drain", _drain(drain)))
    for budget in known.budgets:
        _part(out, "budget", partial(_show_budget, out, budget))
    _part(out, "GPUs", lambda: _gpus(out, report))
    _part(out, "findings", lambda: _findings(out, report.get("findings") or []))
    _part(out, "not made", lambda: _unchecked(out, report.get("notChecked") or []))
    _part(out, "Events", lambda: _events(out, known.events))


def _head(out: Console, node: str, report: dict[str, Any]) -> None:
    head = Text.assemble((printable(node), "bold"))
    driver = (report.get("inventory") or {}).get("driver") or "-"
    out.print(head.append(f"  driver {printable(driver)}  agent {report.get('agentVersion') or '-'}"))


def _condition(out: Console, said: dict[str, Any]) -> None:
    style = STYLE[{"True": "healthy", "False": "unhealthy"}.get(said.get("status", ""), "unknown")]
    words = [said.get(key, "-") for key in ("status", "reason", "message")]
    word = "{}, {}: {}".format(*words) if said else "none: no agent has spoken"
    _line(out, "GPUHealthy", Text(printable(word), style=style))


def _findings(out: Console, findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        out.print()
        _part(out, "finding", partial(_finding, out, finding))


def _part(out: Console, label: str, show_it: Callable[[], None]) -> None:
    """Prints a part of it, or that it cannot be read: the others are shown all the same."""
    try:
        show_it()
    except OSError:  # the terminal's
        raise
    except Exception as error:  # noqa: BLE001 - there is no end to what somebody may have written into the report
        _line(out, label, f"cannot be read: {type(error).__name__}: {error}")


def _line(out: Console, label: str, text: Any) -> None:
    labelled(out, label, text if not isinstance(text, str) else printable(text), margin=_MARGIN + 2)


def _state(known: Known) -> list[str]:
    parts = [known.state or "no label"]
    if known.taint:
        parts.append(f"tainted {known.taint}")
    if known.cordoned:
        parts.append("cordoned")
    if known.annotations.get("release-gpus") == "true":
        parts.append("the driver is let go")
    return parts


def _quarantine(quarantine: dict[str, Any]) -> str:
    state, code = quarantine.get("state", "none"), quarantine.get("code", "")
    text: str = {
        "none": "none",
        "blocked": f"blocked, stays in service: {code}: {quarantine.get('reason', '')}",
        "quarantined": f"out of service for {code}",
        "dismissed": f"dismissed by a person for {code}: {quarantine.get('reason', '')}",
        "would_quarantine": f"would be out of service for {code}: {quarantine.get('reason', '')}",
    }.get(state, state)
    if since := quarantine.get("since"):
        text += f" since {since} ({_ago(since)})"
    if slots := quarantine.get("slots"):
        text += f", slots {', '.join(slots)}"
    return text


def _drain(drain: dict[str, Any]) -> str:
    text = f"{drain.get('phase', '')}: {drain.get('remaining', 0)} left, "
    text += f"{drain.get('evicted', 0)} evicted, {drain.get('deleted', 0)} deleted"
    if drain.get("phase") == "draining":
        text += f"; what is left is deleted at {drain.get('deadline')}"
    return text + (f"; {drain['message']}" if drain.get("message") else "")


def _show_budget(out: Console, budget: dict[str, Any]) -> None:
    _line(out, "budget", _budget(budget))


def _budget(budget: dict[str, Any]) -> str:
    if "unreadable" in budget:
        return f"{budget['name']}: cannot be read: {budget['unreadable']}"
    if "limit" not in budget:
        return f"{budget['name']}: not counted yet"
    blocked = f", {budget['blocked']} blocked" if budget.get("blocked") else ""
    return f"{budget['name']}: {budget['used']} of {budget['limit']} slots taken{blocked}"


def _gpus(out: Console, report: dict[str, Any]) -> None:
    gpus = (report.get("inventory") or {}).get("gpus") or []
    if not gpus:
        return
    tested = (report.get("burnin") or {}).get("gpus") or {}
    headings = ("GPU", "model", "PCI", "uuid", "serial", "state", "last burn-in")
    rows = [[Text(heading, style="dim") for heading in headings]]
    for gpu in gpus:
        verdict = gpu.get("verdict", "unknown")
        index = str(gpu["index"]) if "index" in gpu else "-"
        cells = [index, gpu.get("model", "").removeprefix("NVIDIA "), gpu.get("pci"), short(gpu["uuid"])]
        row = [Text(printable(cell or "-")) for cell in (*cells, gpu.get("serial"))]
        rows.append([*row, Text(verdict, style=STYLE[verdict]), Text(printable(_burnin(tested.get(gpu["uuid"]))))])
    out.print()
    for line in columns(rows, right=(0,)):
        out.print(line)


def _burnin(run: dict[str, Any] | None) -> str:
    if not run:
        return "-"
    failed = [name for name, test in (run.get("tests") or {}).items() if test.get("status") == "failed"]
    ended = f" {_ago(run['endedAt'])} ago" if run.get("endedAt") else ""
    return f"{run.get('level', '')} {run.get('status', '')}{ended}" + (f": {', '.join(failed)}" if failed else "")


def _finding(out: Console, finding: dict[str, Any]) -> None:
    head = Text.assemble((finding["severity"].upper(), STYLE[finding["severity"]]))
    out.print(head.append(f"  {printable(finding['code'])}", style="bold"))
    evidence = finding.get("evidence") or {}
    where = "" if finding["component"] == "node" else f"  [{short(finding['component'])}]"
    threshold = f" (threshold {evidence['threshold']})" if evidence.get("threshold") else ""
    labelled(out, "what", printable(finding["message"]) + where)
    if evidence.get("reading"):
        labelled(out, "read", printable(f"{evidence['reading']}{threshold}"))
    if evidence.get("line"):
        labelled(out, "line", printable(evidence["line"]))
    labelled(out, "source", printable(evidence.get("source", "-")))
    first, last = finding.get("firstSeen", ""), finding.get("lastSeen", "")
    labelled(out, "seen", f"first {first} ({_ago(first)} ago), last {last}")
    labelled(out, "action", f"{finding['action']}: {DO.get(finding['action'], '')}")
    labelled(out, "clears", f"when {printable(finding.get('clearsWhen', ''))}")


def _unchecked(out: Console, unchecked: list[dict[str, Any]]) -> None:
    if unchecked:
        out.print()
        out.print(Text(f"{counted(len(unchecked), 'check')} not made:"))
        for each in unchecked:
            labelled(out, "-", printable(f"{each.get('check')}: {each.get('reason')}"), margin=4)


def _events(out: Console, events: list[dict[str, Any]]) -> None:
    if events:
        out.print()
        out.print(Text("Last Events:"))
        for event in events:
            times = f" ({event['count']} times)" if (event["count"] or 1) > 1 else ""
            labelled(out, "-", printable(f"{event['lastTimestamp']} {event['reason']}: {event['message']}{times}"), 4)


def _ago(time: str) -> str:
    try:
        return age(datetime.now(UTC) - datetime.fromisoformat(time))
    except (TypeError, ValueError, OverflowError):  # by hand, or none
        return "-"
