"""The admission policies for agents: what the real agent and the preflight send is allowed.

What a stolen token could send is in test_attacks.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Literal

import pytest
from kube import ControlPlane, Document, documents
from testing.admission import OF_AGENTS, Admission, speaks_of, with_variable
from testing.attacks.nodes import NOT_YOURS
from testing.attacks.objects import (
    NEW_NODE,
    NO_MARK,
    NO_MARK_FOR_XID,
    OUR_CORDON,
    OUR_TAINT,
    RECORD,
    THEIR_CONDITION,
    THEIR_TAINT,
    noted,
)
from testing.attacks.scene import Tokens
from testing.cluster_objects import Pool, finding, verdict
from testing.node_writing import BOTH, NO_DRIVER
from testing.paths import BASE
from testing.started_plane import started_plane
from testing.waiting import until

from gpuhealth.api.names import OVERRIDE, QUARANTINE, STATE_LABEL, TAINT
from gpuhealth.kube.client import MERGE_PATCH, STRATEGIC_MERGE_PATCH, Client
from gpuhealth.kube.errors import ForbiddenError
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import marks_removed, unschedulable
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter
from gpuhealth.runtime.settings import Quarantine

PREFLIGHT = "gpuhealth-preflight"
SICK = Desired(verdict=verdict(finding()), quarantine=("xid.79",))
SICKER = Desired(verdict=verdict(finding("ecc.uncorrectable"), finding()), quarantine=("ecc.uncorrectable", "xid.79"))
HEALTHY = Desired(verdict=verdict())
AT_ONCE = Quarantine(put_back_after=0.0)
REMOVALS: dict[str, list[Document]] = {
    "taint": [{"taints": [THEIR_TAINT]}],
    "cordon": [{"unschedulable": None}],
    "observe": [],
}


class Guarded:
    """A control plane behind the policies, and tokens as pods get them."""

    def __init__(self, plane: ControlPlane, admission: Admission) -> None:
        self.plane = plane
        self.admission = admission
        self._mode = "taint"
        self._tokens = Tokens(plane)

    def mode(self, mode: str) -> None:
        """As if somebody had applied the policies with another mode."""
        if mode != self._mode:
            self.admission.plugin.put(with_variable(self.admission.objects, "mode", f"'{mode}'"))
            self._mode = mode

    def program_writes(self, node: str, spec: Document) -> None:
        """Changes the spec of a Node as a program does that knows nothing of our marks."""
        path, merge = f"/api/v1/nodes/{node}?fieldManager=program", "application/merge-patch+json"
        self.plane.request("PATCH", path, {"spec": spec}, content_type=merge)

    def token(self, node: str, account: str = "gpuhealth-agent") -> str:
        """The token of a pod that runs on the node."""
        return self._tokens.get(node, account)

    def client(self, token: str) -> Client:
        """A client with that token, which does not try again."""
        return Client.from_kubeconfig(self.plane.write_kubeconfig(f"token-{hash(token)}", token), attempts=1)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """A control plane of its own: the other tests' tokens are bound to no pod."""
    with started_plane("policy-plugin") as plane:
        plane.apply(d for d in documents(BASE) if d["kind"] not in {"DaemonSet", "Deployment"})
        with Admission(plane, OF_AGENTS) as admission:
            lease = {"metadata": {"name": "is-it-there", "namespace": "gpuhealth"}, "spec": {}}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease}
            asyncio.run(until(lambda: plane.apply([body]) and admission.reviewed))
            yield Guarded(plane, admission)


@pytest.fixture
def pool(guarded: Guarded) -> Iterator[Pool]:
    """A pool of nodes of the test's own."""
    made = Pool(guarded.plane)
    yield made
    made.remove()


