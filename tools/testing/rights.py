"""Rights: what the manifests grant a service account, and what of it the audit log shows as used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kube import ControlPlane, Document, documents

from testing.paths import BASE

Right = tuple[str, str, str]
"""API group, resource (with a subresource), verb."""


def granted(account: str) -> set[Right]:
    """The rights by all roles that the base binds to a service account of the namespace gpuhealth."""
    all_documents = documents(BASE)
    roles = {(d["kind"], d["metadata"]["name"]): d for d in all_documents if d["kind"] in {"Role", "ClusterRole"}}
    found: set[Right] = set()
    for binding in (d for d in all_documents if d["kind"] in {"RoleBinding", "ClusterRoleBinding"}):
        if any(subject["name"] == account for subject in binding["subjects"]):
            reference = binding["roleRef"]
            found.update(_rights(roles[reference["kind"], reference["name"]]["rules"]))
    return found


def _rights(rules: Iterable[Document]) -> Iterator[Right]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                yield from ((group, resource, verb) for verb in rule["verbs"])


def used(plane: ControlPlane, account: str) -> set[Right]:
    """The rights behind all requests of a service account so far that were not refused."""
    user = f"system:serviceaccount:gpuhealth:{account}"
    found: set[Right] = set()
    for event in plane.audit():
        target = event.get("objectRef")
        refused = event.get("responseStatus", {}).get("code") == 403
        if target is None or refused or event["user"].get("username") != user:
            continue
        resource = "/".join(part for part in (target["resource"], target.get("subresource")) if part)
        found.add((target.get("apiGroup", ""), resource, event["verb"]))
    return found
