"""The controller's manifests: consistent with the code, and no permission without a reason."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube import documents
from testing.managed_cluster import Cluster
from testing.paths import BASE

from gpuhealth.controller.controller import STOP_SECONDS
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import ForbiddenError
from gpuhealth.monitors.settings import load

ALL = documents(BASE)


def named(kind: str) -> Any:
    """The controller's object of a kind."""
    (found,) = [d for d in ALL if d["kind"] == kind and d["metadata"]["name"] == "gpuhealth-controller"]
    return found


def test_every_right_has_a_reason() -> None:
    """Each rule of every role is preceded by a comment."""
    text = (BASE / "controller-rbac.yaml").read_text(encoding="utf-8")
    rules = re.findall(r"^.*\n  - apiGroups", text, flags=re.MULTILINE)
    assert len(rules) == sum(len(d["rules"]) for d in yaml.safe_load_all(text) if "rules" in d)
    assert all(rule.lstrip().startswith("#") for rule in rules)


def test_deployment(tmp_path: Path) -> None:
    """Two replicas, each found by the Service, on the port that the ConfigMap's settings give it."""
    deployment = named("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == named("Service")["spec"]["selector"]
    assert deployment["spec"]["replicas"] == 2
    (config_map,) = [d for d in ALL if d["kind"] == "ConfigMap" and d["metadata"]["name"] == "gpuhealth"]
    path = tmp_path / "gpuhealth.yaml"
    path.write_text(config_map["data"]["gpuhealth.yaml"])
    settings = load(path)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["ports"][0]["containerPort"] == settings.controller.http.port
    assert container["args"] == ["controller"]


def test_the_process_ends_within_its_grace_period() -> None:
    """The process stops itself in less time than the kubelet allows."""
    assert named("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > STOP_SECONDS


def test_memory() -> None:
    """The limit is above what was measured: a fleet of 7,500 nodes listed again while 1,000 of them are drained."""
    (container,) = named("Deployment")["spec"]["template"]["spec"]["containers"]
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert int(limit.removesuffix("Mi")) >= 1.2 * (615 + 1000 * 0.6)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/namespaces/default/secrets"),
        ("POST", "/api/v1/namespaces/default/pods"),
        ("DELETE", "/api/v1/nodes/{node}"),
        ("PUT", "/api/v1/nodes/{node}/status"),
        ("PATCH", "/apis/gpuhealth.io/v1alpha1/quarantinebudgets/any"),
        ("DELETE", "/apis/gpuhealth.io/v1alpha1/gpuhealthreports/{node}"),
        ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"),
        ("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/gpuhealth-controller"),
    ],
)
def test_what_the_controller_must_not_do(cluster: Cluster, method: str, path: str) -> None:
    """It cannot read secrets, create pods, delete nodes, or change budgets and its own permissions: 403 on each."""
    node = cluster.node()

    async def run() -> None:
        async with Client.from_kubeconfig(cluster.kubeconfig(), "controller") as client:
            content = "application/merge-patch+json" if method == "PATCH" else "application/json"
            with pytest.raises(ForbiddenError):
                await client.request(method, path.format(node=node), body={}, content_type=content)

    asyncio.run(run())
