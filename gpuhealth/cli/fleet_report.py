"""The rows of `gpuhealth fleet`: read from one cluster, counted, and printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from gpuhealth.api.names import PREFLIGHT_TAINT, STATE_LABEL, ConditionReason, NodeState
from gpuhealth.api.report import DrainPhase, Inventory, QuarantineState
from gpuhealth.cli.output import CommandError, align_columns, print_labelled
from gpuhealth.cli.wording import STYLE, age, counted
from gpuhealth.fleet.gpu_nodes import Unwatched, has_gpus
from gpuhealth.kube.errors import NotFoundError, UnreadableError
from gpuhealth.kube.kinds import NODES, REPORTS
from gpuhealth.kube.objects import labels_of, parse_time, read, text_of
from gpuhealth.model.finding import Severity
from gpuhealth.model.verdict import State
from gpuhealth.quarantine.marks import condition, has_taint, labels, taints
from gpuhealth.quarantine.slots.holder import NO_BUDGET
from gpuhealth.quarantine.state import IN_SERVICE
from gpuhealth.runtime.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from gpuhealth.kube.client import Client


_UNWATCHED: dict[str, str] = {
    Unwatched.NO_AGENT: "no agent",
    Unwatched.AGENT_SILENT: ConditionReason.AGENT_SILENT,
    Unwatched.NO_REPORT: "no report",
}


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the fleet, from its Node and its GPUHealthReport."""

    node: str
    pool: str
    state: str  # our label
    condition: str  # GPUHealthy: True, False, Unknown
    reason: str  # of the condition
    worst: str  # code of the worst finding
    quarantine: str  # none, quarantined, blocked, awaiting_test, dismissed, would_quarantine
    budget: str  # that blocks it, or whose slot it holds
    limit: str  # that has been reached, or what else blocks it
    drain: str  # phase
    remaining: int  # pods still to be drained
    since: datetime | None  # when the quarantine began, or the condition changed
    gpus: tuple[tuple[str, str], ...]  # verdict and model of each
    unwatched: str = ""  # why no agent watches it: no_agent, agent_silent, no_report; else empty
    unreadable: str = ""  # which of its objects cannot be read, and why; else empty

    @property
    def needs_attention(self) -> bool:
        """Whether it is anything but healthy and in service."""
        return (
            bool(self.unreadable or self.unwatched)
            or self.condition != "True"
            or bool(self.worst)
            or self.quarantine != QuarantineState.NONE
            or self.state != NodeState.HEALTHY
        )


class ClusterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One cluster, as `fleet --json` prints it."""

    context: str
    nodes: int
    gpus: int
    unwatched: int  # nodes without a working agent
    states: dict[str, int]
    pools: dict[str, dict[str, int]]
    models: dict[str, dict[str, int]]
    needs_attention: list[NodeRow]


# --- reading ----------------------------------------------------------------------------------------------------------


class _Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    severity: str


class _Quarantine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    state: str = QuarantineState.NONE
    budget: str = ""
    limit: str = ""
    since: str = ""  # as text: the error for one that is no time quotes it


class _Drain(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    phase: str = ""
    remaining: int = 0


class _Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a report's status that a row needs: an odd value in another one costs nothing here."""

    worst: str = ""
    findings: tuple[_Finding, ...] = ()
    inventory: Inventory = Inventory()
    quarantine: _Quarantine = _Quarantine()
    drain: _Drain = _Drain()


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a report that a row needs; of a large fleet only these are kept."""

    worst: str = ""  # empty where all findings are information
    quarantine: str = QuarantineState.NONE
    budget: str = ""
    limit: str = ""
    since: datetime | None = None
    drain: _Drain = _Drain()
    gpus: tuple[tuple[str, str], ...] = ()
    owner: str = ""  # uid of the Node that it is about
    unreadable: str = ""  # why it cannot be read


async def read_rows(client: Client, pool_labels: Iterable[str]) -> list[NodeRow]:
    """The GPU nodes: those that show GPUs, or have a report or a mark of gpuhealth. Raises CommandError.

    Read page by page, so that a large fleet takes little memory.
    """
    reports: dict[str, _Report] = {}
    try:
        async for page in client.pages(REPORTS):
            reports |= dict(_named(item) for item in page.items)
    except NotFoundError:
        raise CommandError("gpuhealth is not installed in this cluster: it has no GPUHealthReports") from None
    rows: list[NodeRow | None] = []
    async for page in client.pages(NODES):
        rows += [_readable_row(node, reports, pool_labels) for node in page.items]
    return sorted((row for row in rows if row is not None), key=lambda row: row.node)


def _named(report: Any) -> tuple[str, _Report]:
    """A report's name, and the parts of it that a row needs."""
    try:
        return read(REPORTS.kind, report, lambda item: (text_of(item["metadata"]["name"]), _report(item)))
    except UnreadableError as error:
        return error.name, _Report(unreadable=str(error))


