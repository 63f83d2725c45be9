"""Objects with arbitrary content: each costs only itself, never the watch or the others."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.odd_objects import META, SAMPLES, Json, mutants

from gpuhealth.controller.controller import Controller
from gpuhealth.controller.duties.burnin_scheduler import BurninScheduler
from gpuhealth.controller.http_app import ControllerCollector
from gpuhealth.controller.pods import Pod, evictable, pod_view, undecided, unreadable_pod
from gpuhealth.fleet import views
from gpuhealth.fleet.fleet import Fleet
from gpuhealth.fleet.store import ObjectStore
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import UnreadableError
from gpuhealth.kube.kinds import BUDGETS, NODES, PODS, REPORTS, Kind
from gpuhealth.kube.objects import read
from gpuhealth.kube.pdb import blocking_reason, read_budget
from gpuhealth.kube.watching import WatchChanged, WatchListed, WatchUnreadable
from gpuhealth.monitors.settings import Settings


@st.composite
def fleets(draw: st.DrawFn) -> dict[Kind, list[Json]]:
    """One kind with three objects of arbitrary content."""
    kind = draw(st.sampled_from(list(SAMPLES)))
    return {kind: [draw(mutants(SAMPLES[kind])) for _ in range(3)]}


def named(sample: Json, name: str, version: str) -> Json:
    """A readable object of that name."""
    return sample | {"metadata": sample["metadata"] | {"name": name, "uid": name, "resourceVersion": version}}


class Server:
    """Serves lists and watches with objects that an API server would reject, or that Python cannot represent."""

    def __init__(self, odd: dict[Kind, list[Json]]) -> None:
        self._odd = odd

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a list with an odd object between good ones, or a watch with two odd, half of one, and a good one."""
        (kind,) = [kind for kind in SAMPLES if request.path.endswith(f"/{kind.plural}")]
        sample = SAMPLES[kind]
        first, second, third = self._odd.get(kind) or [sample] * 3
        if "watch" not in request.query:
            items = [named(sample, "good", "1"), first, named(sample, "other", "2")]
            return web.json_response({"metadata": {"resourceVersion": "3"}, "items": items})
        response = web.StreamResponse()
        await response.prepare(request)
        last = named(sample, "last", "9")
        events = [{"type": "MODIFIED", "object": second}, {"type": "DELETED", "object": third}, {"object": last}]
        for event in [*events, {"type": "ADDED", "object": last}]:
            await response.write(json.dumps(event).encode() + b"\n")
        await asyncio.Event().wait()
        return response


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kubeconfig with the address of the server."""
    return tmp_path_factory.mktemp("fuzz") / "kubeconfig"


async def followed(server: Server, kubeconfig: Path) -> Controller:
    """A controller that has watched all objects of the server."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {
        "clusters": [cluster],
        "contexts": [context],
        "current-context": "c",
        "users": [{"name": "u", "user": {}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    alone = {"election": {"enabled": False}}  # so that it shows its picture of the fleet
    controller = Controller(
        Settings.model_validate({"kubernetes": {"kubeconfig": str(kubeconfig)}, "controller": alone})
    )
    fleet = controller.fleet
    async with Client.from_kubeconfig(kubeconfig) as client:
        tasks = [asyncio.ensure_future(each()) for each in fleet.watches(client)]
        try:
            async with asyncio.timeout(60):
                while not all("last" in table.items for table in fleet._stores()):
                    for task in tasks:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.001)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()
    return controller


@given(odd=fleets())
@settings(max_examples=60)
def test_a_watch_survives_every_object(odd: dict[Kind, list[Json]], kubeconfig: Path) -> None:
    """With any content in the objects of one kind, the others of list and watch are stored, and counts and metrics
    work with what was read."""
    controller = asyncio.run(followed(Server(odd), kubeconfig))
    fleet = controller.fleet
    for table in fleet._stores():
        assert {"good", "other", "last"} <= table.items.keys()
    assert fleet.ready
    shown = {family.name for family in ControllerCollector(controller).collect()}
    assert {"gpuhealth_fleet_nodes", "gpuhealth_budget_used", "gpuhealth_fleet_finding"} <= shown
    for place in fleet.slots.items.values():
        assert place.reserved_for is not None
    for node in fleet.nodes.items.values():
        controller.duty(BurninScheduler)._budgets_of(node)


@given(item=mutants(SAMPLES[PODS]))
@settings(max_examples=150)
def test_pods_on_a_drained_node(item: Json) -> None:
    """A pod on a drained node is read, or kept as a pod of which it is not known whether it should be evicted."""
    table = ObjectStore[Pod](unreadable=unreadable_pod, by_uid=True)

    async def events() -> Any:
        try:
            yield WatchChanged("ADDED", read("Pod", item, pod_view))
        except UnreadableError as error:
            yield WatchUnreadable("ADDED", error)

    asyncio.run(table.follow(events(), lambda: None))
    kept = list(table.items.values())
    assert len(evictable(kept, ())) + len(undecided(kept, ())) <= 1
    assert not (table.unreadable and evictable(kept, ()))


GUARD = {
    "metadata": META,
    "spec": {"selector": SAMPLES[BUDGETS]["spec"]["nodeSelector"], "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    "status": {"observedGeneration": 1, "disruptionsAllowed": 3},
}


@given(item=mutants(GUARD), version=st.sampled_from(["policy/v1", "policy/v1beta1"]))
@settings(max_examples=150)
def test_a_pod_disruption_budget(item: Json, version: str) -> None:
    """A budget is read and can be evaluated, or raises an ApiError, after which a drain retries."""
    with contextlib.suppress(UnreadableError):
        found = read("PodDisruptionBudget", item, partial(read_budget, version=version))
        assert isinstance(blocking_reason([found], [Pod(namespace="n", name="a", uid="u", labels={"a": "b"})]), str)


def taken(fleet: Fleet, kind: Kind, item: Json, slim_of: Any) -> None:
    """Pass an object to the fleet as its watch would."""
    table = {NODES: fleet.nodes, REPORTS: fleet.reports, BUDGETS: fleet.budgets, PODS: fleet.agents}[kind]

    async def events() -> Any:
        try:
            yield WatchChanged("MODIFIED", read(kind.kind, item, slim_of))
        except UnreadableError as error:
            yield WatchUnreadable("MODIFIED", error)

    asyncio.run(table.follow(events(), lambda: None))  # type: ignore[attr-defined]


def poisoned(kind: Kind, *at: Any, value: Json) -> Json:
    """The sample with another value in one place."""
    item = copy.deepcopy(SAMPLES[kind])
    outer = item
    for key in at[:-1]:
        outer = outer[key]
    outer[at[-1]] = value
    return item


def test_what_is_known_of_a_node_that_cannot_be_read() -> None:
    """It counts as not ready, with its present labels; its drain pauses, and continues when the Node can be read
    again."""
    fleet = Fleet("gpuhealth", ())
    node = poisoned(NODES, "metadata", "annotations", value={})
    taken(fleet, REPORTS, SAMPLES[REPORTS], views.report_view)
    taken(fleet, NODES, node, views.node_view)
    assert (fleet.drains_wanted, fleet.drains_to_end) == ({"a"}, set())
    odd = copy.deepcopy(node)
    odd["status"]["allocatable"]["nvidia.com/gpu"] = "many"
    odd["metadata"]["labels"] = {"pool": "x"}
    taken(fleet, NODES, odd, views.node_view)
    known = fleet.nodes.items["a"]
    assert (known.labels, known.ready, known.cordoned, known.gpus) == ({"pool": "x"}, False, True, 8)
    assert (fleet.drains_wanted, fleet.drains_to_end) == (set(), set())
    taken(fleet, NODES, node, views.node_view)
    assert fleet.nodes.items["a"].readable
    assert fleet.drains_wanted == {"a"}


def test_what_is_known_of_a_report_that_cannot_be_read() -> None:
    """It is kept as last read, so the drain continues; its GPUs are unknown. One never read starts no drain."""
    fleet = Fleet("gpuhealth", ())
    node = poisoned(NODES, "metadata", "annotations", value={})
    odd = poisoned(REPORTS, "status", "burnin", "testedAt", value="0000-01-01T00:00:00Z")
    agent = poisoned(PODS, "metadata", "deletionTimestamp", value=None)
    taken(fleet, NODES, node, views.node_view)
    taken(fleet, PODS, agent, views.agent_pod)
    taken(fleet, REPORTS, odd, views.report_view)
    assert not fleet.drains_wanted
    taken(fleet, REPORTS, SAMPLES[REPORTS], views.report_view)
    assert fleet.gpus_by_verdict == {("healthy", "H100"): 1}
    taken(fleet, REPORTS, odd, views.report_view)
    assert fleet.drains_wanted == {"a"}
    assert fleet.gpus_by_verdict == {("unknown", "H100"): 1}


@pytest.mark.parametrize("kind", [NODES, BUDGETS, PODS], ids=lambda kind: kind.kind)
def test_a_deleted_object_is_removed(kind: Kind) -> None:
    """An object that cannot be read is removed when it is deleted or no longer in a list."""
    fleet = Fleet("gpuhealth", ())
    table: Any = {NODES: fleet.nodes, BUDGETS: fleet.budgets, PODS: fleet.agents}[kind]
    error = UnreadableError(kind.kind, SAMPLES[kind], ValueError("odd"))

    async def events(last: Any) -> Any:
        yield WatchUnreadable("ADDED", error)
        yield last

    for last in (WatchUnreadable("DELETED", error), WatchListed([])):
        asyncio.run(table.follow(events(last), lambda: None))
        assert not table.items
        assert not table.unreadable


def test_what_is_not_read_of_a_report_costs_nothing() -> None:
    """Findings, counters and times of burn-ins may hold anything: the controller reads none of them."""
    odd = copy.deepcopy(SAMPLES[REPORTS])
    odd["status"] |= {"findings": [{"component": 5, "firstSeen": "0000-01-01T00:00:00Z"}], "counters": "many"}
    odd["status"]["burnin"]["gpus"]["GPU-1"] |= {"history": 5, "endedAt": 5, "bootID": []}
    assert views.report_view(odd) == views.report_view(SAMPLES[REPORTS])


def test_what_only_people_read_is_not_kept() -> None:
    """Of thousands of reports the controller keeps no reasons of quarantines, and names of slots only for drains."""
    plain = poisoned(REPORTS, "status", "quarantine", "drain", value=False)
    odd = poisoned(REPORTS, "status", "quarantine", "reason", value="a budget has no free slot")
    odd["status"]["quarantine"] |= {"slots": ["b.0"], "drain": False}
    assert views.report_view(odd).quarantine == views.report_view(plain).quarantine


def test_a_state_of_another_version() -> None:
    """A state, phase or verdict that this version does not know is read; nothing follows from it."""
    newer = poisoned(REPORTS, "status", "quarantine", "state", value="resetting")
    newer["status"]["drain"]["phase"] = "paused"
    newer["status"]["inventory"]["gpus"][0]["verdict"] = "suspect"
    read_ = views.report_view(newer)
    assert (read_.quarantine.asks_for_drain, read_.drain.phase, read_.gpus) == (False, "paused", (("suspect", "H100"),))


@pytest.mark.parametrize("quantity", [2**63 - 1, "9223372036854775807", "99999999G", -5])
def test_an_absurd_number_of_gpus(quantity: Json) -> None:
    """A node that reports more GPUs than memory could hold one by one is counted with a bounded number."""
    fleet = Fleet("gpuhealth", ())
    taken(fleet, NODES, poisoned(NODES, "status", "allocatable", "nvidia.com/gpu", value=quantity), views.node_view)
    assert 0 <= fleet.nodes.items["a"].gpus <= 10_000
    assert sum(fleet.gpus_by_verdict.values()) == fleet.nodes.items["a"].gpus
