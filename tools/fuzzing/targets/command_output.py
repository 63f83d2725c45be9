"""What commands print for people: no control character of Nodes, reports, Events or lines gets through."""

from __future__ import annotations

import io
import random
from typing import Any

import msgspec
from rich.console import Console
from testing.odd_objects import SAMPLES
from testing.readings import START, gpu, node

from fuzzing import log_lines, mutate
from fuzzing.console import plain_output
from fuzzing.target import documents, require_printable, require_sentence
from gpuhealth.cli import check_report, explain, fleet_report, node_report
from gpuhealth.cli.output import CommandError, console
from gpuhealth.cli.single_run import CodeFilter, judge
from gpuhealth.kube.kinds import NODES, REPORTS
from gpuhealth.kube.objects import read
from gpuhealth.model.kernel_event import KernelLogStatus, KernelRecord
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.settings import Settings

_MOST = 1 << 20
_FINDING = {
    "code": "xid.79",
    "severity": "critical",
    "component": {"kind": "gpu", "id": "GPU-1"},
    "message": "fell off the bus",
    "action": "reboot_node",
    "evidence": {"source": "kernel log", "line": "NVRM: x"},
    "firstSeen": "2026-03-01T12:00:00Z",
    "lastSeen": "2026-03-01T12:00:00Z",
    "clearsWhen": "the node has rebooted",
}
_EVENT = {
    "reason": "Quarantined",
    "message": "x",
    "lastTimestamp": "2026-03-01T12:00:00Z",
    "type": "Warning",
    "count": 3,
}
_BUDGET = {"limit": 2, "size": 40, "used": 1, "name": "a", "blockedNodes": 3}


class Case(msgspec.Struct):
    """A Node, its report, the details of its budgets and Events, lines of its log, and texts of one of its GPUs."""

    node: dict[str, Any]
    report: dict[str, Any]
    details: dict[str, Any]
    lines: list[bytes]
    texts: dict[str, str]  # of a GPU: name, serial, uuid


class Target:
    """A case is a node of a cluster, the lines of its log, and the names of one GPU."""

    def make(self, chance: random.Random) -> bytes:
        """Objects with changed values, and odd lines and names."""
        shown = mutate.copied(SAMPLES[NODES])
        report = mutate.copied(SAMPLES[REPORTS])
        report["status"] |= {"findings": [mutate.copied(_FINDING)], "notChecked": [{"check": "ecc", "reason": "error"}]}
        details = {"budgets": [mutate.copied(_BUDGET)], "events": [mutate.copied(_EVENT)]}
        for item in (shown, report, details):
            if chance.random() < 0.8:
                mutate.mutate_value(item, chance, 3)
        lines = [log_lines.line(chance) for _ in range(3)]
        texts = {
            name: mutate.encodable_text(chance)
            for name in ("name", "serial", "driver_version")
            if chance.random() < 0.5
        }
        return msgspec.json.encode(Case(shown, report, details, lines, texts))

    def check(self, case: bytes) -> int:
        """Everything printed is printable and bounded; an error is one sentence."""
        plan = msgspec.json.decode(case, type=Case)
        self._check_fleet(plan)
        self._check_node(plan)
        self._check_check(plan)
        for line in plan.lines:
            self._check_explain(line.decode("utf-8", "replace"))
        return 3 + len(plan.lines)

    def _check_fleet(self, plan: Case) -> None:
        reports = {}
        try:
            name, report = read("GPUHealthReport", plan.report, fleet_report._named)
            reports[name] = report
        except Exception as error:  # noqa: BLE001 - the command reports an object that cannot be read
            require_sentence(error, "the error", 2000)
        row = fleet_report._readable_row(plan.node, reports, ("pool",))
        cluster = fleet_report.summarize("context", [row] if row else [])
        documents(msgspec.json.encode(cluster))
        self._check_text(self._printed(lambda out: fleet_report.show(out, cluster)), "fleet")

    def _check_node(self, plan: Case) -> None:
        status = plan.report.get("status")
        metadata = plan.node.get("metadata")
        annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
        odd = annotations if isinstance(annotations, dict) else {}
        conditions = plan.node.get("status", {})
        found = conditions.get("conditions") if isinstance(conditions, dict) else None
        condition = (
            next((each for each in found or [] if isinstance(each, dict)), {}) if isinstance(found, list) else {}
        )
        budgets, events = plan.details.get("budgets"), plan.details.get("events")
        details = node_report.NodeDetails(
            node="a",
            condition=condition,
            state="healthy",
            taint="",
            cordoned=False,
            annotations={str(key): str(value) for key, value in odd.items()},
            budgets=[each for each in budgets if isinstance(each, dict)] if isinstance(budgets, list) else [],
            report=status if isinstance(status, dict) else {},
            events=[each for each in events if isinstance(each, dict)] if isinstance(events, list) else [],
        )
        documents(msgspec.json.encode(details))
        self._check_text(self._printed(lambda out: node_report.show(out, details)), "node")

    def _check_check(self, plan: Case) -> None:
        texts = dict(plan.texts)
        version = texts.pop("driver_version", "550.54.15")
        round_ = node(gpu(0, **texts), gpu(1), kernel_log=KernelLogStatus("kmsg"))
        nvml = msgspec.structs.replace(round_.nvidia.nvml, driver_version=version)
        readings = msgspec.structs.replace(round_, nvidia=msgspec.structs.replace(round_.nvidia, nvml=nvml)).readings()
        records = [KernelRecord(line.decode("utf-8", "replace"), START) for line in plan.lines]
        result = judge([readings], records, Settings(node_name="a"), Memory(), CodeFilter([]), 600.0)
        output = plain_output(lambda: check_report.show(result, ["a note"], verbose=True))
        self._check_text(output, "check")
        documents(msgspec.json.encode(result.verdict))

    def _check_explain(self, line: str) -> None:
        try:
            output = plain_output(lambda: explain.command([line]))
        except CommandError as error:
            require_sentence(error, "the error", 20_000)
            return
        self._check_text(output, "explain")

    def _printed(self, show: Any) -> str:
        output = io.StringIO()
        out: Console = console(output)
        show(out)
        return output.getvalue()

    def _check_text(self, text: str, what: str) -> None:
        require_printable(text, f"the output of {what}", _MOST, allowed="\n")

    def close(self) -> None:
        """Does nothing: this target holds no file and no process."""
