"""Desired marks, node writers, and the marks on a Node afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from gpuhealth.api.names import QUARANTINE
from gpuhealth.kube.client import Client, Object
from gpuhealth.model.causes import Cause
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter
from testing.cluster_objects import T0, Pool, condition, finding, taints, verdict
from testing.waiting import until

HEALTHY = Desired(verdict=verdict())
SICK = Desired(verdict=verdict(finding()), quarantine=("xid.79",), drain=True)
NO_DRIVER = Desired(
    verdict=verdict(finding("driver.not_loaded")),
    quarantine=("driver.not_loaded",),
    causes=(Cause("driver.not_loaded", T0),),
)
BOTH = Desired(
    verdict=verdict(finding(), finding("driver.not_loaded")),
    quarantine=("xid.79", "driver.not_loaded"),
    causes=(Cause("xid.79", T0), *NO_DRIVER.causes),
)
"""A finding that taints the node, and one that cordons it."""
Mode = Literal["observe", "taint", "cordon"]


def node_object(
    *, labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, **parts: Any
) -> Object:
    """A Node without an API server: with `spec` and `conditions`, where they are given."""
    metadata: Object = {"name": "n", "resourceVersion": "7", "uid": "u"}
    metadata |= {"labels": labels or {}, "annotations": annotations or {}}
    return {"metadata": metadata, "spec": parts.get("spec", {}), "status": {"conditions": parts.get("conditions", [])}}


def settings(mode: Mode = "taint") -> Settings:
    """Settings with a mode and defaults."""
    return Settings(mode=mode)


def writer(client: Client, node: str, mode: Mode = "taint", **options: Any) -> NodeWriter:
    """A writer of a node's marks in a mode."""
    return NodeWriter(client, settings(mode), OwnNode(client, node), **options)


def writes(client: Client) -> int:
    """How many requests of a client were no reads."""
    return sum(count for (method, _), count in client.calls.items() if method not in {"GET", "WATCH"})


def ours(pool: Pool, node: str) -> list[str]:
    """The values of our taint on a node."""
    return taints(pool.get(node))


def out_by(pool: Pool, node: str) -> str:
    """By which marks a node is out: taint, cordon, both or none."""
    found = pool.get(node)
    marks = [*["taint"] * bool(taints(found)), *["cordon"] * bool(found["spec"].get("unschedulable"))]
    return " and ".join(marks) or "none"


def health(pool: Pool, node: str) -> dict[str, str]:
    """Our condition on a node; empty while there is none."""
    return condition(pool.get(node))


@asynccontextmanager
async def watching(writing: NodeWriter) -> AsyncIterator[None]:
    """Follows the Node meanwhile, as the agent does."""
    task = asyncio.create_task(writing.node.follow())
    try:
        await until(lambda: writing.node.labels)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def marks(pool: Pool, node: str) -> tuple[list[str], str, str]:
    """Values of our taint, status of our condition, and state of the quarantine in the report."""
    found = pool.get(node)
    values = taints(found)
    assert (QUARANTINE in found["metadata"].get("annotations", {})) is bool(values)
    return values, condition(found).get("status", ""), pool.report(node)["status"]["quarantine"]["state"]
