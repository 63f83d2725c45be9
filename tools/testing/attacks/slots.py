"""Attacks on Leases with the token of an agent."""

from __future__ import annotations

from testing.attacks.nodes import NOT_YOURS
from testing.attacks.objects import FORGED, LEASES, OWNER, lease
from testing.attacks.row import RBAC, Patch, Request, Row, Who, delete, merge, post, put

NAMED, CLOCK, HELD, OWNED = (
    "named after its budget",
    "is the API server's time",
    "has not run out",
    "neither finalizers nor",
)
SIZE, BUDGET = "no larger than 16 KiB", "stays with its budget"
WINDOW = "POOL.window.1"


def _agent(what: str, why: str, *requests: Request, by: str = "gpuhealth-slots", who: Who = Who.AGENT) -> Row:
    return Row(who, what, by, why, requests)


def _allowed(what: str, why: str, *requests: Request) -> Row:
    return Row(Who.AGENT, what, "", why, requests)


_TAKEN = [
    _agent("take a slot for another node", NOT_YOURS, post(LEASES, lease("POOL", "POOL.7", "OTHER", node="MINE"))),
    _agent("take a slot", NOT_YOURS, post(LEASES, lease("POOL", "POOL.7", "MINE")), who=Who.UNBOUND_AGENT),
    _agent("take a slot", "cannot create", post(LEASES, lease("POOL", "POOL.7", "MINE")), by=RBAC, who=Who.PREFLIGHT),
    _agent("become the controller's leader", NAMED, post(LEASES, lease("POOL", "gpuhealth-controller", "MINE"))),
    _agent(
        "take a slot under another node's label", NAMED, post(LEASES, lease("POOL", "POOL.7", "MINE", node="OTHER"))
    ),
    _agent("hide whose slot it is", NAMED, post(LEASES, lease("POOL", "POOL.7", "MINE", node=""))),
    _agent("label a slot with a part of the name", NAMED, post(LEASES, lease("POOL", "POOL.7", "MINE", node="1"))),
    _agent("hide which set a slot is of", NAMED, post(LEASES, lease("POOL", "POOL.7", "MINE", of_set=""))),
    _agent("label a slot as one of another set", NAMED, post(LEASES, lease("POOL", "POOL.7", "MINE", of_set="window"))),
    _agent(
        "the same of the window",
        NAMED,
        post(LEASES, lease("POOL", "POOL.window.7", "MINE", of_set="unavailable", seconds=60)),
    ),
    _agent("the same of a fault", NAMED, post(LEASES, lease("POOL", "POOL.fault.x.7", "MINE", of_set="x", seconds=60))),
    _agent("name a budget with a dot", NAMED, post(LEASES, lease("POOL.window", "POOL.window.7", "MINE"))),
    _agent("a slot without a number", NAMED, post(LEASES, lease("POOL", "POOL.x", "MINE"))),
    _agent("a slot with a number of seven digits", SIZE, post(LEASES, lease("POOL", "POOL.1000000", "MINE"))),
    _agent(
        "a slot that fills the memory of agents",
        SIZE,
        post(LEASES, lease("POOL", "POOL.7", "MINE", annotations={"a": "x" * 17_000})),
    ),
    _agent("a slot that cannot be deleted", OWNED, post(LEASES, lease("POOL", "POOL.7", "MINE", finalizers=["x.y/z"]))),
    _agent(
        "a slot that is deleted with a Node",
        OWNED,
        post(LEASES, lease("POOL", "POOL.7", "MINE", ownerReferences=[OWNER])),
    ),
    _agent("a slot of the future", CLOCK, post(LEASES, lease("POOL", "POOL.7", "MINE", age=-3600))),
    _agent("a slot of the past", CLOCK, post(LEASES, lease("POOL", "POOL.7", "MINE", age=3600))),
    _agent(
        "a slot of the year 9999",
        CLOCK,
        post(LEASES, lease("POOL", "POOL.7", "MINE", time="9999-12-31T23:59:59.000000Z")),
    ),
    _agent(
        "a slot of the year 0",
        "renewTime",
        post(LEASES, lease("POOL", "POOL.7", "MINE", time="0000-01-01T00:00:00.000000Z")),
    ),
    _agent(
        "a slot of a time zone that is none",
        "renewTime",
        post(LEASES, lease("POOL", "POOL.7", "MINE", time="2026-03-01T12:00:00.000000+99:99")),
    ),
    _agent(
        "forge the API server's time",
        CLOCK,
        post(LEASES, lease("POOL", "POOL.7", "MINE", time="2099-01-01T00:00:00.000000Z", managedFields=[FORGED])),
    ),
    _agent(
        "a slot of maxUnavailable that runs out",
        "has no duration",
        post(LEASES, lease("POOL", "POOL.7", "MINE", seconds=60)),
    ),
    _agent(
        "a slot that lasts 68 years",
        "a year at the most",
        post(LEASES, lease("POOL", "POOL.window.7", "MINE", seconds=2**31 - 1)),
    ),
    _agent(
        "a Lease of another namespace",
        "cannot create",
        post(
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            {**lease("POOL", "POOL.7", "MINE"), "metadata": {"name": "OTHER"}},
        ),
        by=RBAC,
    ),
]
_CHANGED = [
    _agent("release another's slot", "only the holder", delete(f"{LEASES}/POOL.0")),
    _agent("release all slots", "cannot deletecollection", delete(LEASES), by=RBAC),
    _agent("patch a slot", "cannot patch", merge(f"{LEASES}/POOL.0", {"spec": {"holderIdentity": "MINE"}}), by=RBAC),
    _agent("take another's slot", HELD, put(f"{LEASES}/POOL.0", lease("POOL", "POOL.0", "MINE"))),
    _agent(
        "take another's slot of the window",
        HELD,
        put(f"{LEASES}/POOL.window.0", lease("POOL", "POOL.window.0", "MINE", seconds=3600)),
    ),
    _agent(
        "the same with a time at which it has run out",
        CLOCK,
        put(f"{LEASES}/POOL.window.0", lease("POOL", "POOL.window.0", "MINE", seconds=3600, age=-7200)),
    ),
    _agent("give the own slot to another node", NOT_YOURS, put(f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "OTHER"))),
    _agent(
        "make the own slot undeletable",
        OWNED,
        put(f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE", finalizers=["x.y/z"])),
    ),
    _agent(
        "wipe who set the time", CLOCK, put(f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE", managedFields=[{}]))
    ),
    _agent(
        "set a later time with a forged owner",
        CLOCK,
        put(f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE", age=-3600, managedFields=[FORGED])),
    ),
    _agent(
        "the same with two",
        CLOCK,
        put(f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE", age=-3600, managedFields=[FORGED, FORGED])),
    ),
    _agent(
        "make a slot of the window one of no set",
        NAMED,
        put(f"{LEASES}/{WINDOW}", lease("POOL.window", WINDOW, "MINE")),
    ),
    _agent("take a Lease that is no slot", BUDGET, put(f"{LEASES}/POOL.5", lease("POOL", "POOL.5", "MINE"))),
    _agent(
        "two requests: renew the own slot with a forged owner, then with a later time",
        CLOCK,
        put(
            f"{LEASES}/{WINDOW}",
            lease("POOL", WINDOW, "MINE", seconds=3600, managedFields=[FORGED | {"time": "0 s ago"}]),
        ),
        put(f"{LEASES}/{WINDOW}", lease("POOL", WINDOW, "MINE", seconds=3600, age=-7200)),
    ),
    _agent(
        "two requests: shorten the own slot, then pass it on",
        NOT_YOURS,
        put(f"{LEASES}/{WINDOW}", lease("POOL", WINDOW, "MINE", seconds=1)),
        put(f"{LEASES}/{WINDOW}", lease("POOL", WINDOW, "OTHER", seconds=1)),
    ),
    _agent(
        "turn a slot into the leader's Lease by server-side apply",
        "cannot patch",
        Request("PATCH", f"{LEASES}/gpuhealth-controller", lease("POOL", "gpuhealth-controller", "MINE"), Patch.APPLY),
        by=RBAC,
    ),
]
_ALLOWED = [
    _allowed("take a slot", "what an agent does", post(LEASES, lease("POOL", "POOL.7", "MINE"))),
    _allowed(
        "take a slot after a wait of nine minutes",
        "what an agent does",
        post(LEASES, lease("POOL", "POOL.7", "MINE", age=540)),
    ),
    _allowed(
        "take a slot of the window for a year",
        "what an agent does",
        post(LEASES, lease("POOL", "POOL.window.7", "MINE", seconds=365 * 86400)),
    ),
    _allowed(
        "take a slot of a fault",
        "what an agent does",
        post(LEASES, lease("POOL", "POOL.fault.xid.79.7", "MINE", seconds=60)),
    ),
    _allowed("renew the own slot", "what an agent does", put(f"{LEASES}/POOL.1", lease("POOL", "POOL.1", "MINE"))),
    _allowed(
        "take a slot that has run out",
        "what an agent does",
        put(f"{LEASES}/POOL.window.2", lease("POOL", "POOL.window.2", "MINE", seconds=60)),
    ),
    _allowed("release the own slot", "what an agent does", delete(f"{LEASES}/POOL.1")),
    _allowed(
        "take several slots of one budget",
        "other nodes then stay in service; the Leases name the node",
        post(LEASES, lease("POOL", "POOL.8", "MINE")),
    ),
    _allowed(
        "release the own slot of the window early",
        "it counts as one node less; the Lease was in its name",
        delete(f"{LEASES}/{WINDOW}"),
    ),
]
ROWS = [*_TAKEN, *_CHANGED, *_ALLOWED]
