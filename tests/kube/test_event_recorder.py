"""Events: found by kubectl, counted when repeated, limited, and not lost in an outage."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from structlog.testing import capture_logs
from testing.cluster_objects import T0, Pool

from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.kube.event_recorder import (
    BURST,
    MAX_WAITING,
    MESSAGE_LIMIT,
    REFILL_SECONDS,
    EventRecorder,
    Subject,
    node_subject,
)


class Clock:
    """The time, set by the test, as the wall clock and as the monotonic one."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall(self) -> datetime:
        """The time of day."""
        return T0 + timedelta(seconds=self.seconds)

    def steady(self) -> float:
        """Seconds since some moment."""
        return self.seconds


def recorder(client: Client, node: str, clock: Clock, **options: Any) -> EventRecorder:
    """The recorder of an agent."""
    return EventRecorder(client, "gpuhealth-agent", node, host=node, now=clock.wall, clock=clock.steady, **options)


def test_event_is_complete(plane: ControlPlane, pool: Pool) -> None:
    """It is about the Node as kubectl looks for it, and says who reports."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = recorder(client, node, Clock())
            events.queue(node_subject(node), "Xid79", "m" * 2000, warning=True)
            await events.flush()
            (event,) = pool.events(node)
            assert (event["reason"], event["type"], event["count"]) == ("Xid79", "Warning", 1)
            assert event["reportingComponent"] == event["source"]["component"] == "gpuhealth-agent"
            assert event["reportingInstance"] == event["source"]["host"] == node
            assert len(event["message"]) <= MESSAGE_LIMIT
            assert event["message"].endswith("see kubectl get ghr")

    asyncio.run(run())


def test_event_about_a_pod(plane: ControlPlane, pool: Pool) -> None:
    """It is in the pod's namespace, about this very pod, and has no host where the component is not of a node."""
    pod = Subject("Pod", f"{pool.name}-pod", "uid-1", "default")

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await EventRecorder(client, "gpuhealth-controller", "c_1", now=Clock().wall).post(pod, "Evicted", "m")
            path = f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={pod.name}"
            (event,) = plane.request("GET", path)["items"]
            assert event["metadata"]["namespace"] == event["involvedObject"]["namespace"] == "default"
            assert (event["involvedObject"]["kind"], event["involvedObject"]["uid"]) == ("Pod", "uid-1")
            assert (event["type"], event["source"]) == ("Normal", {"component": "gpuhealth-controller"})
            assert event["reportingInstance"] == "c_1"

    asyncio.run(run())


def test_repeated_is_counted(plane: ControlPlane, pool: Pool) -> None:
    """Equal Events within the window are one with a count; later, or once the server has deleted it, a new one."""
    node = pool.node()
    clock = Clock()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = recorder(client, node, clock)

            async def happens(minute: int) -> None:
                clock.seconds = minute * 60.0
                events.queue(node_subject(node), "Xid79", "m")
                await events.flush()

            for minute in (0, 1, 2):
                await happens(minute)
            (event,) = pool.events(node)
            assert (event["count"], event["lastTimestamp"]) == (3, "2026-03-01T12:02:00Z")
            plane.request("DELETE", f"/api/v1/namespaces/default/events/{event['metadata']['name']}")
            await happens(3)
            assert [event["count"] for event in pool.events(node)] == [1]
            await happens(30)
            assert [event["count"] for event in pool.events(node)] == [1, 1]

    asyncio.run(run())


def test_repeated_without_the_right_to_count(plane: ControlPlane, pool: Pool) -> None:
    """Equal Events within the window are posted once, and again after it. An Event about another object is another
    one."""
    node, other = pool.nodes(2)
    clock = Clock()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = recorder(client, node, clock, counts_repeats=False)
            for minute in (0, 1, 9):
                clock.seconds = minute * 60.0
                await events.post(node_subject(node), "Drained", "m")
            await events.post(node_subject(other), "Drained", "m")
            assert [event["count"] for event in pool.events(node)] == [1]
            assert len(pool.events(other)) == 1
            clock.seconds = 600.0
            await events.post(node_subject(node), "Drained", "m")
            assert [event["count"] for event in pool.events(node)] == [1, 1]
            assert {method for method, _ in client.calls} == {"POST"}

    asyncio.run(run())


