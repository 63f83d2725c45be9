"""The admission policies as they are written: valid, refusing, for the right accounts, and fit for large Nodes."""

from __future__ import annotations

import kubernetes_validate  # type: ignore[import-untyped] # ships no type information
import pytest
from kube import Document, documents

from gpuhealth.cluster.kinds import PREFLIGHT_TAINT, STATE_LABEL
from gpuhealth.config import Settings
from tests.cluster.admission import ALL, CONTROLLERS, NODE_CLAIM, OF_AGENTS, POLICIES, policies, yields_bool
from tests.conftest import BASE


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("document", ALL, ids=lambda d: f"{d['kind']}/{d['metadata']['name']}")
def test_schema(document: Document, version: str) -> None:
    """Every document is valid, strictly, for a current and the newest Kubernetes."""
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("document", POLICIES, ids=lambda d: d["metadata"]["name"])
def test_policy_is_well_formed(document: Document) -> None:
    """It refuses on errors, says why, yields yes or no, is bound once, and has its parameters if it asks for them."""
    spec = document["spec"]
    assert spec["failurePolicy"] == "Fail"
    for each in spec["matchConditions"] + spec["validations"]:
        assert yields_bool(each["expression"])
    assert all(each["message"] and each["reason"] == "Forbidden" for each in spec["validations"])
    (binding,) = [d["spec"] for d in ALL if d.get("spec", {}).get("policyName") == document["metadata"]["name"]]
    asks = "params." in str(spec["variables"] + spec["validations"])
    assert asks == ("paramKind" in spec) == ("paramRef" in binding)
    assert binding.get("paramRef", {}).get("parameterNotFoundAction", "Deny") == "Deny"


def test_policies_know_who_they_are_for() -> None:
    """The accounts, the namespace and the taint's key that they name are those of the manifests and of the code."""
    accounts = {
        f"system:serviceaccount:{d['metadata']['namespace']}:{d['metadata']['name']}"
        for d in documents(BASE)
        if d["kind"] == "ServiceAccount"
    }
    request: Document = {"operation": "UPDATE", "name": "n", "userInfo": {}}
    template = [d for d in documents(BASE) if d["kind"] == "PodTemplate"]
    for policy in policies(ALL + template):
        bound = set()
        for user in accounts:
            request["userInfo"]["username"] = user
            if policy.broken(request):  # nothing in this request could be allowed
                bound.add(user.rpartition(":")[2])
        controller = {"gpuhealth-controller"}
        agents = {account.rpartition(":")[2] for account in accounts} - controller
        assert bound == (controller if policy.name in CONTROLLERS else agents)
    (parameters,) = [d for d in ALL if d["kind"] == "ConfigMap"]
    assert parameters["data"] == {"mode": Settings().mode, "preflightTaint": PREFLIGHT_TAINT}


def test_large_nodes_are_judged() -> None:
    """A Node with a thousand labels, annotations and taints of others is judged like any other."""
    (policy,) = [each for each in policies(OF_AGENTS) if each.name == "gpuhealth-nodes"]
    user = {"username": "system:serviceaccount:gpuhealth:gpuhealth-agent", "extra": {NODE_CLAIM: ["n"]}}
    strings = {f"key-{k}": "v" * 200 for k in range(1000)}
    spec = {"taints": [{"key": key, "effect": "NoSchedule"} for key in strings]}
    old = {"metadata": {"labels": strings, "annotations": strings}, "spec": spec}
    new: Document = {"metadata": {"labels": strings | {STATE_LABEL: "healthy"}, "annotations": strings}, "spec": spec}
    request = {"name": "n", "operation": "UPDATE", "userInfo": user, "object": new, "oldObject": old}
    assert policy.broken(request) == []
    del new["metadata"]["labels"]["key-999"]
    assert [rule["message"] for rule, _ in policy.broken(request)] == [
        "of a Node's labels only gpuhealth.io/state may be changed"
    ]
