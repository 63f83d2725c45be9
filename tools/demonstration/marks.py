"""The marks on the Node: as the agent has put them on the API server, or, without one, as it would put them there."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Protocol

import msgspec
from kube import ControlPlane
from kube.control_plane import ADMIN_TOKEN, RequestError
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from gpuhealth.agent.state import CHECKS, FINDINGS
from gpuhealth.api.names import PREFLIGHT_TAINT
from gpuhealth.kube.kinds import NODES, REPORTS, Kind
from gpuhealth.model.tracker import FindingTracker
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.monitors.judge import Judge, decode_memory, tracker_rules
from gpuhealth.monitors.settings import load
from gpuhealth.quarantine import marks as marking
from gpuhealth.quarantine.condition import condition_patch, is_due
from gpuhealth.quarantine.marks import Object
from gpuhealth.quarantine.target import Desired, cordoning, node_change, target_marks
from gpuhealth.runtime.journal import Journal

GPU_LABEL = {"nvidia.com/gpu.present": "true"}
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


class Marks(Protocol):
    """Where the marks are looked at."""

    where: str
    """Says whose Node is shown."""

    def wait(self, what: str, ready: Callable[[Object], bool], seconds: float = 30.0) -> float:
        """Waits until the Node is so, and returns when (monotonic); TimeoutError names what did not come."""

    @property
    def node(self) -> Object:
        """The Node as it is now."""


class Applied:
    """The Node on the API server, followed by a watch."""

    where = "on the API server"

    def __init__(self, plane: ControlPlane, name: str) -> None:
        self._plane = plane
        self._name = name
        self._latest: Object | None = None
        self._seen_at = 0.0
        self._news = threading.Condition()
        self._watch = self._connection()

    def __enter__(self) -> Applied:
        path = f"{NODES.path()}?watch=true&fieldSelector=metadata.name%3D{self._name}"
        answer = self._answer(self._watch, path)
        self._thread = threading.Thread(target=self._follow, args=(answer,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The API server waits for open watches when it is stopped: ours ends now."""
        with contextlib.suppress(OSError):
            self._watch.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._watch.close()

    @property
    def node(self) -> Object:
        """The latest Node from the watch."""
        return self._latest or {}

    def wait(self, what: str, ready: Callable[[Object], bool], seconds: float = 30.0) -> float:
        """Waits as in Marks; returns the time at which the watch event arrived."""
        with self._news:
            if not self._news.wait_for(lambda: self._latest is not None and ready(self._latest), seconds):
                raise TimeoutError(f"{what} did not come within {seconds:g} s")
            return self._seen_at

    def table(self, kind: Kind, namespace: str = "") -> list[list[str]]:
        """What `kubectl get` shows of a kind: the API server makes its table."""
        with closing(self._connection()) as connection:
            table = json.load(self._answer(connection, kind.path(namespace=namespace), _TABLE))
        shown = [number for number, column in enumerate(table["columnDefinitions"]) if not column["priority"]]
        heading = [table["columnDefinitions"][number]["name"].upper() for number in shown]
        rows = [[_cell(row["cells"][number]) for number in shown] for row in table["rows"]]
        return [heading, *rows]

    def report(self) -> Object:
        """The status of the node's GPUHealthReport; empty before there is one."""
        try:
            report: Object = self._plane.request("GET", REPORTS.path(self._name))
        except RequestError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return {}
            raise
        return report.get("status") or {}

    def _follow(self, answer: HTTPResponse) -> None:
        with contextlib.suppress(OSError, HTTPException):
            for line in answer:
                with self._news:
                    self._latest, self._seen_at = json.loads(line)["object"], time.monotonic()
                    self._news.notify_all()

    def _connection(self) -> HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self._plane.ca))
        return HTTPSConnection("127.0.0.1", self._plane.port, context=context)

    def _answer(self, connection: HTTPSConnection, path: str, accept: str = "application/json") -> HTTPResponse:
        connection.request("GET", path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": accept})
        return connection.getresponse()


class Printed:
    """A Node that exists here only, and gets the patches that the agent's findings ask for."""

    where = "as it would be"

    def __init__(self, simulated: SimulatedNode) -> None:
        self._simulated = simulated
        metadata = {"name": simulated.name, "labels": {**GPU_LABEL}, "resourceVersion": "1"}
        self._node: Object = {"metadata": metadata, "spec": {}, "status": {}}

    @property
    def node(self) -> Object:
        """The Node, after the patches for what the agent finds now."""
        now = datetime.now(UTC)
        cordons = cordoning(load(self._simulated.config), marking.labels(self._node))
        target = target_marks(self._node, self._desired(), cordons=cordons, preflight_taint=PREFLIGHT_TAINT)
        _merge(self._node, node_change(self._node, target, now).body or {})
        if is_due(self._node, target.condition, now):
            _merge(self._node, condition_patch(self._node, target.condition, now))
        return self._node

    def wait(self, what: str, ready: Callable[[Object], bool], seconds: float = 30.0) -> float:
        """Waits until the node is `ready`; the monotonic time in seconds when it was."""
        wait_for(what, lambda: ready(self.node), seconds)
        return time.monotonic()

    def _desired(self) -> Desired:
        """What the agent has journalled of its findings, judged as the agent does."""
        settings = load(self._simulated.config)
        where = settings.journal
        with closing(Journal(where.path, where.retention, where.max_entries, read_only=True)) as journal:
            findings, checks = journal.stored(FINDINGS), journal.stored(CHECKS)
        state = msgspec.json.decode(findings, type=TrackerState) if findings else TrackerState()
        tracker = FindingTracker(tracker_rules(settings, marking.labels(self._node)), state)
        # The GPUs are those that the checks remember.
        judge = Judge(settings, decode_memory(checks) if checks else None, time=datetime.now(UTC))
        verdict, quarantine = tracker.verdict(judge.facts()), tracker.quarantine()
        return Desired(
            verdict=verdict,
            quarantine=tuple(finding.code for finding in quarantine.findings),
            drain=quarantine.drain,
            causes=quarantine.causes,
        )


def out_for(node: Object) -> str | None:
    """The code for which the Node is tainted or cordoned; None while it is in service."""
    record = marking.record(node)
    return record.code if record is not None and marking.is_out(node) else None


def described(node: Object) -> list[str]:
    """The Node's marks as `kubectl describe node` has them."""
    condition = marking.condition(node) or {}
    noted = sorted(
        f"{key}={value}" for key, value in marking.annotations_of(node).items() if key.startswith("gpuhealth.io/")
    )
    labels = sorted(f"{key}={value}" for key, value in marking.labels(node).items())
    taints = [f"{each['key']}={each['value']}:{each['effect']}" for each in marking.taints(node)]
    lines = _listed("Labels", [label for label in labels if not label.startswith("kubernetes.io/")])
    lines += _listed("Annotations", noted) + _listed("Taints", taints)
    if marking.unschedulable(node):
        lines.append("Unschedulable: true")
    lines.append(f"Condition:   GPUHealthy={condition.get('status', 'Unknown')}  {condition.get('reason', '')}")
    return [*lines, f"             {condition.get('message', '')}"]


def _listed(label: str, values: list[str]) -> list[str]:
    heads = [f"{label}:", *[""] * len(values)]
    return [f"{head:<13}{value}" for head, value in zip(heads, values or ["<none>"], strict=False)]


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _merge(target: Object, patch: Object) -> None:
    """RFC 7386, in place."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value
