"""The commands of who looks after a fleet, as they run them, on a real API server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from kube import ControlPlane
from testing import processes
from testing.cluster_objects import Pool, finding, verdict
from testing.command import Said

from gpuhealth.api.report import Gpu, Inventory
from gpuhealth.kube.client import Client
from gpuhealth.model.component import gpu
from gpuhealth.model.verdict import GpuVerdict, State
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.report import Facts
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter

UUID = "GPU-5f3c8e1d-0a1b-2c3d-4e5f-60718293a4b5"
GPU = Gpu(index=0, uuid=UUID, pci="0000:01:00.0", model="NVIDIA H100", serial="S1")
FACTS = Facts(Inventory(driver="570.1", gpu_count=1, gpus=(GPU,)), "boot", {}, "0.1")
OURS = ("GPUHEALTH_", "KUBE", "NO_COLOR", "COLUMNS", "LD_LIBRARY_PATH")


class Desk:
    """The machine of an operator: nodes of a pool, and a kubeconfig with two contexts for one cluster."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.pool = Pool(plane)
        self.pool.labels["gpuhealth.io/pool"] = self.pool.name
        config = yaml.safe_load(_operators_kubeconfig(plane).read_text(encoding="utf-8"))
        (context,) = config["contexts"]
        nowhere = {"name": "nowhere", "cluster": {"server": "https://127.0.0.1:1"}}
        config["clusters"].append(nowhere)
        config["contexts"] = [{**context, "name": name} for name in ("east", "west")]
        config["contexts"].append({"name": "nowhere", "context": {"cluster": "nowhere", "user": "operator"}})
        config["current-context"] = "east"
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a command at this desk."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return environment | {"KUBECONFIG": str(self.kubeconfig), "PYTHONWARNINGS": "error"} | more

    def run(self, *arguments: str, **more: str) -> Said:
        """Run the command to its end."""
        done = processes.run(arguments, self.environment(**more))
        return Said(done.returncode, done.stdout, done.stderr)

    def agent(self, node: str, *codes: str) -> None:
        """Mark the node once, as an agent with these findings does."""
        found = [finding(code, component=gpu(UUID)) for code in codes]
        state = State.UNHEALTHY if codes else State.HEALTHY
        own = GpuVerdict(index=0, uuid=UUID, pci=GPU.pci, model=GPU.model, verdict=state)
        desired = Desired(verdict=msgspec.structs.replace(verdict(*found), gpus=(own,)), quarantine=codes)

        async def run() -> None:
            async with Client.from_kubeconfig(self.plane.kubeconfig) as client:
                await NodeWriter(client, Settings(), OwnNode(client, node)).apply(desired, FACTS)

        asyncio.run(run())

    def say(self, node: str, status: dict[str, Any]) -> None:
        """Set a part of the status of the node's report."""
        path = f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}/status"
        self.plane.request("PATCH", path, {"status": status}, content_type="application/merge-patch+json")

    def notes(self, node: str) -> dict[str, str]:
        """The annotations of gpuhealth on a node, without the group."""
        notes = self.pool.get(node)["metadata"].get("annotations", {})
        return {key.partition("/")[2]: value for key, value in notes.items() if key.startswith("gpuhealth.io/")}


def _operators_kubeconfig(plane: ControlPlane) -> Path:
    """A kubeconfig of a user with only the rights of the operator's manifest."""
    role, group = "gpuhealth-operator", "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": "gpuhealth"}
    binding = {"roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role}, "subjects": [subject]}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": "gpuhealth"}}
    bound = {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "operator"}, **binding}
    plane.apply([account, bound])
    return plane.write_kubeconfig("operator", plane.service_account_token("gpuhealth", "operator"))


@pytest.fixture
def desk(plane: ControlPlane, tmp_path: Path) -> Iterator[Desk]:
    """An operator's machine with a pool of nodes."""
    made = Desk(plane, tmp_path)
    yield made
    for name in made.pool.slots():
        plane.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases/{name}")
    made.pool.remove()


def test_fleet(desk: Desk) -> None:
    """Counts by state, pool and model; a row for each node that needs attention, with reason, time and quarantine."""
    well, out, held, silent = desk.pool.nodes(4)
    desk.pool.node()  # without GPUs
    desk.pool.budget(1)
    desk.agent(well)
    desk.agent(out, "xid.79")
    desk.agent(held, "gpu.lost")
    desk.agent(silent)
    desk.say(out, {"drain": {"phase": "draining", "remaining": 3}})
    unknown = {"type": "GPUHealthy", "status": "Unknown", "reason": "AgentSilent", "message": "since long"}
    content = "application/strategic-merge-patch+json"
    path, body = f"/api/v1/nodes/{silent}/status", {"status": {"conditions": [unknown]}}
    desk.plane.request("PATCH", path, body, content_type=content)

    said = desk.run("fleet", "--pool", desk.pool.name)
    assert (said.code, said.err) == (3, "")
    lines = said.out.splitlines()
    assert lines[0] == "4 GPU nodes, 4 GPUs"
    assert lines[1].split(maxsplit=1) == ["agents", "1 node without a working agent"]
    assert lines[2].split() == ["state", "1", "healthy,", "1", "quarantined,", "1", "unhealthy,", "1", "unknown"]
    assert lines[3].split() == ["pool", f"{desk.pool.name}:", "4", "nodes,", "3", "need", "attention"]
    assert lines[4].strip() == "model   NVIDIA H100: 2 unhealthy, 1 healthy, 1 unknown"
    rows = {line.split()[0]: " ".join(line.split()[2:]) for line in lines[7:]}
    assert rows.keys() == {out, held, silent}
    assert rows[out].startswith("quarantined xid.79")
    assert re.search(r" \d+[sm] quarantined draining, 3 left$", rows[out])
    assert rows[held].startswith("unhealthy gpu.lost")
    assert rows[held].endswith(f"blocked by {desk.pool.name} -")
    assert rows[silent].startswith("unknown AgentSilent")


