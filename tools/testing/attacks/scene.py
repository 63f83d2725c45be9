"""The objects that the table of attacks is about, and the one who sends its requests."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from kube import ControlPlane, Document

from gpuhealth.api.names import STATE_LABEL
from testing.attacks.burnins import BURNIN_IMAGE
from testing.attacks.objects import (
    LEASES,
    NEW_NODE,
    OUR_CORDON,
    OUR_TAINT,
    OWNER,
    REPORT,
    REPORTS,
    THEIR_CONDITION,
    THEIR_TAINT,
    UNCORDONED,
    event,
    lease,
    noted,
)
from testing.attacks.row import Patch, Request, Row, Who
from testing.cluster_objects import Pool

_AGO = re.compile(r"(-?\d+) s ago")
"""A time in a row: it counts from when the row is sent, and not from when its file was read."""
_ACCOUNTS = {
    Who.AGENT: "gpuhealth-agent",
    Who.UNBOUND_AGENT: "gpuhealth-agent",
    Who.PREFLIGHT: "gpuhealth-preflight",
    Who.UNBOUND_PREFLIGHT: "gpuhealth-preflight",
    Who.CONTROLLER: "gpuhealth-controller",
    Who.BURNIN: "default",
}


def _time(age: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def with_times(text: str) -> str:
    """The text in which each "N s ago" is replaced by that time."""
    return _AGO.sub(lambda found: _time(int(found[1])), text)


class Tokens:
    """Tokens of service accounts, as pods get them."""

    def __init__(self, plane: ControlPlane, namespace: str = "gpuhealth") -> None:
        self._plane, self._namespace = plane, namespace
        self._tokens: dict[tuple[str, str], str] = {}

    def get(self, node: str, account: str = "gpuhealth-agent") -> str:
        """The token of a pod that runs on the node; without a node one that is bound to no pod."""
        if (node, account) not in self._tokens:
            pod = f"{account}-{node}" if node else ""
            if pod:
                spec = {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "c", "image": "i"}]}
                metadata = {"name": pod, "namespace": self._namespace}
                self._plane.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}])
            self._tokens[node, account] = self._plane.service_account_token(self._namespace, account, pod=pod)
        return self._tokens[node, account]


class Scene:
    """Nodes with all objects about them.

    They are the thief's, another, one that a person tainted and cordoned, one quarantined by a taint, and one by a
    cordon, which a person has tainted.
    """

    def __init__(self, plane: ControlPlane, pool: Pool, tokens: Tokens, namespace: str = "gpuhealth") -> None:
        self.plane, self.name, self.tokens, self.namespace = plane, pool.name, tokens, namespace
        self._pool = pool
        template = plane.request("GET", f"/api/v1/namespaces/{namespace}/podtemplates/gpuhealth-burnin")["template"]
        self._image = template["spec"]["containers"][0]["image"]
        self.mine, self.other, self.persons, self.out, self.cordoned = pool.nodes(5)
        for node in (self.mine, self.other):
            self._populate(node)
        for node, notes in ((self.persons, {}), (self.out, UNCORDONED), (self.cordoned, OUR_CORDON)):
            pool.patch(node, {"spec": {"taints": [OUR_TAINT], "unschedulable": True}, **noted(annotations=notes)})
        self.uid = pool.get(self.mine)["metadata"]["uid"]
        unmarked = lease(self.name, f"{self.name}.5", self.other, seconds=1, age=60)
        del unmarked["metadata"]["labels"]
        leases = [
            lease(self.name, f"{self.name}.0", self.other),
            lease(self.name, f"{self.name}.1", self.mine),
            lease(self.name, f"{self.name}.window.0", self.other, seconds=3600),
            lease(self.name, f"{self.name}.window.1", self.mine, seconds=3600),
            lease(self.name, f"{self.name}.window.2", self.other, seconds=60, age=120),
            unmarked,
        ]
        plane.apply(self.filled(leases))

    def _populate(self, node: str) -> None:
        plane, pool = self.plane, self._pool
        marks = {"labels": {"a": "b", STATE_LABEL: "healthy"}, "annotations": {"c": "d"}, "finalizers": ["f/g"]}
        pool.patch(node, {"metadata": marks, "spec": {"taints": [THEIR_TAINT, NEW_NODE]}})
        status = {"conditions": [THEIR_CONDITION], "capacity": {"cpu": "8"}, "allocatable": {"cpu": "8"}}
        plane.request("PATCH", f"/api/v1/nodes/{node}/status", {"status": status}, content_type=Patch.STRATEGIC)
        owner = {**OWNER, "name": node, "uid": pool.get(node)["metadata"]["uid"]}
        report: Document = {**REPORT, "metadata": {"name": node, "ownerReferences": [owner]}}
        about = {"kind": "Node", "name": node}
        discovered = {"metadata": {"name": node, "labels": {"feature": "x"}}}
        plane.apply([report, event(f"{node}.1", about), event(f"{node}.2", about, "kubelet")])
        plane.apply([{"apiVersion": "v1", "kind": "Node", **discovered}])
        told = {"drain": {"phase": "draining", "deadline": "2026-03-08T12:00:00Z"}, "verdict": "unhealthy"}
        plane.request("PATCH", f"{REPORTS}/{node}/status", {"status": told}, content_type=Patch.MERGE)

    def remove(self) -> None:
        """Lets the nodes be deleted, and deletes them."""
        for node in (self.mine, self.other):
            self._pool.patch(node, {"metadata": {"finalizers": None}})
        leases = LEASES.replace("gpuhealth/", f"{self.namespace}/")
        self.plane.request("DELETE", f"{leases}?labelSelector=gpuhealth.io/budget={self.name}")
        self._pool.remove()

    def filled(self, value: Any) -> Any:
        """A row with the names of this scene in the place of MINE, OTHER and the like, and with the namespace and the
        burn-in image of this installation."""
        text = json.dumps(value)
        names = {
            "MINE": self.mine,
            "OTHER": self.other,
            "PERSONS": self.persons,
            "/OUT": f"/{self.out}",
            "CORDONED": self.cordoned,
        }
        for word, name in {**names, "POOL": self.name, "UID": self.uid}.items():
            text = text.replace(word, name)
        text = text.replace("namespaces/gpuhealth/", f"namespaces/{self.namespace}/")
        text = text.replace('"namespace": "gpuhealth"', f'"namespace": "{self.namespace}"')
        text = text.replace(f'"image": "{BURNIN_IMAGE}"', f'"image": "{self._image}"')
        return json.loads(with_times(text))

    def token(self, row: Row) -> str:
        """The token with which a row's requests are sent."""
        bound = row.who not in {Who.UNBOUND_AGENT, Who.UNBOUND_PREFLIGHT}
        nodes = {"MINE": self.mine, "PERSONS": self.persons, "OUT": self.out, "CORDONED": self.cordoned}
        node = nodes[row.on]
        return self.tokens.get(node if bound else "", _ACCOUNTS[row.who])

    def send(self, row: Row, *, dry_run: bool = False) -> None:
        """Sends a row's requests. Raises RequestError where one is refused."""
        for request in row.requests[:-1]:
            self._send(row, request, dry_run=False)
        self._send(row, row.requests[-1], dry_run=dry_run)

    def _send(self, row: Row, request: Request, *, dry_run: bool) -> None:
        path, body = self.filled([request.path, request.body])
        if request.method == "PUT" and "resourceVersion" not in body["metadata"]:
            body["metadata"]["resourceVersion"] = self.plane.request("GET", path)["metadata"]["resourceVersion"]
        query = {"dryRun": "All"} if dry_run and request.method != "GET" else {}
        query |= {"fieldManager": "thief", "force": "true"} if request.patch is Patch.APPLY else {}
        path += "?" + "&".join(f"{key}={value}" for key, value in query.items()) if query else ""
        content = request.patch or "application/json"
        self.plane.request(request.method, path, body, content_type=content, token=self.token(row))
