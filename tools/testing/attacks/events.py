"""Attacks on Events and other objects with the tokens of an agent, of the preflight and of a burn-in."""

from __future__ import annotations

from kube import Document

from testing.attacks.nodes import NOT_YOURS
from testing.attacks.objects import EVENTS, NODE, OWNER, PODS, event, noted
from testing.attacks.row import RBAC, Request, Row, Who, apply, delete, get, merge, post

MINE = {"kind": "Node", "name": "MINE"}
OTHER = {"kind": "Node", "name": "OTHER"}
AS, OWNED = "only as gpuhealth-agent", "no larger than 16 KiB"
NEWER = "/apis/events.k8s.io/v1/namespaces/default/events"
POD: Document = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p"},
    "spec": {"containers": [{"name": "c", "image": "i"}]},
}
TOKEN = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["x"]}}
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
ACCOUNTS = "/api/v1/namespaces/gpuhealth/serviceaccounts"


def _agent(what: str, why: str, *requests: Request, by: str = "gpuhealth-events", who: Who = Who.AGENT) -> Row:
    return Row(who, what, by, why, requests)


_EVENTS = [
    _agent("an Event about another node", NOT_YOURS, post(EVENTS, event("POOL.2", OTHER))),
    _agent("an Event about a node", NOT_YOURS, post(EVENTS, event("POOL.2", MINE)), who=Who.UNBOUND_AGENT),
    _agent("an Event about another node", NOT_YOURS, post(EVENTS, event("POOL.2", OTHER)), who=Who.PREFLIGHT),
    _agent(
        "an Event about a pod",
        NOT_YOURS,
        post(EVENTS, event("POOL.2", {"kind": "Pod", "name": "MINE", "namespace": "default"})),
    ),
    _agent(
        "an Event about another API's Node", NOT_YOURS, post(EVENTS, event("POOL.2", {**MINE, "apiVersion": "x.y/v1"}))
    ),
    _agent(
        "an Event about the own name with another's uid",
        NOT_YOURS,
        post(EVENTS, event("POOL.2", {**MINE, "uid": "OTHER"})),
    ),
    _agent("an Event related to another node", NOT_YOURS, post(EVENTS, event("POOL.2", MINE, related=OTHER))),
    _agent("an Event as the kubelet", AS, post(EVENTS, event("POOL.2", MINE, "kubelet"))),
    _agent("an Event as the controller", AS, post(EVENTS, event("POOL.2", MINE, "gpuhealth-controller"))),
    _agent("an Event of nobody", AS, post(EVENTS, event("POOL.2", MINE, ""))),
    _agent("an Event from another host", AS, post(EVENTS, event("POOL.2", MINE, source={"host": "OTHER"}))),
    _agent(
        "an Event that cannot be deleted", OWNED, post(EVENTS, event("POOL.2", MINE, metadata={"finalizers": ["x/y"]}))
    ),
    _agent(
        "an Event that a Node owns", OWNED, post(EVENTS, event("POOL.2", MINE, metadata={"ownerReferences": [OWNER]}))
    ),
    _agent("an Event of 20 KB", OWNED, post(EVENTS, event("POOL.2", MINE, message="x" * 20_000))),
    _agent("change an Event about another node", NOT_YOURS, merge(f"{EVENTS}/OTHER.1", {"count": 7})),
    _agent(
        "turn an Event about another node into an own one",
        NOT_YOURS,
        merge(f"{EVENTS}/OTHER.1", {"involvedObject": {"name": "MINE"}}),
    ),
    _agent(
        "turn an own Event into one about another node",
        NOT_YOURS,
        merge(f"{EVENTS}/MINE.1", {"involvedObject": {"name": "OTHER"}}),
    ),
    _agent("change an Event of the kubelet", AS, merge(f"{EVENTS}/MINE.2", {"message": "x"})),
    _agent(
        "an Event about another node by server-side apply",
        NOT_YOURS,
        apply(f"{EVENTS}/POOL.3", "Event", event("POOL.3", OTHER)),
    ),
    _agent(
        "an Event by the newer API",
        "cannot create",
        post(NEWER, {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}}),
        by=RBAC,
    ),
    _agent(
        "an Event of another namespace",
        "cannot create",
        post("/api/v1/namespaces/kube-system/events", {**event("e", MINE), "metadata": {"name": "e"}}),
        by=RBAC,
    ),
    _agent("delete an Event", "cannot delete", delete(f"{EVENTS}/OTHER.1"), by=RBAC),
    _agent("delete all Events", "cannot deletecollection", delete(EVENTS), by=RBAC),
    Row(
        Who.AGENT,
        "an Event about the own node",
        "",
        "what an agent does",
        (post(EVENTS, event("POOL.2", {**MINE, "uid": "MINE"}, source={"host": "MINE"})),),
    ),
    Row(Who.AGENT, "count an own Event", "", "what an agent does", (merge(f"{EVENTS}/MINE.1", {"count": 7}),)),
    Row(
        Who.PREFLIGHT,
        "an Event about the own node",
        "",
        "what the preflight does",
        (post(EVENTS, event("POOL.2", MINE)),),
    ),
]


