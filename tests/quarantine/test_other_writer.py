"""Two agents that do not share a folder: each notices what the other writes."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

from kube import ControlPlane
from testing.cluster_objects import T0, Pool
from testing.node_writing import HEALTHY, SICK, writer

from gpuhealth.api.names import ConditionReason
from gpuhealth.kube.client import Client, Object
from gpuhealth.quarantine.other_writer import OtherWriter


def condition(message: str, reason: str = "Healthy") -> Object:
    """Our condition as an agent writes it."""
    return {"status": "True", "reason": reason, "message": message, "lastHeartbeatTime": "2026-03-01T12:00:00Z"}


def test_two_agents_with_different_findings(plane: ControlPlane, pool: Pool) -> None:
    """Both post one Event, however long they undo each other's condition; an agent that starts alone posts none."""
    node = pool.node()

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            await writer(client, node).apply(SICK)
            times = (T0 + timedelta(seconds=second) for second in itertools.count())
            first, second = (writer(client, node, now=lambda: next(times)) for _ in range(2))
            for _ in range(2):
                await first.apply(HEALTHY)
            assert not reported()
            for _ in range(6):
                await second.apply(SICK)
                await first.apply(HEALTHY)

    def reported() -> list[int]:
        return [event.get("count", 1) for event in pool.events(node) if event["reason"] == "SecondAgent"]

    asyncio.run(run())
    assert sum(reported()) == 2


def test_what_is_no_second_agent() -> None:
    """Our own conditions, the controller's, a person's single edit, and rare changes are no second agent."""
    warned: list[str] = []
    other = OtherWriter(lambda reason, _: warned.append(reason))
    other.see(None, T0)
    other.see(condition("of the agent before"), T0)
    for minute in range(30):
        now = T0 + timedelta(minutes=minute)
        other.sending(condition(f"ours {minute}"))
        other.see(condition("silent", ConditionReason.AGENT_SILENT), now)
        other.see(condition(f"ours {minute}"), now)
        if minute % 6 == 0:
            other.see(condition(f"theirs {minute}"), now)
    assert warned == []
    for second in range(3):
        other.see(condition(f"theirs, second {second}"), T0 + timedelta(hours=1, seconds=second))
    assert warned == ["SecondAgent"]
