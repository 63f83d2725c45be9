"""Events: found by kubectl, counted when repeated, limited, and not lost in an outage."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.cluster_objects import T0, Pool

from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.kube.events import BURST, MESSAGE_LIMIT, WAITING, Events, Note


def test_event_is_complete(plane: ControlPlane, pool: Pool) -> None:
    """It is about the Node as kubectl looks for it, and says who reports."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = Events(client, node)
            events.add(Note("Xid79", "m" * 2000, T0))
            await events.flush()
            (event,) = pool.events(node)
            assert (event["reason"], event["type"], event["count"]) == ("Xid79", "Warning", 1)
            assert event["reportingComponent"] == event["source"]["component"] == "gpuhealth-agent"
            assert event["reportingInstance"] == event["source"]["host"] == node
            assert len(event["message"]) <= MESSAGE_LIMIT
            assert event["message"].endswith("see kubectl get ghr")

    asyncio.run(run())


def test_repeated_is_counted(plane: ControlPlane, pool: Pool) -> None:
    """The same within the window is one Event with a count; later, or once it was forgotten, it is a new one."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = Events(client, node)
            for minute in (0, 1, 2):
                events.add(Note("Xid79", "m", T0 + timedelta(minutes=minute)))
            await events.flush()
            (event,) = pool.events(node)
            assert (event["count"], event["lastTimestamp"]) == (3, "2026-03-01T12:02:00Z")
            plane.request("DELETE", f"/api/v1/namespaces/default/events/{event['metadata']['name']}")
            events.add(Note("Xid79", "m", T0 + timedelta(minutes=3)))
            await events.flush()
            assert [event["count"] for event in pool.events(node)] == [1]
            events.add(Note("Xid79", "m", T0 + timedelta(minutes=30)))
            await events.flush()
            assert [event["count"] for event in pool.events(node)] == [1, 1]

    asyncio.run(run())


def test_rate_is_limited(plane: ControlPlane, pool: Pool) -> None:
    """A storm costs a burst of Events and no more; the rest is counted as dropped; later there is room again."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            events = Events(client, node)
            for k in range(BURST + 5):
                events.add(Note("Xid79", f"m{k}", T0))
            assert len(await events.flush()) == BURST
            assert events.dropped == 5
            events.add(Note("Xid79", "later", T0 + timedelta(minutes=5)))
            assert len(await events.flush()) == 1

    asyncio.run(run())


def test_outage_keeps_them(plane: ControlPlane, pool: Pool) -> None:
    """What could not be sent is sent later, once, the newest when there are too many."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=1) as client:
            events = Events(client, node)
            proxy.fail("lost", method="POST", times=1)
            proxy.fail("reset", method="POST", times=1)
            events.add(Note("Xid79", "m", T0))
            for _ in range(2):
                with pytest.raises(errors.UnavailableError):
                    await events.flush()
            await events.flush()
            assert len(pool.events(node)) == 1
            proxy.fail("reset", method="POST", times=BURST + 5)
            events.add(Note("Xid79", "after many tries", T0))
            for _ in range(BURST + 5):
                with pytest.raises(errors.UnavailableError):
                    await events.flush()
            assert len(await events.flush()) == 1
            assert (len(pool.events(node)), events.dropped) == (2, 0)
            for k in range(WAITING + 3):
                events.add(Note("Xid79", f"m{k}", T0))
            assert events.dropped == 3

    asyncio.run(run())


def test_refused_is_dropped(plane: ControlPlane, pool: Pool) -> None:
    """No right to write Events stops nothing else."""
    node = pool.node()

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            events = Events(client, node)
            proxy.fail(403, method="POST", times=-1)
            events.add(Note("Xid79", "m", T0))
            assert await events.flush() == []
            assert events.dropped == 1

    asyncio.run(run())
