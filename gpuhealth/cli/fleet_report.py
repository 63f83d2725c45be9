"""The rows of `gpuhealth fleet`: asked of one cluster, counted, and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from gpuhealth.api.names import PREFLIGHT_TAINT, STATE_LABEL, NodeState
from gpuhealth.api.report import DrainPhase, Inventory, QuarantineState
from gpuhealth.cli.output import CommandError, columns, labelled, printable
from gpuhealth.cli.wording import STYLE, age, counted
from gpuhealth.kube.errors import NotFoundError, UnreadableError
from gpuhealth.kube.kinds import NODES, REPORTS
from gpuhealth.kube.objects import labels_of, read, text_of, time_of
from gpuhealth.model.finding import Severity
from gpuhealth.quarantine.marks import condition, has_taint, labels, taints

if TYPE_CHECKING:
    from rich.console import Console

    from gpuhealth.kube.client import Client


class Row(msgspec.Struct, frozen=True):
    """One node of the fleet, as its Node and its report say."""

    node: str
    pool: str
    state: str  # our label
    condition: str  # GPUHealthy: True, False, Unknown
    reason: str  # of the condition
    worst: str  # code of the worst finding
    quarantine: str  # none, quarantined, blocked, awaiting_test, dismissed, would_quarantine
    budget: str  # that holds it
    drain: str  # phase
    remaining: int  # pods that should go
    since: datetime | None  # when the quarantine began, or the condition changed
    gpus: tuple[tuple[str, str], ...]  # verdict and model of each
    unreadable: str = ""  # which of its objects cannot be read, and why

    @property
    def is_well(self) -> bool:
        """Whether there is nothing to say of it."""
        return (
            not self.unreadable
            and self.condition == "True"
            and not self.worst
            and self.quarantine == QuarantineState.NONE
            and self.state == NodeState.HEALTHY
        )


class Cluster(msgspec.Struct, frozen=True):
    """What is told of one cluster."""

    context: str
    nodes: int
    gpus: int
    states: dict[str, int]
    pools: dict[str, dict[str, int]]
    models: dict[str, dict[str, int]]
    not_well: list[Row]


# --- asking -----------------------------------------------------------------------------------------------------------


class _Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    severity: str


class _Quarantine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    state: str = QuarantineState.NONE
    budget: str = ""
    since: str = ""  # as text, so that the error for one that is no time shows it


class _Drain(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    phase: str = ""
    remaining: int = 0


class _Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a report's status that a row needs: what is odd in another one costs nothing here."""

    worst: str = ""
    findings: tuple[_Finding, ...] = ()
    inventory: Inventory = Inventory()
    quarantine: _Quarantine = _Quarantine()
    drain: _Drain = _Drain()


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a row needs of a report; of a big fleet only this much is kept."""

    worst: str = ""  # only if it is more than information
    quarantine: str = QuarantineState.NONE
    budget: str = ""
    since: datetime | None = None
    drain: _Drain = _Drain()
    gpus: tuple[tuple[str, str], ...] = ()
    unreadable: str = ""  # why it cannot be read


async def rows_of(client: Client, pool_labels: Iterable[str]) -> list[Row]:
    """The GPU nodes, page by page: those with a report or a mark of ours. Raises CommandError, ApiError."""
    reports: dict[str, _Report] = {}
    try:
        async for page in client.pages(REPORTS):
            reports |= dict(_named(item) for item in page.items)
    except NotFoundError:
        raise CommandError("gpuhealth is not installed in this cluster: it knows no GPUHealthReports") from None
    rows: list[Row | None] = []
    async for page in client.pages(NODES):
        rows += [_readable_row(node, reports, pool_labels) for node in page.items]
    return sorted((row for row in rows if row is not None), key=lambda row: row.node)


def _named(report: Any) -> tuple[str, _Report]:
    """A report's name, and what a row needs of it."""
    try:
        return read(REPORTS.kind, report, lambda item: (text_of(item["metadata"]["name"]), _slim(item)))
    except UnreadableError as error:
        return error.name, _Report(unreadable=str(error))


def _slim(report: dict[str, Any]) -> _Report:
    status = msgspec.convert(report.get("status") or {}, _Status)
    quarantine = status.quarantine
    return _Report(
        worst=status.worst if any(finding.severity != Severity.INFO for finding in status.findings) else "",
        quarantine=quarantine.state,
        budget=quarantine.budget,
        since=time_of(quarantine.since) if quarantine.since else None,
        drain=status.drain if status.drain.phase in {DrainPhase.DRAINING, DrainPhase.DRAINED} else _Drain(),
        gpus=tuple((gpu.verdict, gpu.model) for gpu in status.inventory.gpus),
    )


