"""The admission policies as they are written: taken by the API server, for the right accounts, fit for large Nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from kube import Document, MissingBinariesError, documents
from kube.policy_plugin import PolicyPlugin, problems
from testing.admission import ALL, CONTROLLERS, NODE_CLAIM, POLICIES, needed_rules, speaks_of
from testing.paths import BASE

from gpuhealth.api.names import PREFLIGHT_TAINT, STATE_LABEL
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.slots.budget import slot_sets
from gpuhealth.quarantine.slots.lease import slot_lease

AGENT = "system:serviceaccount:gpuhealth:gpuhealth-agent"


def name_of(document: Document) -> str:
    """A policy's name in a test report."""
    return str(document["metadata"]["name"])


@pytest.fixture(scope="module")
def plugin() -> Iterator[PolicyPlugin]:
    """All policies in force."""
    try:
        with PolicyPlugin() as made:
            made.put(ALL)
            yield made
    except MissingBinariesError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("document", POLICIES, ids=name_of)
def test_policy_compiles(document: Document) -> None:
    """The API server takes the policy: every expression compiles with the options that the server sets."""
    try:
        assert problems([document]) == []
    except MissingBinariesError as error:
        pytest.skip(str(error))


def test_what_does_not_compile_is_told(plugin: PolicyPlugin) -> None:
    """The plugin is as strict as the server: a list of a string and of something unknown is refused."""
    (nodes,) = [d for d in POLICIES if name_of(d) == "gpuhealth-nodes"]
    rule = {"expression": "object.kind in ['Node', dyn('x')]", "message": "m"}
    wrong = {**nodes, "metadata": {"name": "wrong"}, "spec": {**nodes["spec"], "validations": [rule]}}
    assert "expected type 'string' but found 'dyn'" in str(problems([wrong]))
    with pytest.raises(ValueError, match="expected type 'string' but found 'dyn'"):
        plugin.put([wrong])


@pytest.mark.parametrize("document", POLICIES, ids=name_of)
def test_policy_is_well_formed(document: Document) -> None:
    """It refuses on errors, says why, is bound once, and depends on no other object.

    A server that finds no parameter refuses whatever the policy matches, before it looks at the match conditions.
    """
    spec = document["spec"]
    assert spec["failurePolicy"] == "Fail"
    assert all(each["message"] and each["reason"] == "Forbidden" for each in spec["validations"])
    (binding,) = [d["spec"] for d in ALL if d.get("spec", {}).get("policyName") == name_of(document)]
    assert binding == {"policyName": name_of(document), "validationActions": ["Deny"]}
    assert "paramKind" not in spec


def _bare_requests(policy: Document) -> Iterator[Document]:
    """Requests that the policy matches, and that no account bound by it may make."""
    constraints = policy["spec"]["matchConstraints"]
    selected = constraints.get("objectSelector", {}).get("matchLabels", {})
    for rule in constraints["resourceRules"]:
        group = {"group": rule["apiGroups"][0], "version": rule["apiVersions"][0]}
        typed = {"apiVersion": "/".join(part for part in group.values() if part), "kind": "Any"}
        before = {**typed, "metadata": {"name": "n"}, "spec": {}}
        after = {**before, "metadata": {"name": "n", "labels": {**selected, "a": "b"}, "finalizers": ["x/y"]}}
        for resource in rule["resources"]:
            plural, _, subresource = resource.partition("/")
            yield {
                "uid": "u",
                "kind": {**group, "kind": "Any"},
                "resource": {**group, "resource": plural},
                "subResource": subresource,
                "namespace": "gpuhealth" if rule["scope"] == "Namespaced" else "",
                "name": "n",
                "operation": rule["operations"][0],
                "object": after,
                "oldObject": before if rule["operations"][0] == "UPDATE" else None,
            }


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
def test_policies_know_who_they_are_for(plugin: PolicyPlugin, policy: Document) -> None:
    """They bind the accounts of the manifests, each those in its name, and no other user of the cluster."""
    accounts = {name_of(d) for d in documents(BASE) if d["kind"] == "ServiceAccount"}
    users = {f"system:serviceaccount:gpuhealth:{each}" for each in accounts}
    others = {"admin", "system:node:n", "system:serviceaccount:default:default", "system:kube-scheduler"}
    others |= {f"system:serviceaccount:kube-system:{each}" for each in ("node-controller", "gpuhealth-agent")}
    bound = set()
    for request in _bare_requests(policy):
        assert speaks_of(policy, request)
        for user in users | others:
            answer = plugin.review(request | {"userInfo": {"username": user}})
            if not answer["allowed"] and f"'{name_of(policy)}'" in answer["status"]["message"]:
                bound.add(user.rpartition(":")[2] if user in users else user)
    controller = {"gpuhealth-controller"}
    assert bound == (controller if name_of(policy) in CONTROLLERS else accounts - controller)