def _without_right(what: str, why: str, request: Request, who: Who = Who.AGENT) -> Row:
    return Row(who, what, RBAC, why, (request,))


_RIGHTS = [
    _without_right("create a pod", "cannot create", post(PODS, POD)),
    _without_right("delete the controller's pods", "cannot deletecollection", delete(PODS)),
    _without_right(
        "evict a pod",
        "cannot create",
        post(f"{PODS}/p/eviction", {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "p"}}),
    ),
    _without_right(
        "bind a pod to a node",
        "cannot create",
        post(
            f"{PODS}/p/binding",
            {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": "p"},
                "target": {"kind": "Node", "name": "OTHER"},
            },
        ),
    ),
    _without_right("run a command in a pod", "cannot create", post(f"{PODS}/p/exec?command=id", None)),
    _without_right("add a container to a pod", "cannot patch", merge(f"{PODS}/p/ephemeralcontainers", {})),
    _without_right("read Secrets", "cannot list", get("/api/v1/namespaces/gpuhealth/secrets")),
    _without_right("a token of the controller", "cannot create", post(f"{ACCOUNTS}/gpuhealth-controller/token", TOKEN)),
    _without_right(
        "a token of its own that is bound to another pod",
        "cannot create",
        post(f"{ACCOUNTS}/gpuhealth-agent/token", TOKEN),
    ),
    _without_right(
        "change the settings", "cannot patch", merge("/api/v1/namespaces/gpuhealth/configmaps/gpuhealth", {"data": {}})
    ),
    _without_right(
        "change the image of the agents",
        "cannot patch",
        merge("/apis/apps/v1/namespaces/gpuhealth/daemonsets/gpuhealth-agent", {"spec": {}}),
    ),
    _without_right("delete a policy", "cannot delete", delete(f"{POLICIES}/gpuhealth-nodes")),
    _without_right(
        "more rights",
        "cannot patch",
        merge("/apis/rbac.authorization.k8s.io/v1/clusterroles/gpuhealth-agent", {"rules": []}),
    ),
    _without_right(
        "delete the definition of reports",
        "cannot delete",
        delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpuhealthreports.gpuhealth.io"),
    ),
    _without_right("label the own node", "cannot patch", merge(NODE, noted(labels={"a": "b"})), Who.BURNIN),
    _without_right("read nodes", "cannot list", get("/api/v1/nodes"), Who.BURNIN),
    _without_right("create a pod", "cannot create", post(PODS, POD), Who.BURNIN),
    _without_right("an Event", "cannot create", post(EVENTS, event("POOL.2", MINE)), Who.BURNIN),
]
ROWS = [*_EVENTS, *_RIGHTS]