def test_fleet_shows_nodes_that_nobody_watches(desk: Desk) -> None:
    """A node with GPUs and without an agent, or with the report of an earlier Node, is listed; the exit code is 3."""
    gke = desk.pool.node(labels={"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"})
    again = desk.pool.node()
    desk.pool.node(labels={"karpenter.k8s.aws/instance-gpu-manufacturer": "amd"})
    desk.agent(again)
    owner = {"apiVersion": "v1", "kind": "Node", "name": again, "uid": "of-an-earlier-node"}
    path, body = f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{again}", {"metadata": {"ownerReferences": [owner]}}
    desk.plane.request("PATCH", path, body, content_type="application/merge-patch+json")

    said = desk.run("fleet", "--pool", desk.pool.name)
    assert (said.code, said.err) == (3, "")
    lines = said.out.splitlines()
    assert lines[0] == "2 GPU nodes, 1 GPU"
    assert lines[1].split(maxsplit=1) == ["agents", "2 nodes without a working agent"]
    assert lines[2].split() == ["state", "2", "unknown"]
    rows = {line.split()[0]: " ".join(line.split()[2:]) for line in lines[7:]}
    assert rows[gke] == "unknown no agent - - -"
    assert rows[again].startswith("unknown no report")
    (cluster,) = desk.run("fleet", "--json", "--pool", desk.pool.name).json["clusters"]
    assert cluster["unwatched"] == 2
    assert {row["node"]: row["unwatched"] for row in cluster["needs_attention"]} == {
        gke: "no_agent",
        again: "no_report",
    }


def test_fleet_of_two_clusters(desk: Desk) -> None:
    """Several contexts are shown together; one that does not answer is named, and the others are shown."""
    node = desk.pool.node()
    desk.agent(node)
    contexts = ["--context", "east", "--context", "west"]
    said = desk.run("fleet", "--json", "--pool", desk.pool.name, *contexts)
    clusters = said.json["clusters"]
    assert [(each["context"], each["nodes"], each["states"]) for each in clusters] == [
        ("east", 1, {"healthy": 1}),
        ("west", 1, {"healthy": 1}),
    ]
    assert clusters[0]["models"] == {"NVIDIA H100": {"healthy": 1}}
    assert clusters[0]["needs_attention"] == []
    partly = desk.run("fleet", *contexts[:2], "--context", "nowhere")
    assert partly.code == 3
    assert partly.out.startswith("east  ")
    (line,) = partly.err.splitlines()
    assert line.startswith("gpuhealth: context nowhere: no response from the API server")


@pytest.mark.parametrize("since", ["0000-01-01T00:00:00Z", "2026-01-01T00:00:00+99:99"])
def test_a_report_that_cannot_be_read(desk: Desk, since: str) -> None:
    """A report with an invalid time is named with its problem, and hides neither its node nor others; `node` shows the
    rest of it, and `restore` works."""
    odd, other = desk.pool.nodes(2)
    desk.pool.budget(1)
    desk.agent(odd, "xid.79")
    desk.agent(other)
    desk.say(odd, {"quarantine": {"since": since}})

    said = desk.run("fleet", "--pool", desk.pool.name)
    assert said.code == 0
    (line,) = said.err.splitlines()
    assert line.startswith(f"gpuhealth: GPUHealthReport {odd} cannot be read: ")
    assert since in line
    lines = said.out.splitlines()
    assert sorted(lines[1].replace(",", "").split()) == ["1", "1", "healthy", "quarantined", "state"]
    (row,) = [each for each in lines if each.startswith(odd)]
    assert "unreadable" in row
    (cluster,) = desk.run("fleet", "--json", "--pool", desk.pool.name).json["clusters"]
    assert [(each["node"], each["unreadable"] != "") for each in cluster["needs_attention"]] == [(odd, True)]

    shown = desk.run("node", odd)
    assert (shown.code, shown.err) == (0, "")
    assert "quarantined for xid.79" in shown.out
    assert desk.run("restore", odd).out.startswith(f"{odd}: restored.")


