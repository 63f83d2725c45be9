"""One node through whatever may happen to it, in any order: the marks stay true to the laws."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import T0, Pool, finding, verdict

from gpuhealth.api.names import MANUAL, OUT_OF_SERVICE, OVERRIDE, TAINT
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import ApiError
from gpuhealth.model.causes import Cause
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import (
    Object,
    dismissed_codes,
    has_taint,
    is_out,
    marks_removed,
    record,
    taints,
    unschedulable,
)
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter
from gpuhealth.runtime.settings import Quarantine

CODES = st.sampled_from(["driver.not_loaded", "ecc.uncorrectable", "xid.79"])
FAULTS = st.sampled_from([409, 429, 500, 401, "reset", "lost"])
METHODS = st.sampled_from(["GET", "POST", "PATCH", "DELETE"])
THEIRS = [
    {"key": "theirs", "value": "x", "effect": "NoExecute"},
    {"key": TAINT, "value": "by-hand", "effect": "NoSchedule"},
]
QUARANTINE = Quarantine(people=("kubectl*", ""), put_back_after=0.0, put_back_per_hour=10_000)
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"


class OneNode(RuleBasedStateMachine):
    """A node with its agent's writer, people who have a hand in it, and an API server that fails."""

    plane: ControlPlane

    @initialize(mode=st.sampled_from(["taint", "cordon"]))
    def begin(self, mode: Any) -> None:
        """A node of its own without a budget."""
        self.runner = asyncio.Runner()
        self.pool = Pool(self.plane)
        self.node = self.pool.node()
        self.budget = self.pool.name
        self.mode = mode
        self.faults: set[str] = set()
        self.freed: set[str] = set()  # ended by a person, and there ever since
        self.their_taints: list[Object] = []
        self.their_cordon = False
        self.wish = False  # that it be out of service, by a person
        self.room = False
        self.proxy = self.runner.run(FaultyProxy(self.plane).__aenter__())
        self.client = Client.from_kubeconfig(self.proxy.kubeconfig, attempts=2)
        self.restart()

    # -- the agent -----------------------------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        """Restarts the agent with empty state."""
        settings = Settings(mode=self.mode, quarantine=QUARANTINE)
        self.writer = NodeWriter(self.client, settings, OwnNode(self.client, self.node))

    @rule(code=CODES)
    def fault(self, code: str) -> None:
        """Something is found that wants the node out."""
        self.faults.add(code)

    @rule(code=CODES)
    def clear(self, code: str) -> None:
        """The fault is no longer found."""
        self.faults.discard(code)
        self.freed.discard(code)

    @rule()
    def apply(self) -> None:
        """The writer makes it so, as far as the API server lets it."""
        self.applied()

    def applied(self) -> bool:
        """One pass of the writer; whether it was complete."""
        before = self.seen()
        findings = [finding(code) for code in sorted(self.faults)]
        try:
            codes = tuple(sorted(self.faults, reverse=True))
            causes = tuple(Cause(code, T0) for code in codes)
            self.runner.run(self.writer.apply(Desired(verdict=verdict(*findings), quarantine=codes, causes=causes)))
        except ApiError:
            done = False
        else:
            done = True
        after = self.seen()
        ours = record(after)
        if record(before) is None and ours is not None:
            assert self.room or ours.code == MANUAL, "nothing goes out without a slot in a budget"
            assert self.wish or ours.code != MANUAL, "nor by a wish that nobody has"
            assert OVERRIDE not in after["metadata"]["annotations"], "a person's word wins"
            assert ours.code not in self.freed, "what a person ended is not begun again"
        return done

    @rule(what=FAULTS, method=METHODS, times=st.integers(1, 3))
    def fail(self, what: int | str, method: str, times: int) -> None:
        """The API server is going to fail."""
        self.proxy.fail(what, method=method, times=times, retry_after="0")

    # -- the cluster ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.room)
    @rule()
    def make_room(self) -> None:
        """A budget with one slot."""
        self.pool.budget(1)
        self.room = True

    @precondition(lambda self: self.room)
    @rule()
    def no_room(self) -> None:
        """The budget is taken away; what is out stays out."""
        self.plane.request("DELETE", f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{self.budget}")
        self.room = False

    # -- people --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.is_out())
    @rule()
    def person_ends_it(self) -> None:
        """A person removes our taint, or uncordons what we have cordoned."""
        ours = record(self.seen())
        assert ours is not None
        if ours.cordoned:
            self.freed.add(ours.code)
            self.pool.patch(self.node, {"spec": {"unschedulable": None}})
        elif ours.tainted:
            self.freed.add(ours.code)
            self.pool.patch(self.node, {"spec": {"taints": self.their_taints or None}})

    @precondition(lambda self: self.is_out() and self.their_taints)
    @rule()
    def program_removes_it(self) -> None:
        """A program writes its own list of taints, which ends nothing."""
        path = f"/api/v1/nodes/{self.node}?fieldManager=program"
        taints = {"spec": {"taints": self.their_taints}}
        self.plane.request("PATCH", path, taints, content_type="application/merge-patch+json")

    @precondition(lambda self: record(self.seen()) is None)
    @rule(which=st.sampled_from(THEIRS))
    def person_taints(self, which: Object) -> None:
        """A person puts a taint on, or takes it off; also one of our key."""
        if which in self.their_taints:
            self.their_taints.remove(which)
        else:
            self.their_taints.append(which)
        self.pool.patch(self.node, {"spec": {"taints": self.their_taints or None}})

    @precondition(lambda self: record(self.seen()) is None)
    @rule()
    def person_cordons(self) -> None:
        """A person cordons the node, or uncordons it."""
        self.their_cordon = not self.their_cordon
        self.pool.patch(self.node, {"spec": {"unschedulable": self.their_cordon or None}})

    @rule(word=st.sampled_from(["healthy", "unmanaged", None]))
    def person_overrides(self, word: str | None) -> None:
        """A person declares the node healthy or unmanaged, or takes that back."""
        self.pool.patch(self.node, {"metadata": {"annotations": {OVERRIDE: word}}})

    @rule(wish=st.booleans())
    def person_wants_it_out(self, wish: bool) -> None:
        """A person wants the node out of service, or no longer."""
        self.wish = wish
        self.pool.patch(self.node, {"metadata": {"annotations": {OUT_OF_SERVICE: "why" if wish else None}}})
        if not wish:
            self.freed.discard(MANUAL)

    # -- what holds ----------------------------------------------------------------------------------------------------

    def seen(self) -> Object:
        """The Node as it is."""
        return self.pool.get(self.node)

    def is_out(self) -> bool:
        """Whether it is out by our hand, and no person has ended that."""
        node = self.seen()
        ours = record(node)
        return ours is not None and is_out(node) and not marks_removed(node)

    @invariant()
    def only_ours_is_ours(self) -> None:
        """Other people's taints and cordon stay, and our taint stands only where a slot is held."""
        node = self.seen()
        others = [{k: taint[k] for k in ("key", "value", "effect")} for taint in taints(node)]
        ours = [taint for taint in others if taint["key"] == TAINT and record(node) is not None]
        others = [taint for taint in others if taint not in ours and not taint["key"].startswith("node.kubernetes.io/")]
        assert sorted(others, key=str) == sorted(self.their_taints, key=str)
        assert unschedulable(node) or not self.their_cordon
        if ours and (mark := record(node)) is not None and mark.code != MANUAL:
            assert list(self.pool.slots().values()) == [self.node]

    @rule()
    def settle(self) -> None:
        """When the API server is well again, the next agent brings everything to where it belongs."""
        self.proxy.heal()
        self.restart()
        assert self.applied()
        node = self.seen()
        word = node["metadata"].get("annotations", {}).get(OVERRIDE)
        if word == "unmanaged":
            return
        out = self.is_out()
        by_hand = any(taint["key"] == TAINT for taint in self.their_taints)
        slots = list(self.pool.slots().values())
        asked_for = self.wish and MANUAL not in dismissed_codes(node)
        assert slots == [self.node] * out or (asked_for and not slots), "a slot while it is out, and only then"
        cordons = self.mode == "cordon" or "driver.not_loaded" in self.faults
        assert has_taint(node) is ((out and not cordons) or by_hand)
        assert unschedulable(node) is (self.their_cordon or (out and cordons))
        wanted = self.faults - set(dismissed_codes(node))
        if word == "healthy" or by_hand or not (wanted or asked_for):
            assert not out
        elif self.room or asked_for:
            assert out
        assert self.applied()
        assert self.seen()["metadata"]["resourceVersion"] == node["metadata"]["resourceVersion"], "and then is silent"

    def teardown(self) -> None:
        """Settles for the last time, and leaves nothing."""
        if not hasattr(self, "runner"):
            return
        try:
            self.settle()
        finally:
            self.runner.run(self.client.close())
            self.runner.run(self.proxy.__aexit__(None, None, None))
            self.runner.close()
            for name in self.pool.slots():
                self.plane.request("DELETE", f"{LEASES}/{name}")
            self.pool.remove()


def test_one_node_through_everything(plane: ControlPlane) -> None:
    """Whatever happens in whatever order: only our marks are removed, a slot is held while out, a person wins."""

    class OnThisPlane(OneNode):
        pass

    OnThisPlane.plane = plane
    quick = settings(max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(OnThisPlane, settings=quick)
