"""Attacks on the status of Nodes with the token of an agent."""

from __future__ import annotations

from gpuhealth.api.names import OVERRIDE
from testing.attacks.nodes import MANY_OWNERS, NOT_YOURS
from testing.attacks.objects import CONDITION, NODE, OTHERS, THEIR_CONDITION, conditions, noted
from testing.attacks.row import Request, Row, Who, apply, json_patch, merge, strategic

STATUS = f"{NODE}/status"
CONDITIONS, NOTHING, BY_STATUS, ONE = (
    "conditions only",
    "nothing of a Node's status",
    "by way of its status",
    "there is one",
)
KUBELET = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 6443}}}}


def _agent(what: str, why: str, *requests: Request, who: Who = Who.AGENT) -> Row:
    return Row(who, what, "gpuhealth-node-status", why, requests)


ROWS = [
    _agent("write another node's condition", NOT_YOURS, strategic(f"{OTHERS}/status", conditions(CONDITION))),
    _agent(
        "write another node's condition, server-side apply",
        NOT_YOURS,
        apply(f"{OTHERS}/status", "Node", {**noted(name="OTHER"), **conditions(CONDITION)}),
    ),
    _agent("write a node's condition", NOT_YOURS, strategic(STATUS, conditions(CONDITION)), who=Who.UNBOUND_AGENT),
    _agent(
        "say that the node is not ready",
        CONDITIONS,
        strategic(STATUS, conditions({"type": "Ready", "status": "False"})),
    ),
    _agent(
        "change a condition of others", CONDITIONS, strategic(STATUS, conditions({**THEIR_CONDITION, "message": "x"}))
    ),
    _agent(
        "remove a condition of others",
        CONDITIONS,
        strategic(STATUS, conditions({"type": "Theirs", "$patch": "delete"})),
    ),
    _agent("replace all conditions, merge patch", CONDITIONS, merge(STATUS, conditions(CONDITION))),
    _agent(
        "add a condition of another name",
        CONDITIONS,
        strategic(STATUS, conditions({**CONDITION, "type": "NetworkUnavailable"})),
    ),
    _agent("offer more GPUs", NOTHING, strategic(STATUS, {"status": {"capacity": {"nvidia.com/gpu": "1000"}}})),
    _agent("offer no CPU", NOTHING, strategic(STATUS, {"status": {"allocatable": {"cpu": "0"}}})),
    _agent("remove a resource", NOTHING, strategic(STATUS, {"status": {"allocatable": {"cpu": None}}})),
    _agent("send the API server to another port", NOTHING, strategic(STATUS, KUBELET)),
    _agent(
        "change the node's address",
        NOTHING,
        strategic(STATUS, {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
    ),
    _agent(
        "change the node's system information",
        NOTHING,
        strategic(STATUS, {"status": {"nodeInfo": {"kubeletVersion": "v1.99.0"}}}),
    ),
    _agent(
        "list images that are not there",
        NOTHING,
        strategic(STATUS, {"status": {"images": [{"names": ["x"], "sizeBytes": 1}]}}),
    ),
    _agent("detach volumes", NOTHING, strategic(STATUS, {"status": {"volumesInUse": ["x"]}})),
    _agent("change a label by way of the status", BY_STATUS, strategic(STATUS, noted(labels={"a": "c"}))),
    _agent(
        "override the verdict by way of the status",
        BY_STATUS,
        strategic(STATUS, noted(annotations={OVERRIDE: "healthy"})),
    ),
    _agent("add a finalizer by way of the status", BY_STATUS, merge(STATUS, noted(finalizers=["f/g", "x/y"]))),
    _agent(
        "write many conditions of our name",
        ONE,
        json_patch(STATUS, *[{"op": "add", "path": "/status/conditions/-", "value": CONDITION}] * 9),
    ),
    _agent(
        "fill the object with the message", ONE, strategic(STATUS, conditions({**CONDITION, "message": "x" * 40_000}))
    ),
    Row(
        Who.AGENT,
        "change managed fields by way of the status",
        "",
        "the API server ignores it",
        (
            json_patch(
                STATUS, *({"op": "add", "path": "/metadata/managedFields/-", "value": each} for each in MANY_OWNERS)
            ),
        ),
    ),
    Row(
        Who.AGENT,
        "write the condition GPUHealthy of the own node",
        "",
        "what an agent does",
        (strategic(STATUS, conditions(CONDITION)),),
    ),
    Row(
        Who.AGENT,
        "give the condition GPUHealthy an absurd time",
        "",
        "of its own node only; such a time is ignored",
        (strategic(STATUS, conditions({**CONDITION, "lastTransitionTime": "0000-01-01T00:00:00Z"})),),
    ),
]
