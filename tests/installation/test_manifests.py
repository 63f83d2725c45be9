"""The tables of what the manifests contain agree with the manifests."""

from __future__ import annotations

import pytest
from kube import documents
from testing.kubectl import built
from testing.paths import BASE
from testing.rights import granted

from gpuhealth.installation import kinds
from gpuhealth.installation.manifests import NAME, NAME_LABEL, NAMES, POLICIES, RIGHTS
from gpuhealth.installation.uninstall import REMOVED

ALL = [*documents(BASE), *built(BASE / "admission")]


@pytest.mark.parametrize("component", RIGHTS)
def test_rights(component: str) -> None:
    """The rights that are checked are those that the roles grant, no more and no fewer."""
    table = {(right.group, right.resource, right.verb) for right in RIGHTS[component]}
    assert table == granted(f"gpuhealth-{component}")


def test_policies() -> None:
    """The policies that are checked are those of daemonset/admission."""
    found = {item["metadata"]["name"] for item in ALL if item["kind"] == kinds.ADMISSION_POLICIES.kind}
    assert set(POLICIES) == found


def test_every_object_is_removed() -> None:
    """Each object of base and policies has a kind that is removed, and a name or a label by which it is found."""
    for item in ALL:
        name, known = item["metadata"]["name"], item["metadata"].get("labels", {})
        assert item["kind"] in REMOVED, item
        if item["kind"] not in {"Namespace", "CustomResourceDefinition"}:
            assert known.get(NAME_LABEL) == NAME or name in NAMES, item