def test_node(desk: Desk) -> None:
    """Findings, quarantine with its slots, drain, budget, GPUs with their last burn-in, and Events."""
    node = desk.pool.node()
    budget = desk.pool.budget(1)
    desk.agent(node, "xid.79")
    run = {
        "level": "quick",
        "status": "failed",
        "tests": {"gemm": {"status": "failed"}, "memory": {"status": "passed"}},
    }
    drain = {"phase": "draining", "remaining": 2, "evicted": 1, "deleted": 0, "deadline": "2026-03-08T12:00:00Z"}
    desk.say(node, {"burnin": {"gpus": {UUID: run}}, "drain": drain})
    said = desk.run("node", node)
    assert (said.code, said.err) == (0, "")
    for text in (
        "driver 570.1  agent 0.1",
        "False, Xid79: xid.79",
        "quarantined, tainted xid.79",
        f", slots {budget}.0",
        "draining: 2 pods left, 1 evicted, 0 deleted; the rest is deleted at 2026-03-08T12:00:00Z",
        f"{budget}: not counted yet",
        "quick failed: gemm",
        "CRITICAL  xid.79",
        "GPU has fallen off the bus  [GPU-5f3c8e1d]",
        "reboot_node: drain the node, then reboot it",
        "Quarantined: taken out of service",
    ):
        assert text in said.out, text
    known = desk.run("node", node, "--json").json
    assert (known["node"], known["taint"], known["report"]["worst"]) == (node, "xid.79", "xid.79")
    assert known["condition"]["status"] == "False"


def test_quarantine_and_restore(desk: Desk) -> None:
    """The agent quarantines the node with the reason given, until restore removes the request."""
    node = desk.pool.node()
    desk.agent(node)
    said = desk.run("quarantine", node, "--reason", "fan is loud", LOGNAME="ann")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{node}: quarantine requested, fan is loud (ann). To end it: gpuhealth restore")
    desk.agent(node)
    shown = desk.run("node", node).out
    assert "quarantined, tainted manual" in shown
    assert "quarantined by hand, since " in shown
    assert "quarantine: fan is loud (ann)" in shown
    desk.agent(node, "gpu_memory.remap_failed", "burnin.exact", "xid.79")
    said = desk.run("restore", node)
    assert said.code == 0
    assert "end only when a reading is clean: gpu_memory.remap_failed." in said.out
    assert "end only when the test passes: burnin.exact." in said.out
    assert f"gpuhealth override {node} healthy" in said.out
    assert "xid.79" not in said.out, "that one has ended"
    assert desk.notes(node).keys() & {"out-of-service", "restored"} == {"restored"}
    desk.agent(node)
    assert "taints" not in desk.pool.get(node)["spec"]


def test_override_and_release(desk: Desk) -> None:
    """Annotations are set and removed; a quarantine that an override would prevent is refused."""
    node = desk.pool.node()
    desk.agent(node)
    assert desk.run("override", node, "healthy").code == 0
    assert desk.notes(node)["override"] == "healthy"
    refused = desk.run("quarantine", node)
    assert (refused.code, refused.out) == (3, "")
    assert (
        f"has the override healthy, which takes precedence; remove it first: gpuhealth override {node} none"
        in refused.err
    )
    assert desk.run("override", node, "none").code == 0
    assert desk.run("release-gpus", node).code == 0
    assert desk.notes(node) == {"release-gpus": "true"}
    assert desk.run("release-gpus", node, "--end").code == 0
    assert desk.notes(node) == {}
    assert desk.run("override", node, "fine").code == 3


def test_what_cannot_be_done(desk: Desk) -> None:
    """Unknown node, missing right, missing agent, missing cluster: an error of one sentence each."""
    node = desk.pool.node()
    desk.plane.apply(
        [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "guest", "namespace": "gpuhealth"}}]
    )
    guest = desk.plane.write_kubeconfig("guest", desk.plane.service_account_token("gpuhealth", "guest"))
    for arguments, sentence in (
        (["node", f"{node}x"], f"no node {node}x in this cluster; did you mean {node}"),
        (["node", node], f"nothing is known about the GPUs of node {node}"),
        (["quarantine", node, "--kubeconfig", str(guest)], "not permitted: nodes"),
        (["fleet", "--kubeconfig", str(guest)], "not permitted: gpuhealthreports"),
        (["restore", node, "--kubeconfig", "/nowhere"], "no service account, and no kubeconfig at /nowhere"),
        (["override", node, "healthy", "--context", "north"], "context north: "),
    ):
        said = desk.run(*arguments)
        assert (said.code, said.out) == (3, ""), arguments
        (line,) = said.err.splitlines()
        assert line.startswith(f"gpuhealth: {sentence}"), line
    said = desk.run("quarantine", node)
    assert said.code == 0
    assert "no agent has reported for this node" in said.err


def test_as_a_plugin_of_kubectl(desk: Desk) -> None:
    """The program that `kubectl gpuhealth` runs exists, and is the same command."""
    plugin = Path(sys.executable).with_name("kubectl-gpuhealth")
    done = subprocess.run([plugin, "fleet", "--json"], env=desk.environment(), capture_output=True, check=True)
    assert json.loads(done.stdout)["clusters"]
