"""The GPUHealthReport on a real API server: what it says, when it is written, and what it leaves alone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from kube import ControlPlane
from testing.cluster_objects import Pool, finding, verdict
from testing.node_writing import HEALTHY, SICK, writer

from gpuhealth.api.report import Gpu, Inventory
from gpuhealth.kube.client import Client
from gpuhealth.model.finding import Severity
from gpuhealth.quarantine.report import Facts, merge_patch
from gpuhealth.quarantine.target import Desired


def test_report_says_what_there_is(plane: ControlPlane, pool: Pool) -> None:
    """Inventory, findings, counters; owned by its Node; rewritten only for what matters."""
    node = pool.node()
    gpu = Gpu(index=0, uuid="GPU-0", pci="0000:01:00.0", model="H100", serial="S1")
    facts = Facts(Inventory(driver="570.1", gpus=(gpu,)), "boot", {"xid.79": 1}, "0.1")
    clock = [datetime(2026, 3, 1, tzinfo=UTC)]

    def degraded(celsius: int, minute: int = 0) -> Desired:
        seen = clock[0] + timedelta(minutes=minute)
        hot = finding("thermal.gpu", Severity.WARNING, message=f"{celsius} degrees", last_seen=seen)
        return Desired(verdict=verdict(hot))

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node, now=lambda: clock[0])
            await write.apply(degraded(80), facts)
            report = pool.report(node)
            assert report["metadata"]["ownerReferences"][0]["uid"] == pool.get(node)["metadata"]["uid"]
            assert report["status"]["inventory"]["gpus"][0]["serial"] == "S1"
            assert report["status"]["counters"] == {"xid.79": 1}
            assert await write.apply(degraded(80, minute=1), facts) == [], "seen again is no news"
            assert await write.apply(degraded(81), facts) == [], "another number can wait"
            clock[0] += timedelta(seconds=61)
            assert [act.kind for act in await write.apply(degraded(81), facts)] == ["condition", "report"]
            acts = await write.apply(HEALTHY, Facts())
            assert "report" in {act.kind for act in acts}, "another verdict cannot wait"
            assert pool.report(node)["status"]["counters"] == {}

    asyncio.run(run())


def test_report_leaves_the_controllers_part_alone(plane: ControlPlane, pool: Pool) -> None:
    """What the controller writes into the status stays when the agent writes its part."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            await write.apply(HEALTHY)
            path = f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}/status"
            drain = {"status": {"drain": {"phase": "draining"}}}
            plane.request("PATCH", path, drain, content_type="application/merge-patch+json")
            await write.apply(SICK)
            assert pool.report(node)["status"]["drain"] == {"phase": "draining"}
            plane.request("DELETE", path.removesuffix("/status"))
            await write.apply(HEALTHY)
            assert pool.report(node)["status"]["verdict"] == "healthy", "deleted by somebody, made again"

    asyncio.run(run())


def test_fields_that_the_definition_lacks_are_not_sent_again(plane: ControlPlane, pool: Pool) -> None:
    """A definition of an older version drops a field: the report is written once, and a healthy node writes nothing."""
    node = pool.node()
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpuhealthreports.gpuhealth.io"
    whole = plane.request("GET", path)["spec"]["versions"]
    field = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/settingsDigest"

    def change(operation: dict[str, object]) -> None:
        plane.request("PATCH", path, [operation], content_type="application/json-patch+json")

    async def run() -> None:
        facts = Facts(settings_digest="0123456789ab")
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            write = writer(client, node)
            await write.apply(HEALTHY, facts)
            if "settingsDigest" in pool.report(node)["status"]:
                return  # the server has not taken up the definition yet
            dropped.append(node)
            assert await write.apply(HEALTHY, facts) == []

    dropped: list[str] = []
    change({"op": "remove", "path": field})
    try:
        while not dropped:
            asyncio.run(run())
            node = pool.node()
    finally:
        change({"op": "replace", "path": "/spec/versions", "value": whole})


def test_a_status_with_other_types_is_replaced() -> None:
    """A section that is no map on the server becomes one, and no longer stops the report from being written."""
    assert merge_patch({"inventory": True, "driver": 5}, {"inventory": {}}) == {"inventory": {}}
    assert merge_patch({"inventory": [1]}, {"inventory": {"gpus": []}}) == {"inventory": {"gpus": []}}
    assert merge_patch({"counters": {"a": 1}}, {"counters": {}}) == {"counters": {"a": None}}
    assert merge_patch({"counters": {}}, {"counters": {}}) == {}
