"""Each check of an installation on a real API server: it finds what is wrong, and nothing once that is mended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kube import ControlPlane
from testing.cluster_objects import budget
from testing.installation import GPU_LABEL, Installation

from gpuhealth import __version__
from gpuhealth.installation.checks import CHECKS
from gpuhealth.installation.checks.gpu_stack import part_of
from gpuhealth.installation.problem import CannotCheckError, Level
from gpuhealth.runtime.settings_file import digest

APPS = "/apis/apps/v1/namespaces/gpuhealth"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CONFIG = "/api/v1/namespaces/gpuhealth/configmaps/gpuhealth"
JSON_PATCH = "application/json-patch+json"
RUNTIME = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}


@pytest.mark.parametrize(
    "name", ["server", "definitions", "rights", "settings", "versions", "pods", "burnins", "clocks"]
)
def test_nothing_wrong(installation: Installation, name: str) -> None:
    """Right after the manifests were applied these checks find nothing."""
    assert installation.messages(name) == []


def test_a_definition_that_is_missing_or_old(installation: Installation, plane: ControlPlane) -> None:
    """A CustomResourceDefinition that lacks fields of this version is an error, another schema a warning."""
    path = f"{CRDS}/gpuhealthreports.gpuhealth.io"
    whole = plane.request("GET", path)["spec"]["versions"]
    status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties"
    back = [{"op": "replace", "path": "/spec/versions", "value": whole}]
    installation.changed(path, [{"op": "remove", "path": f"{status}/settingsDigest"}], back, JSON_PATCH)
    (problem,) = installation.check("definitions")
    assert problem.level is Level.ERROR
    assert "lacks status.settingsDigest" in problem.message
    installation.patch(path, back, JSON_PATCH)
    installation.patch(path, [{"op": "remove", "path": f"{status}/verdict/enum"}], JSON_PATCH)
    (problem,) = installation.check("definitions")
    assert problem.level is Level.WARNING


def test_rights_that_are_missing(installation: Installation, plane: ControlPlane) -> None:
    """A role without a verb, and a service account that is gone, are errors that name what is missing."""
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/gpuhealth-agent"
    rules = plane.request("GET", path)["rules"]
    fewer = [rule for rule in rules if rule["resources"] != ["quarantinebudgets"]]
    installation.changed(path, {"rules": fewer}, {"rules": rules})
    assert installation.messages("rights") == [
        "the agent (gpuhealth-agent) has no right to list quarantinebudgets.gpuhealth.io"
    ]
    installation.without("/api/v1/namespaces/gpuhealth/serviceaccounts/gpuhealth-preflight")
    assert "the service account gpuhealth-preflight of the preflight is missing" in installation.messages("rights")[1]


def test_settings(installation: Installation, plane: ControlPlane) -> None:
    """Settings that cannot be read are an error; agents with others than those of the ConfigMap are a warning."""
    text = plane.request("GET", CONFIG)["data"]["gpuhealth.yaml"]
    back = {"data": {"gpuhealth.yaml": text}}
    installation.changed(CONFIG, {"data": {"gpuhealth.yaml": "mode: sleep\n"}}, back)
    (message,) = installation.messages("settings")
    assert "mode: Input should be 'observe', 'taint' or 'cordon'" in message
    installation.patch(CONFIG, back)
    fresh, stale = installation.gpu_node(), installation.gpu_node()
    installation.report(fresh, settingsDigest=digest(text.encode()))
    installation.report(stale, settingsDigest="0123456789ab")
    (problem,) = installation.check("settings")
    assert problem.objects == (stale,)


def test_references(installation: Installation, plane: ControlPlane) -> None:
    """Pods that name a missing RuntimeClass or PriorityClass are refused, and images are still to be set."""
    messages = installation.messages("references")
    assert sum("name the RuntimeClass nvidia, which is missing" in message for message in messages) == 1
    assert sum("have no image of yours: registry.example.com/" in message for message in messages) == 2
    installation.create("/apis/node.k8s.io/v1/runtimeclasses", RUNTIME)
    assert not any("RuntimeClass" in message for message in installation.messages("references"))
    installation.without("/apis/scheduling.k8s.io/v1/priorityclasses/gpuhealth-burnin")
    assert any("name the PriorityClass gpuhealth-burnin" in message for message in installation.messages("references"))


def test_versions(installation: Installation) -> None:
    """Agents of another version are a warning, and information while a rollout is in progress."""
    node = installation.gpu_node()
    installation.report(node, agentVersion="0.0.1")
    (problem,) = installation.check("versions")
    assert (problem.level, problem.objects) == (Level.WARNING, (node,))
    path = f"{APPS}/daemonsets/gpuhealth-agent/status"
    numbers = {"desiredNumberScheduled": 4, "updatedNumberScheduled": 1, "currentNumberScheduled": 4}
    numbers |= {"numberMisscheduled": 0, "numberReady": 4}
    none = dict.fromkeys(numbers, 0)
    installation.changed(path, {"status": numbers}, {"status": none})
    assert [problem.level for problem in installation.check("versions")] == [Level.INFO, Level.INFO]
    installation.report(installation.gpu_node(), agentVersion=__version__)
    assert len(installation.check("versions")) == 2


WAITING: dict[str, tuple[dict[str, Any], str]] = {
    "image": (
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "example.com/a:1"'}}},
        "the image example.com/a:1 cannot be pulled: Back-off pulling image",
    ),
    "crash": (
        {
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed"}},
            "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "message": "a\ngpuhealth: bad setting\n"}},
        },
        "the container agent ends again and again: exit code 3: gpuhealth: bad setting",
    ),
    "memory": (
        {
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        },
        "ends again and again: exit code 137, OOMKilled",
    ),
    "config": (
        {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'configmap "gpuhealth" not found'}}},
        'does not start: CreateContainerConfigError: configmap "gpuhealth" not found',
    ),
}


@pytest.mark.parametrize(("container", "expected"), WAITING.values(), ids=WAITING)
def test_agents_that_do_not_run(installation: Installation, container: dict[str, Any], expected: str) -> None:
    """A node whose agent's pod does not run is listed with the reason of the kubelet; a working one is not."""
    well, bad = installation.gpu_node(), installation.gpu_node()
    installation.agent(well)
    installation.report(well)
    common = {"name": "agent", "image": "example.com/a:1", "imageID": "", "ready": False, "restartCount": 7}
    installation.agent(bad, status={"phase": "Pending", "containerStatuses": [common | container]})
    (problem,) = installation.check("agents")
    assert problem.objects == (bad,)
    assert expected in problem.message