# --- what the agent sends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["taint", "cordon", "observe"])
def test_the_agent_is_not_refused(guarded: Guarded, pool: Pool, mode: Literal["taint", "cordon", "observe"]) -> None:
    """A node's whole life: sick, sicker, held, back, marked again, freed by a person, overridden, among other marks."""
    node, other = pool.nodes(2)
    pool.budget(1, maxPerWindow="100%", maxPerFault=1, window="1s")
    theirs = {"labels": {"a": "b"}, "annotations": {"c": "d", "e": ""}, "finalizers": ["f/g"]}
    spec = {"taints": [THEIR_TAINT, {"key": "also-theirs", "effect": "NoSchedule"}], "podCIDR": "10.0.0.0/24"}
    pool.patch(node, {"metadata": theirs, "spec": spec})
    status = {"conditions": [THEIR_CONDITION], "capacity": {"nvidia.com/gpu": "8"}, "addresses": []}
    strategic = STRATEGIC_MERGE_PATCH
    guarded.plane.request("PATCH", f"/api/v1/nodes/{node}/status", {"status": status}, content_type=strategic)
    guarded.mode(mode)
    acting = mode != "observe"
    seen = len(guarded.admission.reviewed)

    async def life(client: Client) -> None:
        write = NodeWriter(client, Settings(mode=mode, quarantine=AT_ONCE), OwnNode(client, node))
        follow = asyncio.create_task(write.node.follow())
        await until(lambda: write.node.labels)
        for desired in (HEALTHY, SICK, SICKER, HEALTHY, NO_DRIVER, BOTH, SICK, BOTH, HEALTHY):
            await write.apply(desired)
            await _settled(write, desired, mode)
        await _settled(write, SICK, mode)
        for spec in REMOVALS[mode]:
            guarded.program_writes(node, spec)
            await until(lambda: write.node.latest is not None and marks_removed(write.node.latest))
            await write.apply(SICK)
            assert not marks_removed(pool.get(node))
        pool.patch(node, {"spec": {"unschedulable": None, "taints": [THEIR_TAINT]}})
        await until(lambda: len(write.node.taints) == 1)
        await asyncio.sleep(0)
        await write.apply(SICK)
        await write.apply(HEALTHY)
        await _settled(write, SICK, mode)
        pool.patch(node, {"metadata": {"annotations": {OVERRIDE: "healthy"}}})
        await until(lambda: write.node.override)
        await write.apply(SICK)
        follow.cancel()
        with suppress(asyncio.CancelledError):
            await follow
        assert write._events.dropped == 0

    async def run() -> None:
        async with guarded.client(guarded.token(node)) as client, guarded.client(guarded.token(other)) as second:
            held = NodeWriter(second, Settings(mode=mode), OwnNode(second, other))
            await life(client)
            await held.apply(SICK)
            await held.apply(HEALTHY)
            assert [call for call in client.calls if call[1] in {401, 403}] == []
            assert [call for call in second.calls if call[1] in {401, 403}] == []

    asyncio.run(run())
    ours = [r for r in guarded.admission.reviewed[seen:] if "gpuhealth-agent" in r["userInfo"]["username"]]
    judged = {p["metadata"]["name"] for p in guarded.admission.policies if any(speaks_of(p, r) for r in ours)}
    everything = {p["metadata"]["name"] for p in guarded.admission.policies}
    assert judged == (everything if acting else {"gpuhealth-reports"})


async def _settled(write: NodeWriter, desired: Desired, mode: str) -> None:
    """Taint and cordon as they should be, also when a slot has to run out first."""
    out, cordons = bool(desired.quarantine) and mode != "observe", mode == "cordon" or desired in (NO_DRIVER, BOTH)
    wanted = ({desired.quarantine[0]} if out and not cordons else set(), out and cordons)

    def marks() -> tuple[set[str], bool]:
        values = {taint["value"] for taint in write.node.taints if taint["key"] == TAINT}
        return values, write.node.latest is not None and unschedulable(write.node.latest)

    async with asyncio.timeout(180):
        while marks() != wanted:
            await asyncio.sleep(min(write.retry_in or 0.05, 0.2))
            await write.apply(desired)


def test_preflight_takes_its_taint_off(guarded: Guarded, pool: Pool) -> None:
    """Preflight changes and removes the taint of a new node, and that alone; its agent may only put it on again."""
    node = pool.node()
    pool.patch(node, {"spec": {"taints": [THEIR_TAINT, NEW_NODE]}})
    off = {"spec": {"taints": [THEIR_TAINT]}, "metadata": {"labels": {STATE_LABEL: None}}}

    async def run() -> None:
        async with guarded.client(guarded.token(node)) as agent:
            with pytest.raises(ForbiddenError, match="only by gpuhealth-preflight"):
                await agent.request("PATCH", f"/api/v1/nodes/{node}", body=off, content_type=MERGE_PATCH)
        async with guarded.client(guarded.token(node, PREFLIGHT)) as preflight:
            body: Document = {"spec": {"taints": None}}
            with pytest.raises(ForbiddenError, match="the taints of others"):
                await preflight.request("PATCH", f"/api/v1/nodes/{node}", body=body, content_type=MERGE_PATCH)
            failed: Document = {"spec": {"taints": [THEIR_TAINT, {**NEW_NODE, "value": "failed"}]}}
            await preflight.request("PATCH", f"/api/v1/nodes/{node}", body=failed, content_type=MERGE_PATCH)
            await preflight.request("PATCH", f"/api/v1/nodes/{node}", body=off, content_type=MERGE_PATCH)
        async with guarded.client(guarded.token(node)) as agent:  # after a reboot
            again: Document = {"spec": {"taints": [THEIR_TAINT, NEW_NODE]}}
            await agent.request("PATCH", f"/api/v1/nodes/{node}", body=again, content_type=MERGE_PATCH)
            with pytest.raises(ForbiddenError, match="only by gpuhealth-preflight"):
                await agent.request("PATCH", f"/api/v1/nodes/{node}", body=failed, content_type=MERGE_PATCH)

    asyncio.run(run())
    assert pool.get(node)["spec"]["taints"] == [THEIR_TAINT, NEW_NODE]


