"""Answers with a status of success that are no answers: a proxy's page, cut JSON, JSON of another kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube import ControlPlane
from testing.node_writing import SICK, writer
from testing.odd_server import PAGE, Page, in_the_way
from testing.waiting import until

from gpuhealth.kube.client import Client, object_of
from gpuhealth.kube.errors import AnswerError, ApiError
from gpuhealth.kube.eviction import EvictionOutcome, Evictor
from gpuhealth.kube.kinds import BUDGETS, LEASES, NODES
from gpuhealth.kube.watching import WatchChanged, WatchEvent, WatchListed, watch
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.slots.holder import SlotHolder

METADATA = {"name": "n", "uid": "u", "resourceVersion": "1"}
NODE = {"kind": "Node", "apiVersion": "v1", "metadata": METADATA}
BODIES = [
    PAGE,
    b"",
    b"null",
    b"[]",
    b"{}",
    b"7",
    b'"Node"',
    json.dumps(NODE).encode()[:-3],
    json.dumps([NODE]).encode(),
    json.dumps({**NODE, "kind": "Pod"}).encode(),
    json.dumps({**NODE, "metadata": {**METADATA, "name": "another"}}).encode(),
    json.dumps({**NODE, "metadata": None}).encode(),
    json.dumps({**NODE, "metadata": {"name": "n"}}).encode(),
    json.dumps({**NODE, "metadata": {**METADATA, "annotations": []}}).encode(),
    json.dumps({**NODE, "metadata": {**METADATA, "annotations": {"a": 5}}}).encode(),
    json.dumps({**NODE, "spec": "x"}).encode(),
    json.dumps({**NODE, "spec": None}).encode(),
    json.dumps({**NODE, "kind": METADATA}).encode(),
    json.dumps({"kind": "NodeList", "metadata": {}, "items": [NODE]}).encode(),
    json.dumps({"kind": "Status", "status": "Success"}).encode(),
    b"[" * 100_000,
    b"\xff\xfe\x00",
]
LISTS = [
    {"kind": "NodeList", "metadata": {}, "items": 5},
    {"kind": "NodeList", "metadata": {}, "items": [5]},
    {"kind": "NodeList", "metadata": {}, "items": [{}]},
    {"kind": "NodeList", "metadata": {}, "items": {"n": NODE}},
    {"kind": "NodeList", "items": []},
    {"kind": "PodList", "metadata": {}, "items": []},
]


CALLS: list[Callable[[Client], Awaitable[Any]]] = [
    lambda client: client.get(NODES, "n"),
    lambda client: client.list(NODES),
    lambda client: client.create(NODES, {"metadata": {"name": "n"}}),
    lambda client: client.replace(NODES, "n", NODE),
    lambda client: client.patch(NODES, "n", {}),
    lambda client: client.patch(NODES, "n", {}, subresource="status"),
    lambda client: client.list(NODES, labels="a=b"),
]


@pytest.mark.parametrize("call", range(len(CALLS)))
def test_what_is_no_object(plane: ControlPlane, call: int) -> None:
    """Every call refuses what is not what it asked for, with an error that can be tried again."""

    async def run() -> None:
        async with in_the_way(plane) as (page, client):
            for body in [*BODIES, *(json.dumps(each).encode() for each in LISTS)]:
                page.body = body
                if (
                    call in (1, 6)
                    and body == json.dumps({"kind": "NodeList", "metadata": {}, "items": [NODE]}).encode()
                ):
                    continue  # that is a list
                with pytest.raises(AnswerError):
                    await CALLS[call](client)

    asyncio.run(run())


def test_our_node_is_never_that(plane: ControlPlane) -> None:
    """What is known of our Node stays what it was, by reads and by the watch, and the watch goes on."""

    async def run() -> None:
        async with in_the_way(plane) as (page, client):
            own = OwnNode(client, "n")
            page.body = json.dumps(NODE).encode()
            await own.read()
            following = asyncio.create_task(own.follow())
            try:
                for body in BODIES:
                    page.body, asked = body, page.asked
                    with pytest.raises(AnswerError):
                        await own.read()
                    await until(lambda asked=asked: page.asked > asked)  # type: ignore[misc]
                    assert own.latest == NODE
                    assert not following.done()
                    assert (own.labels, own.annotations, own.taints, own.causes) == ({}, {}, [], ())
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following

    asyncio.run(run())


def test_a_watch_that_tells_nonsense(plane: ControlPlane, pool: Any) -> None:
    """A line that is no event affects that line alone: the events before and after it arrive, also after a restart."""
    good = json.dumps({"type": "MODIFIED", "object": NODE}).encode()
    lines = [PAGE, b"{}", b"7", b'{"type": 5, "object": {}}', b'{"type": "MODIFIED", "object": []}', b"[" * 100_000]
    lines += [b'{"type":"BOOKMARK","object":{}}', b'{"type":"ERROR","object":{"code":"x"}}', good[:-5]]
    lines += [b'{"type":"ADDED","object":{"kind":"Pod","metadata":{}}}', b'{"type":"ERROR","object":null}']

    async def run() -> None:
        async with in_the_way(plane) as (page, client):
            page.body = json.dumps({"kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": [NODE]}).encode()
            async with aclosing(watch(client, NODES, parse=partial(object_of, NODES))) as events:
                assert isinstance(await anext(events), WatchListed)
                for line in lines:
                    page.body, asked = good + b"\n" + line + b"\n", page.asked
                    async with asyncio.timeout(120):
                        event: WatchEvent = await anext(events)
                        while page.asked < asked + 2:
                            event = await anext(events)
                        while not isinstance(event, WatchChanged):
                            event = await anext(events)
                    assert event.item == NODE

    asyncio.run(run())


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(METADATA) | st.just(NODE),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["kind", "metadata", "items", "spec", "status", "name", "uid", "resourceVersion", "resources"]
            ),
            inner | st.sampled_from(["Node", "NodeList", "Lease", "LeaseList", "QuarantineBudgetList", "n"]),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def standing(plane: ControlPlane) -> Iterator[tuple[asyncio.Runner, Page, Client]]:
    """A page in the way for many examples."""
    with asyncio.Runner() as runner:
        context = in_the_way(plane)
        page, client = runner.run(context.__aenter__())
        yield runner, page, client
        runner.run(context.__aexit__(None, None, None))


@given(
    answer=ANY,
    kind=st.sampled_from(["Node", "NodeList", "Lease", "LeaseList", "QuarantineBudgetList"]),
    bare=st.booleans(),
)
def test_any_answer(standing: tuple[asyncio.Runner, Page, Client], answer: Any, kind: str, bare: bool) -> None:
    """Whatever JSON comes, a call gives what was asked for or raises an ApiError, and so does all that stands on it."""
    runner, page, client = standing
    whole = {**answer, "kind": kind} if isinstance(answer, dict) and not bare else answer
    page.body = json.dumps(whole).encode()

    async def calls() -> None:
        for call in CALLS:
            with suppress(ApiError):
                await call(client)
        own = OwnNode(client, "n")
        with suppress(ApiError):
            assert (await own.read())["metadata"]["name"] == "n"
        assert all(isinstance(value, str) for value in own.annotations.values())
        assert (own.has_taint("x"), own.override, own.release_requests or ()) == (False, None, ())
        for kind in (LEASES, BUDGETS):
            with suppress(ApiError):
                assert all(item["metadata"]["name"] for item in (await client.list(kind)).items)
        for doing in (SlotHolder(client, "gpuhealth", "n").acquire({}, "xid.79"), writer(client, "n").apply(SICK)):
            with suppress(ApiError):
                await doing
        assert (await Evictor(client).evict("a", "b", "c")).outcome in set(EvictionOutcome)

    runner.run(calls())


@pytest.mark.parametrize("body", [b'{"kind":"\xff"}', b'"\xff"', b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_text(standing: tuple[asyncio.Runner, Page, Client], body: bytes) -> None:
    """JSON with text that is no UTF-8 costs that request an ApiError, and nothing else."""
    runner, page, client = standing
    page.body = body
    with pytest.raises(ApiError):
        runner.run(client.get(NODES, "n"))