def test_an_agent_whose_container_cannot_be_made(installation: Installation, plane: ControlPlane) -> None:
    """Of a pod that waits for its containers, the kubelet's last Event is the reason."""
    node = installation.gpu_node()
    path = installation.agent(node, status={"phase": "Pending"})
    message = 'Failed to create pod sandbox: failed to get sandbox runtime: no runtime for "nvidia" is configured'
    pod = plane.request("GET", path)["metadata"]
    event = {
        "metadata": {"name": "sandbox"},
        "type": "Warning",
        "reason": "FailedCreatePodSandBox",
        "message": message,
        "involvedObject": {"kind": "Pod", "namespace": "gpuhealth", "name": pod["name"], "uid": pod["uid"]},
    }
    assert ["not ready yet" in each for each in installation.messages("agents")] == [True]
    installation.create("/api/v1/namespaces/gpuhealth/events", event)
    assert [message in each for each in installation.messages("agents")] == [True]


def test_agents_that_are_missing(installation: Installation, plane: ControlPlane) -> None:
    """Nodes without a pod of the DaemonSet: no label, an untolerated taint, refused by the API server, unknown."""
    assert installation.check("agents") == []
    node = installation.gpu_node()
    assert ["has made no pod" in message for message in installation.messages("agents")] == [True]
    daemon_set = plane.request("GET", f"{APPS}/daemonsets/gpuhealth-agent")
    event = {
        "metadata": {"name": "refused"},
        "reason": "FailedCreate",
        "message": 'Error creating: pods "gpuhealth-agent-" is forbidden: RuntimeClass "nvidia" not found',
        "involvedObject": {"kind": "DaemonSet", "namespace": "gpuhealth", "uid": daemon_set["metadata"]["uid"]},
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    installation.create("/api/v1/namespaces/gpuhealth/events", event)
    (message,) = installation.messages("agents")
    assert 'refuses the pod: Error creating: pods "gpuhealth-agent-" is forbidden' in message
    back = {"spec": {"template": {"spec": {"tolerations": [{"operator": "Exists"}]}}}}
    some = {"spec": {"template": {"spec": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}}}}
    installation.changed(f"{APPS}/daemonsets/gpuhealth-agent", some, back)
    installation.pool.patch(node, {"spec": {"taints": [{"key": "team", "value": "a", "effect": "NoSchedule"}]}})
    assert ["does not tolerate team=a:NoSchedule" in message for message in installation.messages("agents")] == [True]
    installation.pool.patch(node, {"spec": {"taints": None}, "metadata": {"labels": dict.fromkeys(GPU_LABEL)}})
    room = {"capacity": {"nvidia.com/gpu": "8"}}
    installation.patch(f"/api/v1/nodes/{node}/status", {"status": room})
    assert ["no label of the node matches" in message for message in installation.messages("agents")] == [True]