def _report(item: dict[str, Any]) -> _Report:
    status = msgspec.convert(item.get("status") or {}, _Status)
    quarantine = status.quarantine
    return _Report(
        worst=status.worst if any(finding.severity != Severity.INFO for finding in status.findings) else "",
        quarantine=quarantine.state,
        budget=quarantine.budget,
        limit=quarantine.limit,
        since=parse_time(quarantine.since) if quarantine.since else None,
        drain=status.drain if status.drain.phase in {DrainPhase.DRAINING, DrainPhase.DRAINED} else _Drain(),
        gpus=tuple((gpu.verdict, gpu.model) for gpu in status.inventory.gpus),
        owner=next((text_of(owner["uid"]) for owner in item["metadata"].get("ownerReferences") or []), ""),
    )


def _readable_row(node: Any, reports: dict[str, _Report], pool_labels: Iterable[str]) -> NodeRow | None:
    """The row of a node; of a Node that cannot be read only its name and pool."""
    try:
        return read(NODES.kind, node, lambda node: _row(node, reports.get(node["metadata"]["name"]), pool_labels))
    except UnreadableError as error:
        empty = {"metadata": {"name": error.name, "uid": "", "labels": labels_of(node) or {}}}
        return _row(empty, _Report(unreadable=str(error)), pool_labels)


def _row(node: dict[str, Any], report: _Report | None, pool_labels: Iterable[str]) -> NodeRow | None:
    """The row of a node; None where it is no GPU node. Raises an error of any kind for surprising values."""
    known, healthy = labels(node), condition(node) or {}
    preflight = any(taint["key"] == PREFLIGHT_TAINT for taint in taints(node))
    marked = healthy or STATE_LABEL in known or has_taint(node) or preflight
    if report is None and not (marked or has_gpus(node)):
        return None
    unwatched, state = _unwatched(node, report), known.get(STATE_LABEL) or NodeState.UNKNOWN
    report = report or _Report()
    changed = healthy.get("lastTransitionTime")
    row = NodeRow(
        node=node["metadata"]["name"],
        pool=next((known[key] for key in pool_labels if key in known), ""),
        state=NodeState.UNKNOWN if unwatched and state in IN_SERVICE else state,
        condition=healthy.get("status", "Unknown"),
        reason=healthy.get("reason", ""),
        worst=report.worst,
        quarantine=report.quarantine,
        budget=report.budget,
        limit=report.limit,
        drain=report.drain.phase,
        remaining=report.drain.remaining,
        since=report.since or (parse_time(changed) if changed else None),
        gpus=report.gpus,
        unwatched=unwatched,
        unreadable=report.unreadable,
    )
    return msgspec.convert(msgspec.to_builtins(row), NodeRow)  # raises where a value has another type


def _unwatched(node: dict[str, Any], report: _Report | None) -> str:
    """Why no agent watches the node, as far as Node and report show; empty where one does."""
    reason = (condition(node) or {}).get("reason")
    if report is None:
        return Unwatched.NO_REPORT if reason and reason != ConditionReason.AGENT_SILENT else Unwatched.NO_AGENT
    if reason == ConditionReason.AGENT_SILENT:
        return Unwatched.AGENT_SILENT
    uid = node["metadata"]["uid"]
    return Unwatched.NO_REPORT if report.owner and uid and report.owner != uid else ""