def test_literals_are_the_settings() -> None:
    """What the policies have to know by heart is what the settings and the PodTemplate say."""
    literals = {(name_of(d), v["name"]): v["expression"] for d in POLICIES for v in d["spec"].get("variables", [])}
    assert literals["gpuhealth-nodes", "mode"] == f"'{Settings().mode}'"
    assert literals["gpuhealth-nodes", "preflightTaint"] == f"'{PREFLIGHT_TAINT}'"
    (template,) = [d["template"] for d in documents(BASE) if d["kind"] == "PodTemplate"]
    (container,) = template["spec"]["containers"]

    def words(name: str) -> list[str]:
        return re.findall(r"'([^']*)'", literals["gpuhealth-burnins", name])

    assert words("image") == [container["image"]]
    assert words("arguments") == container["args"]
    assert words("runtimeClass") == [template["spec"]["runtimeClassName"]]
    assert words("priorityClass") == [template["spec"]["priorityClassName"]]
    assert words("hostPaths") == [v["hostPath"]["path"] for v in template["spec"]["volumes"] if "hostPath" in v]
    assert words("configMaps") == [v["configMap"]["name"] for v in template["spec"]["volumes"] if "configMap" in v]
    assert words("environment") == [each["name"] for each in container["env"]]
    assert set(words("labels")) >= set(template["metadata"]["labels"])


def test_large_nodes_are_judged(plugin: PolicyPlugin) -> None:
    """A Node with a thousand labels, annotations and taints, owned by many, is judged: what is too dear is refused."""
    user = {"username": AGENT, "extra": {NODE_CLAIM: ["n"]}}
    strings = {f"key-{k}": "v" * 200 for k in range(1000)}
    spec = {"taints": [{"key": key, "effect": "NoSchedule"} for key in strings]}
    owned: Document = {"f:metadata": {"f:labels": {f"f:{key}": {} for key in strings}}}
    entry = {"operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": owned}
    owners = [entry | {"manager": f"manager-{k}"} for k in range(20)]
    kept = {"name": "n", "annotations": strings, "managedFields": owners}
    node: Document = {"apiVersion": "v1", "kind": "Node", "spec": spec}
    old = {**node, "metadata": {**kept, "labels": strings}}
    new = {**node, "metadata": {**kept, "labels": strings | {STATE_LABEL: "healthy"}}}
    request = {"uid": "u", "name": "n", "operation": "UPDATE", "userInfo": user, "object": new, "oldObject": old}
    request |= {"kind": {"group": "", "version": "v1", "kind": "Node"}}
    request |= {"resource": {"group": "", "version": "v1", "resource": "nodes"}}
    assert plugin.review(request)["allowed"]
    del new["metadata"]["labels"]["key-999"]
    message = "of a Node's labels only gpuhealth.io/state may be changed"
    assert message in plugin.review(request)["status"]["message"]
    assert needed_rules(POLICIES, [request]) == {message}


NAMES = ["n", "gpu-1.example.com", "a" * 63, "b" * 64, "c" * 80 + "-" + "d" * 62, "e" * 80 + "." + "f" * 62]
CODES = ["xid.79", "ecc.uncorrectable", "burnin." + "z" * 90, "x" + "." * 3 + "y" * 63]


@pytest.mark.parametrize("node", NAMES)
@pytest.mark.parametrize("code", CODES)
def test_every_place_is_allowed(plugin: PolicyPlugin, node: str, code: str) -> None:
    """The slots that an agent takes, whatever the names of node and fault, also those longer than a label's value."""
    spec = {"maxUnavailable": 5, "maxPerWindow": 2, "maxPerFault": 1, "window": "365d"}
    now = datetime.now(UTC).replace(microsecond=0)
    entry = {"time": now.isoformat(), "fieldsV1": {"f:spec": {"f:renewTime": {}}}}
    for needed in slot_sets({"metadata": {"name": "pool-a"}, "spec": spec}, 10, code):
        body = slot_lease(needed, f"{needed.prefix}.0", node, now)
        body["metadata"] |= {"managedFields": [entry], "namespace": "gpuhealth"}
        group = {"group": "coordination.k8s.io", "version": "v1"}
        request = {
            "uid": "u",
            "kind": {**group, "kind": "Lease"},
            "resource": {**group, "resource": "leases"},
            "name": body["metadata"]["name"],
            "namespace": "gpuhealth",
            "operation": "CREATE",
            "userInfo": {"username": AGENT, "extra": {NODE_CLAIM: [node]}},
            "object": {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **body},
        }
        assert plugin.review(request)["allowed"], plugin.review(request)["status"]["message"]