def _readable_row(node: Any, reports: dict[str, _Report], pool_labels: Iterable[str]) -> Row | None:
    """The row of a node; of a Node that cannot be read only its name and pool."""
    try:
        return read(NODES.kind, node, lambda node: _row(node, reports.get(node["metadata"]["name"]), pool_labels))
    except UnreadableError as error:
        empty = {"metadata": {"name": error.name, "labels": labels_of(node) or {}}}
        return _row(empty, _Report(unreadable=str(error)), pool_labels)


def _row(node: dict[str, Any], report: _Report | None, pool_labels: Iterable[str]) -> Row | None:
    known, said = labels(node), condition(node) or {}
    preflight = any(taint["key"] == PREFLIGHT_TAINT for taint in taints(node))
    if report is None and not (said or STATE_LABEL in known or has_taint(node) or preflight):
        return None
    report = report or _Report()
    changed = said.get("lastTransitionTime")
    row = Row(
        node=node["metadata"]["name"],
        pool=next((known[key] for key in pool_labels if key in known), ""),
        state=known.get(STATE_LABEL) or "unknown",
        condition=said.get("status", "Unknown"),
        reason=said.get("reason", ""),
        worst=report.worst,
        quarantine=report.quarantine,
        budget=report.budget,
        drain=report.drain.phase,
        remaining=report.drain.remaining,
        since=report.since or (time_of(changed) if changed else None),
        gpus=report.gpus,
        unreadable=report.unreadable,
    )
    return msgspec.convert(msgspec.to_builtins(row), Row)  # an error where something of the Node is of another type


def counted_rows(context: str, rows: list[Row]) -> Cluster:
    """What the rows are together."""
    pools: dict[str, Counter[str]] = {}
    models: dict[str, Counter[str]] = {}
    for row in rows:
        pools.setdefault(row.pool, Counter()).update(nodes=1, not_well=not row.is_well)
        for verdict, model in row.gpus:
            # What an agent said that is silent now may have been true then.
            models.setdefault(model, Counter())[verdict if row.condition != "Unknown" else "unknown"] += 1
    return Cluster(
        context,
        len(rows),
        sum(len(row.gpus) for row in rows),
        dict(Counter(row.state for row in rows)),
        {name: dict(counts) for name, counts in sorted(pools.items())},
        {name: dict(counts) for name, counts in sorted(models.items())},
        [row for row in rows if not row.is_well],
    )


# --- showing ----------------------------------------------------------------------------------------------------------


def show(out: Console, cluster: Cluster) -> None:
    """Prints the counts, and each node that is not well."""
    head = Text.assemble((f"{printable(cluster.context)}  " if cluster.context else "", "bold"))
    out.print(head.append(f"{counted(cluster.nodes, 'GPU node')}, {counted(cluster.gpus, 'GPU')}"))
    if cluster.states:
        labelled(out, "state", _listed(cluster.states))
    for label, counts in (("pool", cluster.pools), ("model", cluster.models)):
        for number, (name, values) in enumerate(counts.items()):
            told = f"{values['nodes']:,} nodes, {values['not_well']:,} not well" if label == "pool" else _listed(values)
            labelled(out, "" if number else label, f"{printable(name) or '(none)'}: {told}")
    if not cluster.not_well:
        return
    out.print()
    now = datetime.now(UTC)
    rows = [[Text(heading, style="dim") for heading in ("node", "pool", "state", "worst", "since", "out", "drain")]]
    for row in cluster.not_well:
        cells = (row.node, row.pool or "-", row.state, _worst(row), _since(row, now))
        drain = f"{row.drain}, {row.remaining} left" if row.remaining else row.drain or "-"
        style = (
            STYLE["unknown"] if row.condition == "Unknown" else STYLE["critical"] if row.condition == "False" else ""
        )
        style = style or STYLE["warning"]
        rows.append([Text(printable(cell), style=style) for cell in (*cells, _out(row), drain)])
    for line in columns(rows):
        out.print(line)


def _listed(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {printable(name)}" for name, count in ordered)


def _worst(row: Row) -> str:
    return "cannot be read" if row.unreadable else row.worst or row.reason or "-"


def _since(row: Row, now: datetime) -> str:
    return age(now - row.since) if row.since else "-"


def _out(row: Row) -> str:
    match row.quarantine:
        case QuarantineState.NONE:
            return "-"
        case QuarantineState.BLOCKED:
            return f"blocked by {row.budget}" if row.budget else "blocked: no budget"
        case QuarantineState.DISMISSED:
            return "dismissed"
        case QuarantineState.WOULD_QUARANTINE:
            return "would be"
    return "out"
