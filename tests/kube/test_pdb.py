"""What a PodDisruptionBudget says of several pods at once."""

from __future__ import annotations

from typing import Any

import pytest

from gpuhealth.controller.pods import Pod
from gpuhealth.kube.pdb import PodDisruptionBudget, blocking_reason, read_budget

APP = {"app": "training"}


def limit(
    *, selector: Any = None, generation: int = 1, policy: str = "", version: str = "policy/v1"
) -> PodDisruptionBudget:
    """One that allows two pods of the app to go, unless something else is said."""
    spec = {"selector": {"matchLabels": APP} if selector is None else selector}
    spec |= {"unhealthyPodEvictionPolicy": policy} if policy else {}
    status = {"observedGeneration": 1, "disruptionsAllowed": 2}
    return read_budget({"metadata": {"name": "b", "generation": generation}, "spec": spec, "status": status}, version)


def member(number: int, *, labels: dict[str, str] = APP, pending: bool = False, ready: bool = True) -> Pod:
    """A pod of the gang."""
    name = f"p{number}"
    return Pod(namespace="ns", name=name, uid=name, gang="job", labels=labels, pending=pending, ready=ready)


@pytest.mark.parametrize(
    ("found", "pods", "may_go"),
    [
        (limit(), [member(1), member(2)], True),
        (limit(), [member(1), member(2), member(3)], False),
        (limit(), [member(1), member(2), member(3, labels={})], True),
        (limit(), [member(1), member(2), member(3, pending=True)], True),
        (limit(), [member(1), member(2), member(3, ready=False)], False),
        (limit(policy="IfHealthyBudget"), [member(1), member(2), member(3, ready=False)], False),
        (limit(policy="AlwaysAllow"), [member(1), member(2), member(3, ready=False)], True),
        (limit(generation=2), [member(1)], False),
        (limit(selector={}), [member(1), member(2), member(3)], False),
        (limit(selector={}, version="policy/v1beta1"), [member(1), member(2), member(3)], True),
    ],
    ids=[
        "as many as allowed",
        "one more",
        "not selected",
        "not started",
        "not ready",
        "not ready, counted",
        "not ready, not counted",
        "changed, not computed yet",
        "empty selector",
        "empty selector, v1beta1",
    ],
)
def test_what_a_budget_allows(found: PodDisruptionBudget, pods: list[Pod], may_go: bool) -> None:
    """Only the pods count that the server would ask the budget about."""
    assert (blocking_reason([found], pods) == "") is may_go