def summarize(context: str, rows: list[NodeRow]) -> ClusterSummary:
    """Counts over all rows, and the rows that need attention."""
    pools: dict[str, Counter[str]] = {}
    models: dict[str, Counter[str]] = {}
    for row in rows:
        pools.setdefault(row.pool, Counter()).update(nodes=1, needs_attention=row.needs_attention)
        is_known = row.condition != "Unknown" and not row.unwatched  # else the verdicts are out of date
        for verdict, model in row.gpus:
            models.setdefault(model, Counter())[verdict if is_known else State.UNKNOWN.value] += 1
    return ClusterSummary(
        context=context,
        nodes=len(rows),
        gpus=sum(len(row.gpus) for row in rows),
        unwatched=sum(bool(row.unwatched) for row in rows),
        states=dict(Counter(row.state for row in rows)),
        pools={name: dict(counts) for name, counts in sorted(pools.items())},
        models={name: dict(counts) for name, counts in sorted(models.items())},
        needs_attention=[row for row in rows if row.needs_attention],
    )


# --- printing ---------------------------------------------------------------------------------------------------------


def show(out: Console, cluster: ClusterSummary) -> None:
    """Print the counts, and a table of the nodes that need attention."""
    heading = Text.assemble((f"{printable(cluster.context)}  " if cluster.context else "", "bold"))
    out.print(heading.append(f"{counted(cluster.nodes, 'GPU node')}, {counted(cluster.gpus, 'GPU')}"))
    if cluster.unwatched:
        text = f"{counted(cluster.unwatched, 'node')} without a working agent"
        print_labelled(out, "agents", Text(text, style=STYLE["unknown"]))
    if cluster.states:
        print_labelled(out, "state", _counts(cluster.states))
    for label, counts in (("pool", cluster.pools), ("model", cluster.models)):
        for number, (name, values) in enumerate(counts.items()):
            text = _pool(values) if label == "pool" else _counts(values)
            print_labelled(out, "" if number else label, f"{printable(name) or '(none)'}: {text}")
    if not cluster.needs_attention:
        return
    out.print()
    now = datetime.now(UTC)
    rows = [
        [Text(heading, style="dim") for heading in ("node", "pool", "state", "worst", "since", "quarantine", "drain")]
    ]
    for row in cluster.needs_attention:
        cells = (row.node, row.pool or "-", row.state, _worst(row), _since(row, now))
        drain = f"{row.drain}, {row.remaining} left" if row.remaining else row.drain or "-"
        style = STYLE[{"Unknown": "unknown", "False": "critical"}.get(row.condition, "warning")]
        rows.append([Text(printable(cell), style=style) for cell in (*cells, _quarantine(row), drain)])
    for line in align_columns(rows):
        out.print(line)


def _pool(counts: dict[str, int]) -> str:
    attention = counts["needs_attention"]
    return f"{counted(counts['nodes'], 'node')}, {attention:,} need{'s' if attention == 1 else ''} attention"


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {printable(name)}" for name, count in ordered)


def _worst(row: NodeRow) -> str:
    if row.unreadable:
        return "unreadable"
    return row.worst or _UNWATCHED.get(row.unwatched) or row.reason or "-"


def _since(row: NodeRow, now: datetime) -> str:
    return age(now - row.since) if row.since else "-"


def _quarantine(row: NodeRow) -> str:
    match row.quarantine:
        case QuarantineState.NONE:
            return "-"
        case QuarantineState.BLOCKED:
            no_budget = "blocked, no budget" if row.limit == NO_BUDGET else "blocked"
            return f"blocked by {row.budget}" if row.budget else no_budget
        case QuarantineState.WOULD_QUARANTINE:
            return "would quarantine"
    return row.quarantine.replace("_", " ")