def test_silent_agents(installation: Installation) -> None:
    """An agent that runs and has not reported, and one that the controller found silent, are errors."""
    node = installation.gpu_node()
    installation.agent(node)
    assert ["has not reported" in message for message in installation.messages("agents")] == [True]
    installation.report(node)
    assert installation.check("agents") == []
    silent = {"type": "GPUHealthy", "status": "Unknown", "reason": "AgentSilent", "message": "as the controller"}
    installation.set_condition(node, silent, "gpuhealth-controller")
    assert ["silent" in message for message in installation.messages("agents")] == [True]


def test_pods_of_the_controller(installation: Installation) -> None:
    """A controller that finds no node is an error with the scheduler's reason, and none once it is ready."""
    labels = {"app.kubernetes.io/name": "gpuhealth", "app.kubernetes.io/component": "controller"}
    body = {"metadata": {"name": "c", "labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    path = installation.create("/api/v1/namespaces/gpuhealth/pods", body)
    message = "0/3 nodes are available: 3 Insufficient memory."
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    installation.patch(f"{path}/status", {"status": {"phase": "Pending", "conditions": [unplaced]}})
    assert installation.messages("pods") == [
        f"the controller does not run (c): the scheduler finds no place: {message}"
    ]
    installation.patch(f"{path}/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert installation.check("pods") == []


def test_the_leader(installation: Installation) -> None:
    """Without a Lease, and with one that has expired, no controller leads."""
    assert ["no controller leads" in message for message in installation.messages("controller")] == [True]
    now = datetime.now(UTC)
    spec = {"holderIdentity": "c-1", "leaseDurationSeconds": 15, "renewTime": f"{now:%Y-%m-%dT%H:%M:%S.%fZ}"}
    leases = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
    path = installation.create(leases, {"metadata": {"name": "gpuhealth-controller"}, "spec": spec})
    assert installation.check("controller") == []
    installation.patch(path, {"spec": {"renewTime": f"{now - timedelta(minutes=5):%Y-%m-%dT%H:%M:%S.%fZ}"}})
    (message,) = installation.messages("controller")
    assert "c-1 was the last" in message
    installation.changed(
        f"{APPS}/deployments/gpuhealth-controller", {"spec": {"replicas": 0}}, {"spec": {"replicas": 2}}
    )
    assert ["there is no controller" in message for message in installation.messages("controller")] == [True]


def test_budgets(installation: Installation, plane: ControlPlane) -> None:
    """No budget, one without nodes, one for all nodes at once, a full one, two that overlap, nodes without one."""
    nodes = [installation.gpu_node() for _ in range(3)]
    assert ["there is no QuarantineBudget" in message for message in installation.messages("budgets")] == [True]
    pool = installation.pool
    pool.budget(1, nodeSelector={"matchLabels": {"pool": "nobody"}})
    messages = installation.messages("budgets")
    assert [f"the budget {pool.name} selects no GPU node" in message for message in messages] == [True, False]
    assert "they are never quarantined" in messages[1]
    pool.budget("100%")
    assert ["lets all 3 of its nodes be out at once, which are all" in m for m in installation.messages("budgets")] == [
        True
    ]
    pool.budget(0)
    assert ["allows no node" in message for message in installation.messages("budgets")] == [True]
    pool.budget(1)
    assert installation.check("budgets") == []
    path = f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{pool.name}"
    installation.patch(f"{path}/status", {"status": {"used": 1}})
    assert [problem.level for problem in installation.check("budgets")] == [Level.INFO]
    installation.patch(f"{path}/status", {"status": {"blocked": 2}})
    assert ["is full (1 of 1) and keeps 2" in message for message in installation.messages("budgets")] == [True]
    installation.patch(f"{path}/status", {"status": {"used": 0, "blocked": 0}})
    plane.apply([budget(f"{pool.name}-b", pool.labels, 1)])
    try:
        (problem,) = installation.check("budgets")
        assert problem.level is Level.INFO
        assert "a node there needs a slot in each" in problem.message
    finally:
        plane.request("DELETE", f"{path}-b")
    assert len(nodes) == 3


def test_the_gpu_stack(installation: Installation) -> None:
    """A device plugin with the tolerations of its chart is a warning with the tolerations that it lacks."""
    labels = {"app": "nvidia-device-plugin-daemonset"}
    container = {"name": "nvidia-device-plugin-ctr", "image": "nvcr.io/nvidia/k8s-device-plugin:v0.17.0"}
    tolerations: list[dict[str, str]] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    spec = {"containers": [container], "tolerations": tolerations}
    body = {
        "metadata": {"name": "nvidia-device-plugin-daemonset"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }
    path = installation.create("/apis/apps/v1/namespaces/kube-system/daemonsets", body)
    (problem,) = installation.check("gpu-stack")
    assert "kube-system/nvidia-device-plugin-daemonset" in problem.message
    assert "{key: gpuhealth.io/preflight, operator: Exists, effect: NoSchedule}" in problem.fix
    more = [{"key": f"gpuhealth.io/{name}", "operator": "Exists"} for name in ("unhealthy", "preflight")]
    installation.patch(path, {"spec": {"template": {"spec": {"tolerations": tolerations + more}}}})
    assert installation.check("gpu-stack") == []


PARTS = {
    "gpu-operator/nvidia-driver-daemonset nvcr.io/nvidia/driver:550.90.07-ubuntu22.04": "the driver",
    "gpu-operator/nvidia-container-toolkit-daemonset nvcr.io/nvidia/k8s/container-toolkit:v1.16.1-ubuntu20.04": (
        "the container toolkit"
    ),
    "kube-system/nvidia-gpu-device-plugin gke.gcr.io/nvidia-gpu-device-plugin@sha256:0123": "the device plugin",
    "nvidia/dra-kubelet-plugin nvcr.io/nvidia/k8s-dra-driver-gpu:v25.3.0": "the DRA driver",
    "network/mofed-ubuntu22.04 mirror.example.com:5000/mellanox/doca-driver:24.10": "the network driver",
    "nfd/nfd-node-feature-discovery-worker registry.k8s.io/nfd/node-feature-discovery:v0.16.4": (
        "the worker of node feature discovery"
    ),
    "nfd/nfd-topology-updater registry.k8s.io/nfd/node-feature-discovery:v0.16.4": None,
    "gpu-operator/nvidia-dcgm-exporter nvcr.io/nvidia/k8s/dcgm-exporter:3.3.7": None,
    "kube-system/ebs-csi-node example.com/csi/driver:v1": None,
}


@pytest.mark.parametrize(("daemon_set", "expected"), PARTS.items())
def test_parts_of_the_gpu_stack(daemon_set: str, expected: str | None) -> None:
    """DaemonSets of the public charts are recognised by their images, also in another registry; others are not."""
    name, image = daemon_set.split()
    spec = {"containers": [{"image": image}], "initContainers": [{"image": "nvcr.io/nvidia/gpu-operator-validator:1"}]}
    item = {"metadata": {"name": name.rpartition("/")[2]}, "spec": {"template": {"spec": spec}}}
    part = part_of(item)
    assert (part and part.what) == expected


def test_clocks(installation: Installation) -> None:
    """A node whose kubelet writes a time ahead of the API server's is a warning; one that is right is not."""
    node = installation.gpu_node()
    times = {sign: f"{datetime.now(UTC) + sign * timedelta(minutes=10):%Y-%m-%dT%H:%M:%S.%fZ}" for sign in (-1, 0, 1)}
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    path = installation.create(leases, {"metadata": {"name": node}, "spec": {"renewTime": times[0]}})
    assert installation.check("clocks") == []
    for sign, words in ((1, "s ahead of"), (-1, "s behind")):
        installation.patch(path, {"spec": {"renewTime": times[sign]}})
        (message,) = installation.messages("clocks")
        assert node in message
        assert words in message


def test_two_writers_of_one_condition(installation: Installation) -> None:
    """Another program that writes our condition is named; agent and controller may."""
    node = installation.gpu_node()
    installation.report(node)
    assert installation.check("writers") == []
    other = {"type": "GPUHealthy", "status": "False", "reason": "Other", "message": "of another program"}
    installation.set_condition(node, other, "node-problem-detector")
    assert installation.messages("writers") == [f"node-problem-detector writes the condition GPUHealthy of {node}, too"]


def test_two_writers_of_a_mirror(installation: Installation, plane: ControlPlane) -> None:
    """Of another program's conditions those matter that the settings make agents write, too."""
    node = installation.gpu_node()
    other = {"type": "AcceleratedHardwareReady", "status": "True", "reason": "Other", "message": "of a platform"}
    installation.set_condition(node, other, "eks-node-monitoring-agent")
    assert installation.check("writers") == []
    text = plane.request("GET", CONFIG)["data"]["gpuhealth.yaml"]
    with_mirror = f"{text}\nconditions: [{{type: AcceleratedHardwareReady}}]\n"
    data = {"data": {"gpuhealth.yaml": with_mirror}}
    installation.changed(CONFIG, data, {"data": {"gpuhealth.yaml": text}})
    (message,) = installation.messages("writers")
    assert message == f"eks-node-monitoring-agent writes the condition AcceleratedHardwareReady of {node}, too"


def test_two_installations(installation: Installation, plane: ControlPlane) -> None:
    """A second DaemonSet of agents in another namespace is an error."""
    found = plane.request("GET", f"{APPS}/daemonsets/gpuhealth-agent")
    body = {"metadata": {"name": "second", "labels": found["metadata"]["labels"]}, "spec": found["spec"]}
    installation.create("/apis/apps/v1/namespaces/default/daemonsets", body)
    assert "gpuhealth is installed 2 times: default/second, gpuhealth/gpuhealth-agent" in installation.messages(
        "writers"
    )


def test_burnins(installation: Installation) -> None:
    """Nodes that wait for a preflight without a DaemonSet, and a toleration that lacks another key, are errors."""
    installation.without(f"{APPS}/daemonsets/gpuhealth-preflight")
    assert installation.check("burnins") == []
    node = installation.gpu_node()
    taint = {"key": "gpuhealth.io/preflight", "value": "pending", "effect": "NoSchedule"}
    installation.pool.patch(node, {"spec": {"taints": [taint]}})
    assert ["there is no DaemonSet that runs one" in message for message in installation.messages("burnins")] == [True]


def test_policies_of_an_old_server(installation: Installation) -> None:
    """A server without admission policies has nothing to check, and says so."""
    with pytest.raises(CannotCheckError, match="no ValidatingAdmissionPolicy") as raised:
        installation.check("admission")
    assert not raised.value.supported


def test_without_rights(installation: Installation, plane: ControlPlane) -> None:
    """Every check of an operator without any right is not made, with the reason; none says that all is well."""
    account = {"metadata": {"name": "nobody"}}
    installation.create("/api/v1/namespaces/gpuhealth/serviceaccounts", account)
    kubeconfig = plane.write_kubeconfig("nobody", plane.service_account_token("gpuhealth", "nobody"))
    for name in CHECKS.keys() - {"server", "admission"}:  # which need no right, on a server without policies
        with pytest.raises(CannotCheckError, match="not permitted"):
            installation.check(name, kubeconfig=kubeconfig)
