"""Odd objects of the API server: Nodes, reports, budgets, Leases, Pods, through everything that reads them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from testing.odd_objects import META, SAMPLES

from fuzzing import mutate
from fuzzing.target import encoded, require
from gpuhealth.api.names import PREFLIGHT_TAINT, TAINT
from gpuhealth.controller.pods import Pod, evictable, pod_view, undecided, unreadable_pod
from gpuhealth.fleet import views
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.fleet.store import ObjectStore
from gpuhealth.kube.client import object_of
from gpuhealth.kube.errors import AnswerError, UnreadableError
from gpuhealth.kube.kinds import BUDGETS, LEASES, NAMESPACES, NODES, PODS, REPORTS, Kind
from gpuhealth.kube.objects import read
from gpuhealth.kube.pdb import blocking_reason, read_budget
from gpuhealth.kube.watching import WatchChanged, WatchListed, WatchUnreadable
from gpuhealth.model.verdict import Coverage, State, Verdict
from gpuhealth.quarantine import marks
from gpuhealth.quarantine.condition import condition_patch, is_due, summary
from gpuhealth.quarantine.driver_work import release_requests
from gpuhealth.quarantine.report import merge_patch
from gpuhealth.quarantine.slots.budget import (
    BudgetError,
    counted_size,
    has_percentage,
    is_counted,
    selects,
    slot_sets,
)
from gpuhealth.quarantine.slots.lease import read_slot, slot_lease
from gpuhealth.quarantine.target import Desired, node_change, target_marks

_NOW = datetime(2026, 3, 1, 13, tzinfo=UTC)
_GUARD = {
    "metadata": META,
    "spec": {"selector": {"matchLabels": {"a": "b"}}, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    "status": {"observedGeneration": 1, "disruptionsAllowed": 3},
}
_CAUSE = {
    "code": "xid.79",
    "since": "2026-03-01T12:00:00Z",
    "component": {"kind": "gpu", "id": "GPU-1"},
    "boot_id": "b",
}
_RECORD = {"code": "xid.79", "since": "2026-03-01T12:00:00Z", "cordoned": True, "causes": [_CAUSE]}
_KINDS = (NODES, NODES, NODES, REPORTS, PODS, BUDGETS, LEASES, NAMESPACES)
_BY_NAME = {kind.kind: kind for kind in _KINDS}
_OBJECTS = 16


def _node(chance: random.Random) -> dict[str, Any]:
    """A Node with marks of ours and of others, in any combination."""
    node: dict[str, Any] = mutate.copied(SAMPLES[NODES])
    annotations, taints = node["metadata"]["annotations"], node["spec"]["taints"]
    if chance.random() < 0.6:
        record = mutate.copied(_RECORD)
        if chance.random() < 0.4:
            mutate.mutate_value(record, chance, 1)
        annotations["gpuhealth.io/quarantine"] = json.dumps(record)
    if chance.random() < 0.3:
        annotations["gpuhealth.io/dismissed"] = chance.choice(("xid.79", "xid.79,ecc.uncorrectable", ",,", "manual"))
    if chance.random() < 0.3:
        annotations["gpuhealth.io/out-of-service"] = mutate.encodable_text(chance)
    if chance.random() < 0.7:
        del annotations["gpuhealth.io/override"]
    if chance.random() < 0.3:
        taints.clear()
    taints.append({"key": "example.com/theirs", "value": "x", "effect": "NoSchedule"})
    if chance.random() < 0.3:
        annotations["gpuhealth.io/restored"] = chance.choice(mutate.TEXTS).replace("\ud800", "")
    if chance.random() < 0.3:
        annotations["gpuhealth.io/fleet-findings"] = json.dumps(mutate.value(chance))
    return node


class Target:
    """A case is a list of objects of one kind, as they come from a watch."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def make(self, chance: random.Random) -> bytes:
        """Objects with a few values replaced or removed."""
        kind = chance.choice(_KINDS)
        items = []
        for _ in range(_OBJECTS):
            item = _node(chance) if kind is NODES else mutate.copied(SAMPLES[kind])
            if chance.random() < 0.1 and kind is PODS:
                item = mutate.copied(_GUARD)
            if chance.random() < 0.9:
                mutate.mutate_value(item, chance, chance.choice((1, 2, 2, 4)))
            items.append(item)
        return json.dumps({"kind": kind.kind, "items": items}).encode()

    def check(self, case: bytes) -> int:
        """Each object is read, or refused as a whole; what is ours alone is changed; no limit is exceeded."""
        plan = msgspec.json.decode(case)
        kind, items = _BY_NAME[plan["kind"]], plan["items"]
        for item in items:
            self._check_as_answer(kind, item)
            match kind.kind:
                case "Lease":
                    self._check_lease(item)
                case "QuarantineBudget":
                    self._check_budget(item)
                case "Pod":
                    self._check_pod(item)
                case "GPUHealthReport":
                    self._check_report(item)
        self._loop.run_until_complete(self._check_fleet(kind, items))
        return len(items)

    # --- our own Node -------------------------------------------------------------------------------------------------

    def _check_as_answer(self, kind: Kind, item: Any) -> None:
        try:
            found = object_of(kind, item)
            if kind is NODES:
                marks.check_readable(found)
        except AnswerError:
            return
        if kind is NODES:
            self._check_node(found)

    def _check_node(self, node: dict[str, Any]) -> None:
        marks.restored(marks.annotations_of(node))
        release_requests(node)
        marks.removers(node)
        require(len(marks.out_of_service(node)) <= 1024, "a reason is not bounded")
        cases = ((State.HEALTHY, ()), (State.UNHEALTHY, ("xid.79",)), (State.UNKNOWN, ()))
        for (state, codes), cordons in itertools.product(cases, (_always, _never)):
            verdict = Verdict(node="a", time=_NOW, verdict=state, coverage=Coverage((), ()))
            desired = Desired(verdict=verdict, quarantine=codes)
            wanted = target_marks(node, desired, cordons=cordons, preflight_taint=PREFLIGHT_TAINT)
            change = node_change(node, wanted, _NOW)
            if change.body is not None:
                encoded(change.body, 1 << 18)
                self._check_change(node, change.body)
            self._check_evidence(node, state, wanted)
            found = summary(verdict)
            if is_due(node, found, _NOW):
                encoded(condition_patch(node, found, _NOW), 1 << 18)

    def _check_change(self, node: dict[str, Any], body: dict[str, Any]) -> None:
        """We remove only what we added: taints of others stay, and ours without a record."""
        if "taints" not in body.get("spec", {}):
            return
        kept = body["spec"]["taints"]
        recorded = marks.record(node) is not None
        for taint in marks.taints(node):
            if taint["key"] not in (TAINT, PREFLIGHT_TAINT) or (taint["key"] == TAINT and not recorded):
                require(taint in kept, f"the taint {taint} of another is removed")

    def _check_evidence(self, node: dict[str, Any], state: State, wanted: Any) -> None:
        """Without a measurement nothing shows that a fault is gone: the node that is out stays out."""
        declared = marks.override(node) is not None or marks.marks_removed(node)
        dismissed = marks.dismissed_codes(node)
        ours = marks.record(node)
        if (
            state is State.UNKNOWN
            and ours is not None
            and not declared
            and ours.code not in dismissed
            and ours.code != "manual"
        ):
            require(wanted.code is not None, "a node without measurements goes back into service")

    # --- budgets ------------------------------------------------------------------------------------------------------

    def _check_lease(self, item: Any) -> None:
        with contextlib.suppress(UnreadableError):
            slot = read("Lease", item, _identified_slot)
            encoded(msgspec.to_builtins(slot), 1 << 18)
            if not slot.fault:
                slot.has_expired(_NOW)
            require(not (slot.fault and slot.has_expired(_NOW)), "a slot that cannot be read may be taken over")

    def _check_budget(self, item: Any) -> None:
        if not isinstance(item, dict) or not isinstance(item.get("metadata"), dict) or "name" not in item["metadata"]:
            return  # the client refuses it
        try:
            object_of(BUDGETS, item)
        except AnswerError:
            return
        with contextlib.suppress(BudgetError):
            selects(item, {"a": "b"})
            has_percentage(item)
            is_counted(item)
            counted_size(item)
            for slots in slot_sets(item, 40, "xid.79"):
                if slots.limit > 10_000:
                    continue
                held = [f"{slots.prefix}.{number}" for number in (0, 3, 99)]
                names = slots.open_names(held)
                require(len(names) <= max(slots.limit, 0), "more names are open than the limit allows")
                lease = slot_lease(slots, f"{slots.prefix}.0", "a", _NOW)
                seconds = lease["spec"].get("leaseDurationSeconds", 1)
                require(0 < seconds < 2**31, f"a Lease cannot last {seconds} s")
                encoded(lease, 1 << 16)

    # --- the controller -----------------------------------------------------------------------------------------------

    def _check_pod(self, item: Any) -> None:
        store: ObjectStore[Pod] = ObjectStore(unreadable=unreadable_pod, by_uid=True)
        self._loop.run_until_complete(store.follow(_events([item], "Pod", pod_view), lambda: None))
        kept = list(store.items.values())
        out = evictable(kept, ())
        require(len(out) + len(undecided(kept, ())) <= 1, "a pod counts twice")
        require(not (store.unreadable and out), "a pod that cannot be read is evicted")
        for version in ("policy/v1", "policy/v1beta1"):
            with contextlib.suppress(UnreadableError):
                guard = read("PodDisruptionBudget", item, partial(read_budget, version=version))
                blocking_reason([guard], [Pod(namespace="n", name="a", uid="u", labels={"a": "b"})])

    def _check_report(self, item: Any) -> None:
        try:
            status = object_of(REPORTS, item).get("status") or {}
        except AnswerError:
            return
        with contextlib.suppress(UnreadableError):
            read("GPUHealthReport", item, views.report_view)
        new = {"verdict": "healthy", "findings": [], "inventory": {"gpus": []}}
        encoded(merge_patch(status, new), 1 << 18)

    async def _check_fleet(self, kind: Kind, items: list[Any]) -> None:
        """Every readable object is stored, and only what is ready, readable and healthy counts as healthy."""
        fleet = Fleet("gpuhealth", ("pool",))
        stores: dict[str, tuple[Any, Any]] = {
            "Node": (fleet.nodes, views.node_view),
            "GPUHealthReport": (fleet.reports, views.report_view),
            "Pod": (fleet.agents, views.agent_pod),
            "QuarantineBudget": (fleet.budgets, views.budget_view),
            "Lease": (fleet.slots, views.slot_view),
            "Namespace": (fleet.drain_exempt_namespaces, views.drain_exempt_namespace),
        }
        for other in ("Node", "GPUHealthReport", "Pod"):
            if other != kind.kind:
                store, view = stores[other]
                await store.follow(_events([SAMPLES[_BY_NAME[other]]], other, view), lambda: None)
        store, view = stores[kind.kind]
        await store.follow(_events(items, kind.kind, view), lambda: None)
        if kind is PODS:
            await fleet.burnins.follow(_events(items, "Pod", views.burnin_pod), lambda: None)
        self._check_counts(fleet)
        await store.follow(_listed([]), lambda: None)
        require(not store.items and not store.unreadable, "a deleted object is kept")

    def _check_counts(self, fleet: Fleet) -> None:
        healthy = sum(count for (verdict, _), count in fleet.gpus_by_verdict.items() if verdict == State.HEALTHY)
        trusted = [
            name
            for name, node in fleet.nodes.items.items()
            if node.ready and node.readable and name in fleet.reports.items and fleet.reports.items[name].readable
        ]
        able = sum(len(fleet.reports.items[name].gpus) for name in trusted if fleet._ready_agents[name])
        require(healthy <= able, f"{healthy} GPUs count as healthy, and {able} are measured")
        require(all(count >= 0 for count in fleet.nodes_by_state.values()), "a count is below zero")
        for name in fleet.drains_wanted:
            node = fleet.nodes.items[name]
            require(node.readable and node.marked and not node.overridden, "a drain is wanted without its marks")
        for node in fleet.nodes.items.values():
            encoded(msgspec.to_builtins(node), 1 << 18)

    def close(self) -> None:
        """Closes the event loop."""
        self._loop.close()


async def _events(items: list[Any], kind: str, view: Any) -> AsyncIterator[Any]:
    for item in items:
        try:
            yield WatchChanged("MODIFIED", read(kind, item, view))
        except UnreadableError as error:
            yield WatchUnreadable("MODIFIED", error)


async def _listed(items: list[Any]) -> AsyncIterator[Any]:
    yield WatchListed(items)


def _identified_slot(item: Any) -> Any:
    return read_slot(object_of(LEASES, item))


def _always(_: str) -> bool:
    return True


def _never(_: str) -> bool:
    return False