# --- what it may not do -----------------------------------------------------------------------------------------------


def test_what_a_person_did_stays(guarded: Guarded, pool: Pool) -> None:
    """A taint of our key and a cordon without our record belong to a person; only mode cordon may cordon."""
    node = pool.node()
    pool.patch(node, {"spec": {"taints": [OUR_TAINT], "unschedulable": True}})
    path = f"/api/v1/nodes/{node}"

    async def run() -> None:
        async with guarded.client(guarded.token(node)) as client:

            async def refused(body: Document, why: str) -> None:
                with pytest.raises(ForbiddenError, match=why):
                    await client.request("PATCH", path, body=body, content_type=MERGE_PATCH)

            guarded.mode("cordon")
            await refused({"spec": {"taints": None}}, "comes and goes with the annotation")
            await refused({"spec": {"taints": None}, "metadata": {"annotations": RECORD}}, "comes and goes")
            await refused({"spec": {"unschedulable": None}}, "only what that says we cordoned")
            pool.patch(node, {"spec": {"taints": None, "unschedulable": None}})
            guarded.mode("taint")
            out = {"spec": {"taints": [OUR_TAINT], "unschedulable": True}, "metadata": {"annotations": RECORD}}
            await refused(out, "in mode cordon")
            guarded.mode("cordon")
            await client.request("PATCH", path, body=out, content_type=MERGE_PATCH)
            guarded.mode("taint")
            back = {"spec": {"taints": None, "unschedulable": None}, "metadata": {"annotations": dict.fromkeys(RECORD)}}
            await client.request("PATCH", path, body=back, content_type=MERGE_PATCH)

    asyncio.run(run())


def test_in_mode_taint_only_some_findings_cordon(guarded: Guarded, pool: Pool) -> None:
    """A cordon needs a record of a finding that pods of the GPU stack repair, and a record without a mark such a one
    on a node that is cordoned already."""
    node = pool.node()
    path = f"/api/v1/nodes/{node}"
    guarded.mode("taint")

    def cordon(notes: Document) -> Document:
        return {"spec": {"unschedulable": True}, "metadata": {"annotations": notes}}

    async def run() -> None:
        async with guarded.client(guarded.token(node)) as client:

            async def send(body: Document, refused: str = "") -> None:
                with pytest.raises(ForbiddenError, match=refused) if refused else nullcontext():
                    await client.request("PATCH", path, body=body, content_type=MERGE_PATCH)

            await send(cordon({QUARANTINE: OUR_CORDON[QUARANTINE].replace("driver.not_loaded", "xid.79")}), "cordon")
            await send(cordon(OUR_CORDON))
            await send({"spec": {"unschedulable": None}, "metadata": {"annotations": {QUARANTINE: None}}})
            pool.patch(node, {"spec": {"unschedulable": True}})
            await send(noted(annotations=NO_MARK_FOR_XID), "for a finding that cordons")
            await send(noted(annotations=NO_MARK))
            await send({"spec": {"unschedulable": None}, "metadata": {"annotations": {QUARANTINE: None}}}, "cordoned")

    asyncio.run(run())


def test_the_reason_of_a_cordon(guarded: Guarded, pool: Pool) -> None:
    """The annotation that the policy names comes and goes with the agent's cordon; without it the agent is refused."""
    node, key = pool.node(), "nodeset.slinky.slurm.net/node-cordon-reason"
    settings = Settings(mode="cordon", quarantine=Quarantine(cordon_reason=key))
    guarded.mode("cordon")

    async def run() -> None:
        async with guarded.client(guarded.token(node)) as client:
            writer = NodeWriter(client, settings, OwnNode(client, node))
            with pytest.raises(ForbiddenError, match="annotations only"):
                await writer.apply(SICK)
            in_mode_cordon = with_variable(guarded.admission.objects, "mode", "'cordon'")
            guarded.admission.plugin.put(with_variable(in_mode_cordon, "cordonReason", f"'{key}'"))
            try:
                await writer.apply(SICK)
                assert pool.get(node)["spec"]["unschedulable"]
                assert pool.get(node)["metadata"]["annotations"][key] == "gpuhealth: xid.79"
                await writer.apply(HEALTHY)
                assert key not in pool.get(node)["metadata"].get("annotations", {})
            finally:
                guarded.admission.plugin.put(in_mode_cordon)

    pool.budget(1)
    asyncio.run(run())


def test_a_token_without_a_node_is_refused(guarded: Guarded, pool: Pool) -> None:
    """A token that is bound to no pod, as older servers and long-lived Secrets give them, may change nothing."""
    node = pool.node()
    token = guarded.plane.service_account_token("gpuhealth", "gpuhealth-agent")

    async def run() -> None:
        async with guarded.client(token) as client:
            with pytest.raises(ForbiddenError, match=NOT_YOURS):
                await NodeWriter(client, Settings(), OwnNode(client, node)).apply(HEALTHY)

    asyncio.run(run())
