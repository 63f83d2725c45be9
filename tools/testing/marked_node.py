"""A simulated node whose agent works on an API server, and the marks on its Node object."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from kube import ControlPlane, Document
from kube.control_plane import RequestError

from gpuhealth.model.burnin_run import TestStatus
from testing.burnin_results import START, result, run
from testing.cluster_objects import Pool, condition, taints
from testing.simnode import QUICK, SimulatedNode, rounds
from testing.waiting import wait_for

XID_95 = "pid=7194, name=x, Uncontained: LTC TAG (0x2, 0x1)."


class Marked:
    """A simulated node and its Node object, in a pool of its own."""

    def __init__(self, plane: ControlPlane, folder: Path, kmsg: Path | None = None, gpus: int = 8) -> None:
        self.plane = plane
        self.pool = Pool(plane)
        self.labels = self.pool.labels
        self.name = self.pool.node()
        self._since = plane.audit_position()
        token = plane.service_account_token("gpuhealth", "gpuhealth-agent")
        kubeconfig = plane.write_kubeconfig(self.name, token)
        settings = QUICK | {"kmsg": {"lookback": 0, "since_boot": False}}
        self.sim = SimulatedNode(folder, self.name, gpus=gpus, kubeconfig=kubeconfig, kmsg=kmsg, settings=settings)

    def budget(self, most: int) -> None:
        """Allows so many nodes of the pool to be out, by a budget of the node's name."""
        self.pool.budget(most, self.name)

    def node(self) -> Document:
        """The Node object, as it is now."""
        return self.pool.get(self.name)

    def annotate(self, key: str, value: str | None) -> None:
        """Sets an annotation of the Node, as a person does; None removes it."""
        self.pool.patch(self.name, {"metadata": {"annotations": {key: value}}})

    def program_untaints(self) -> None:
        """Writes a list of taints without ours, as a node pool's controller does."""
        path, merge = f"/api/v1/nodes/{self.name}?fieldManager=node-pool", "application/merge-patch+json"
        taints = [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]
        self.plane.request("PATCH", path, {"spec": {"taints": taints}}, content_type=merge)

    def taint(self) -> str | None:
        """The value of our taint; None without it."""
        return next(iter(taints(self.node())), None)

    def condition(self) -> tuple[str, str]:
        """Status and reason of our condition; empty while there is none."""
        found = condition(self.node())
        return found.get("status", ""), found.get("reason", "")

    def report(self) -> dict[str, Any]:
        """The status of the node's GPUHealthReport; empty while there is none."""
        try:
            found = self.plane.request("GET", f"/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{self.name}")
        except RequestError as error:
            if error.status == 404:
                return {}
            raise
        status: dict[str, Any] = found.get("status", {})
        return status

    def quarantine(self) -> str:
        """The state of the quarantine in the report, which is written last."""
        return str(self.report().get("quarantine", {}).get("state"))

    def is_silent(self, for_rounds: int) -> bool:
        """Whether the agent writes nothing in so many rounds; to be asked again, since something may be due."""
        return not self.writes_during(for_rounds)

    def writes_during(self, for_rounds: int) -> list[str]:
        """What the agent writes in so many rounds: the verb and path of each request."""
        began, before = rounds(self.sim), len(self.writes())
        wait_for("rounds", lambda: rounds(self.sim) > began + for_rounds)
        return self.writes()[before:]

    def writes(self) -> list[str]:
        """The requests of agents that have changed something of this node: verb, path and, if logged, the body."""
        user = "system:serviceaccount:gpuhealth:gpuhealth-agent"
        return [
            f"{event['verb']} {event['requestURI']} {event.get('requestObject', '')}"
            for event in self.plane.audit(self.name, self._since)
            if event["user"].get("username") == user and event["verb"] not in ("get", "list", "watch")
        ]

    def remove(self) -> None:
        """Takes the Node and its budget away."""
        self.pool.remove()


def leave_burnin(sim: SimulatedNode, gpu: int, status: TestStatus) -> None:
    """Writes a result into the node's results folder, as a burn-in does that has just begun."""
    now = datetime.now(UTC)
    left = run(result(gpu=sim.driver.text(f"gpu{gpu}.uuid"), status=status), at=(now - START).total_seconds())
    folder = sim.folder / "burnin"
    folder.mkdir(exist_ok=True)
    part = folder / f"{now.timestamp()}.part"
    part.write_bytes(msgspec.json.encode(left))
    part.replace(part.with_suffix(".json"))