def test_rate_is_limited(plane: ControlPlane, pool: Pool) -> None:
    """A storm costs a burst of Events and no more; the rest is counted as dropped; later there is room again."""
    node = pool.node()
    clock = Clock()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = recorder(client, node, clock)
            for k in range(BURST + 5):
                events.queue(node_subject(node), "Xid79", f"m{k}")
            assert len(await events.flush()) == BURST
            assert events.dropped == 5
            clock.seconds = 300.0
            events.queue(node_subject(node), "Xid79", "later")
            assert len(await events.flush()) == 1

    asyncio.run(run())


def test_the_limit_is_of_one_object(plane: ControlPlane, pool: Pool) -> None:
    """A storm about one object leaves the Events about others alone, and limits that are not used any more are
    forgotten."""
    noisy, quiet = pool.nodes(2)
    clock = Clock()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = recorder(client, noisy, clock)
            for k in range(BURST + 1):
                await events.post(node_subject(noisy), "Xid79", f"m{k}")
            await events.post(node_subject(quiet), "Xid79", "m")
            assert (len(pool.events(noisy)), len(pool.events(quiet)), events.dropped) == (BURST, 1, 1)
            assert len(events._limits) == 2
            clock.seconds = BURST * REFILL_SECONDS
            await events.post(node_subject(quiet), "Xid79", "m")
            assert list(events._limits) == [quiet]
            assert len(events._posted) == 1, "nor is what was posted long ago remembered"

    asyncio.run(run())


def test_outage_keeps_them(plane: ControlPlane, pool: Pool) -> None:
    """What could not be sent is sent later, once, the newest when there are too many."""
    node = pool.node()
    clock = Clock()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
            events = recorder(client, node, clock)
            proxy.fail("lost", method="POST", times=1)
            proxy.fail("reset", method="POST", times=1)
            events.queue(node_subject(node), "Xid79", "m")
            for _ in range(2):
                with pytest.raises(errors.UnavailableError):
                    await events.flush()
            await events.flush()
            assert len(pool.events(node)) == 1
            proxy.fail("reset", method="POST", times=BURST + 5)
            events.queue(node_subject(node), "Xid79", "after many tries")
            for _ in range(BURST + 5):
                with pytest.raises(errors.UnavailableError):
                    await events.flush()
            assert len(await events.flush()) == 1
            assert (len(pool.events(node)), events.dropped) == (2, 0)
            for k in range(MAX_WAITING + 3):
                clock.seconds += REFILL_SECONDS
                events.queue(node_subject(node), "Xid79", f"m{k}")
            assert events.dropped == 3
            assert (await events.flush())[0].message == "m3"

    asyncio.run(run())


def test_refused_is_dropped(plane: ControlPlane, pool: Pool) -> None:
    """No right to write Events stops nothing else, and is logged."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            events = recorder(client, node, Clock())
            proxy.fail(403, method="POST", times=-1)
            events.queue(node_subject(node), "Xid79", "m")
            with capture_logs() as logged:
                assert await events.flush() == []
            assert events.dropped == 1
            assert [(entry["event"], entry["reason"], entry["about"]) for entry in logged] == [
                ("Event write failed", "Xid79", node)
            ]

    asyncio.run(run())


@pytest.mark.parametrize("what", [403, 503, "reset"])
def test_an_event_that_is_posted_at_once_waits_for_nothing(plane: ControlPlane, pool: Pool, what: int | str) -> None:
    """Whatever the API server answers: it is dropped, and its author goes on."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
            events = recorder(client, node, Clock())
            proxy.fail(what, method="POST", times=1)
            await events.post(node_subject(node), "Drained", "m")
            assert (events.dropped, await events.flush()) == (1, [])
            await events.post(node_subject(node), "Drained", "m")
            assert len(pool.events(node)) == 1

    asyncio.run(run())
