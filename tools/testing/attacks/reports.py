"""Attacks on GPUHealthReports and QuarantineBudgets with the token of an agent."""

from __future__ import annotations

from testing.attacks.nodes import NOT_YOURS
from testing.attacks.objects import OWNER, REPORT, REPORTS, noted
from testing.attacks.row import RBAC, Request, Row, Who, apply, delete, json_patch, merge, post, put

MINE, OTHERS = f"{REPORTS}/MINE", f"{REPORTS}/OTHER"
BUDGETS = "/apis/gpuhealth.io/v1alpha1/quarantinebudgets"
DRAIN, OWNED, KEEPS = "only the controller", "owned by", "keeps its Node"
PAST = {"status": {"drain": {"deadline": "2020-01-01T00:00:00Z"}}}
HEALTHY = {"status": {"verdict": "healthy"}}
BUDGET = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "QuarantineBudget", "metadata": {"name": "all"}}
WIDE = {**BUDGET, "spec": {"nodeSelector": {}, "maxUnavailable": "100%"}}


def _agent(what: str, why: str, *requests: Request, by: str = "gpuhealth-reports", who: Who = Who.AGENT) -> Row:
    return Row(who, what, by, why, requests)


def _allowed(what: str, why: str, *requests: Request) -> Row:
    return Row(Who.AGENT, what, "", why, requests)


ROWS = [
    _agent("label another node's report", NOT_YOURS, merge(OTHERS, noted(labels={"a": "b"}))),
    _agent("call another node healthy", NOT_YOURS, merge(f"{OTHERS}/status", HEALTHY)),
    _agent(
        "call another node healthy, JSON patch",
        NOT_YOURS,
        json_patch(f"{OTHERS}/status", {"op": "replace", "path": "/status/verdict", "value": "healthy"}),
    ),
    _agent(
        "call another node healthy, server-side apply",
        NOT_YOURS,
        apply(f"{OTHERS}/status", "GPUHealthReport", {**noted(name="OTHER"), **HEALTHY}),
    ),
    _agent("report for a node that is not there", NOT_YOURS, post(REPORTS, REPORT | noted(name="POOL-new"))),
    _agent(
        "report under a name that the server chooses", NOT_YOURS, post(REPORTS, REPORT | noted(generateName="MINE"))
    ),
    _agent(
        "report for a node that is not there, server-side apply",
        NOT_YOURS,
        apply(f"{REPORTS}/POOL-new", "GPUHealthReport", noted(name="POOL-new")),
    ),
    _agent("write a node's report", NOT_YOURS, merge(f"{MINE}/status", HEALTHY), who=Who.UNBOUND_AGENT),
    _agent("write the node's report", "cannot patch", merge(f"{MINE}/status", HEALTHY), by=RBAC, who=Who.PREFLIGHT),
    _agent("let the controller delete pods at once", DRAIN, merge(f"{MINE}/status", PAST)),
    _agent(
        "the same by server-side apply",
        DRAIN,
        apply(f"{MINE}/status", "GPUHealthReport", {**noted(name="MINE"), **PAST}),
    ),
    _agent(
        "the same by a JSON patch",
        DRAIN,
        json_patch(
            f"{MINE}/status", {"op": "replace", "path": "/status/drain/deadline", "value": "2020-01-01T00:00:00Z"}
        ),
    ),
    _agent("forget a drain", DRAIN, merge(f"{MINE}/status", {"status": {"drain": None}})),
    _agent("forget the whole status", DRAIN, merge(f"{MINE}/status", {"status": None})),
    _agent("add a finalizer to the report", "finalizers", merge(MINE, noted(finalizers=["x/y"]))),
    _agent("name another Node as owner", OWNED, merge(MINE, noted(ownerReferences=[{**OWNER, "name": "OTHER"}]))),
    _agent("name a pod as owner", OWNED, merge(MINE, noted(ownerReferences=[{**OWNER, "kind": "Pod"}]))),
    _agent(
        "delay the Node's deletion", OWNED, merge(MINE, noted(ownerReferences=[OWNER | {"blockOwnerDeletion": True}]))
    ),
    _agent(
        "have the report deleted by another uid", KEEPS, merge(MINE, noted(ownerReferences=[{**OWNER, "uid": "u"}]))
    ),
    _agent("leave the report without an owner", KEEPS, merge(MINE, noted(ownerReferences=None))),
    _agent("delete a report", "cannot delete", delete(OTHERS), by=RBAC),
    _agent("delete all reports", "cannot deletecollection", delete(REPORTS), by=RBAC),
    _agent("replace a report", "cannot update", put(MINE, REPORT | noted(name="MINE")), by=RBAC),
    _agent("create a budget for all nodes", "cannot create", post(BUDGETS, WIDE), by=RBAC),
    _agent("widen a budget", "cannot patch", merge(f"{BUDGETS}/POOL", {"spec": {"maxUnavailable": "100%"}}), by=RBAC),
    _agent(
        "say that a budget has a million nodes",
        "cannot patch",
        merge(f"{BUDGETS}/POOL/status", {"status": {"size": 10**6}}),
        by=RBAC,
    ),
    _agent("delete a budget", "cannot delete", delete(f"{BUDGETS}/POOL"), by=RBAC),
    _allowed("name its Node as owner", "what an agent does", merge(MINE, noted(ownerReferences=[OWNER]))),
    _allowed("report the own node healthy", "what an agent does", merge(f"{MINE}/status", HEALTHY)),
    _allowed(
        "request a drain of the own node",
        "the controller drains only a node that has our taint",
        merge(f"{MINE}/status", {"status": {"quarantine": {"state": "quarantined", "drain": True}}}),
    ),
    _allowed(
        "report an absurd time",
        "the controller leaves the report out",
        merge(f"{MINE}/status", {"status": {"burnin": {"testedAt": "0000-01-01T00:00:00Z"}}}),
    ),
    _allowed(
        "report burn-ins of a hundred GPUs that are none",
        "in the comparison of the fleet no node counts for more GPUs than others have",
        merge(f"{MINE}/status", {"status": {"burnin": {"gpus": {f"GPU-{k}": {"model": "H100"} for k in range(100)}}}}),
    ),
]
