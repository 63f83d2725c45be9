"""The rows of `gpuhealth fleet`: read from one cluster, counted, and printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from gpuhealth.api.names import PREFLIGHT_TAINT, STATE_LABEL
from gpuhealth.cli.output import CommandError, align_columns, print_labelled, printable
from gpuhealth.cli.wording import STYLE, age, counted
from gpuhealth.kube.errors import NotFoundError, UnreadableError
from gpuhealth.kube.kinds import NODES, REPORTS
from gpuhealth.kube.objects import labels_of, parse_time, read, text_of
from gpuhealth.quarantine.marks import condition, has_taint, labels, taints

if TYPE_CHECKING:
    from rich.console import Console

    from gpuhealth.kube.client import Client


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
    drain: str  # phase
    remaining: int  # pods still to be drained
    since: datetime | None  # when the quarantine began, or the condition changed
    gpus: tuple[tuple[str, str], ...]  # verdict and model of each
    unreadable: str = ""  # which of its objects cannot be read, and why; else empty

    @property
    def needs_attention(self) -> bool:
        """Whether it is anything but healthy and in service."""
        return (
            bool(self.unreadable)
            or self.condition != "True"
            or bool(self.worst)
            or self.quarantine != "none"
            or self.state != "healthy"
        )


class ClusterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One cluster, as `fleet --json` prints it."""

    context: str
    nodes: int
    gpus: int
    states: dict[str, int]
    pools: dict[str, dict[str, int]]
    models: dict[str, dict[str, int]]
    needs_attention: list[NodeRow]


# --- reading ----------------------------------------------------------------------------------------------------------


async def read_rows(client: Client, pool_labels: Iterable[str]) -> list[NodeRow]:
    """The GPU nodes, which are those with a report or a mark of gpuhealth. Raises CommandError.

    Read page by page, so that a large fleet takes little memory.
    """
    reports: dict[str, dict[str, Any]] = {}
    try:
        async for page in client.pages(REPORTS):
            reports |= dict(_named(item) for item in page.items)
    except NotFoundError:
        raise CommandError("gpuhealth is not installed in this cluster: it has no GPUHealthReports") from None
    rows: list[NodeRow | None] = []
    async for page in client.pages(NODES):
        rows += [_readable_row(node, reports, pool_labels) for node in page.items]
    return sorted((row for row in rows if row is not None), key=lambda row: row.node)


def _named(report: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A report's name, and the parts of it that a row needs."""
    try:
        return read(
            REPORTS.kind, report, lambda item: (text_of(item["metadata"]["name"]), _slim(item.get("status") or {}))
        )
    except UnreadableError as error:
        return error.name, _slim({}) | {"unreadable": str(error)}


def _readable_row(node: Any, reports: dict[str, dict[str, Any]], pool_labels: Iterable[str]) -> NodeRow | None:
    """The row of a node. Where its report has values of wrong types, only the Node is used; where the Node has them,
    only its name and pool."""
    try:
        return read(NODES.kind, node, lambda node: _row(node, reports.get(node["metadata"]["name"]), pool_labels))
    except UnreadableError as error:
        unknown, known = _slim({}), labels_of(node) or {}
        with suppress(UnreadableError):  # if this works, the report is the problem
            problem = {"unreadable": f"{REPORTS.kind} {error.name} cannot be read: {error.problem}"}
            return read(NODES.kind, node, lambda node: _row(node, unknown | problem, pool_labels))
        empty = {"metadata": {"name": error.name, "labels": known}}
        return _row(empty, unknown | {"unreadable": str(error)}, pool_labels)


def _slim(status: dict[str, Any]) -> dict[str, Any]:
    """The parts of a report's status that a row needs."""
    gpus = status.get("inventory", {}).get("gpus") or []
    serious = any(finding["severity"] != "info" for finding in status.get("findings") or [])
    return {
        "worst": status.get("worst", "") if serious else "",
        "quarantine": status.get("quarantine") or {},
        "drain": status.get("drain") or {},
        "gpus": tuple((gpu.get("verdict", "unknown"), gpu.get("model", "")) for gpu in gpus),
    }


def _row(node: dict[str, Any], report: dict[str, Any] | None, pool_labels: Iterable[str]) -> NodeRow | None:
    """The row of a node; None where it is no GPU node. Raises UnreadableError or TypeError for surprising values."""
    known, healthy = labels(node), condition(node) or {}
    preflight = any(taint["key"] == PREFLIGHT_TAINT for taint in taints(node))
    if report is None and not (healthy or STATE_LABEL in known or has_taint(node) or preflight):
        return None
    report = report or _slim({})
    quarantine, drain = report["quarantine"], report["drain"]
    since = quarantine.get("since") or healthy.get("lastTransitionTime")
    under_way = drain.get("phase") in {"draining", "drained"}
    row = NodeRow(
        node=node["metadata"]["name"],
        pool=next((known[key] for key in pool_labels if key in known), ""),
        state=known.get(STATE_LABEL) or "unknown",
        condition=healthy.get("status", "Unknown"),
        reason=healthy.get("reason", ""),
        worst=report["worst"],
        quarantine=quarantine.get("state", "none"),
        budget=quarantine.get("budget", ""),
        drain=drain["phase"] if under_way else "",
        remaining=drain.get("remaining", 0) if under_way else 0,
        since=parse_time(since) if since else None,
        gpus=report["gpus"],
        unreadable=report.get("unreadable", ""),
    )
    return msgspec.convert(msgspec.to_builtins(row), NodeRow)  # raises where a value has another type


def summarize(context: str, rows: list[NodeRow]) -> ClusterSummary:
    """Counts over all rows, and the rows that need attention."""
    pools: dict[str, Counter[str]] = {}
    models: dict[str, Counter[str]] = {}
    for row in rows:
        pools.setdefault(row.pool, Counter()).update(nodes=1, needs_attention=row.needs_attention)
        for verdict, model in row.gpus:
            # The verdicts of an agent that no longer responds are out of date.
            models.setdefault(model, Counter())[verdict if row.condition != "Unknown" else "unknown"] += 1
    return ClusterSummary(
        context=context,
        nodes=len(rows),
        gpus=sum(len(row.gpus) for row in rows),
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
    return "unreadable" if row.unreadable else row.worst or row.reason or "-"


def _since(row: NodeRow, now: datetime) -> str:
    return age(now - row.since) if row.since else "-"


def _quarantine(row: NodeRow) -> str:
    match row.quarantine:
        case "none":
            return "-"
        case "blocked":
            return f"blocked by {row.budget}" if row.budget else "blocked, no budget"
        case "would_quarantine":
            return "would quarantine"
    return row.quarantine.replace("_", " ")
