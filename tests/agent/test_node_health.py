"""The state of the node as the agent keeps it: what is judged in several monitors' rounds, and by kernel events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest
from structlog.testing import capture_logs
from testing import readings
from testing.agents import WELL, give_round

from gpuhealth.agent.agent import Agent
from gpuhealth.model.component import Component, Kind, gpu
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.missing import UNREAD, Missing, MissingReason
from gpuhealth.model.verdict import State
from gpuhealth.monitors.registry import kernel_log_parser

LOST = "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def xid(code: int, place: str) -> KernelEvent:
    """What the kernel log says of an XID of the GPU in a PCI slot."""
    event = kernel_log_parser().feed(KernelRecord(f"NVRM: Xid (PCI:{place}): {code}, {LOST}"))
    assert event is not None
    return event


def test_no_verdict_before_every_monitor_has_had_a_round(make_agent: Callable[[], Agent]) -> None:
    """A part of the node does not speak for the whole: neither is it called healthy, nor anything else."""
    agent = make_agent()
    state = agent.node_health
    *others, last = sorted(state.judge.monitors, key=lambda monitor: monitor.name == "nvidia")
    for monitor in others:
        state.apply_round(monitor, WELL.readings().of(monitor))
        assert state.verdict is None
        assert not agent.has_judged
        assert not agent.is_current()
        assert agent.status().verdict is None
    state.apply_round(last, WELL.readings().of(last))
    assert agent.has_judged
    assert agent.is_current()
    assert state.state() is State.HEALTHY


def test_a_backlog_that_takes_too_long(make_agent: Callable[[], Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict before older records are judged; after a limited time the node is unknown, until the last record."""
    monkeypatch.setattr("gpuhealth.agent.agent._BACKLOG_SECONDS", 0.0)
    agent = make_agent()
    agent.node_health.awaits_backlog = True  # as from its start on
    give_round(agent)
    assert not agent.has_judged
    agent._first_round.set()
    with capture_logs() as logs:
        asyncio.run(agent._limit_backlog())
    assert [line["log_level"] for line in logs] == ["warning"]
    assert agent.node_health.verdict is not None
    assert not agent.is_current()
    desired = agent._desired_marks()
    assert desired is not None
    assert desired[0].verdict.verdict is State.UNKNOWN
    agent.kernel_log._has_caught_up()
    assert agent.is_current()


def test_an_event_counts_from_its_record(make_agent: Callable[[], Agent]) -> None:
    """What was logged while no agent ran is as old as its record, and over where it has been quiet for long enough."""
    agent = make_agent()
    state, now = agent.node_health, agent.clock()
    give_round(agent)
    recent, old = now - timedelta(minutes=5), now - timedelta(hours=1)
    state.apply_events([msgspec.structs.replace(xid(31, "0000:01:00"), time=old)])
    assert state.tracker.active() == ()
    state.apply_events([msgspec.structs.replace(xid(31, "0000:01:00"), time=when) for when in (recent, now)])
    (found,) = state.tracker.active()
    assert (found.first_seen, found.last_seen) == (recent, now)
    later = msgspec.structs.replace(xid(31, "0000:01:00"), time=now + timedelta(days=1))
    state.apply_events([later])
    (found,) = state.tracker.active()
    assert found.last_seen <= agent.clock()


def test_a_slow_monitor_excuses_no_other(make_agent: Callable[[], Agent]) -> None:
    """Each monitor's last round may be as old as its own interval allows: a rare one hides no other."""
    agent = make_agent()
    state = agent.node_health
    give_round(agent)
    (slow, limit), *others = ((name, 60.0 + rank) for rank, name in enumerate(sorted(state.last_round)))
    limits = {slow: 1e6, **dict(others)}
    state.last_round[slow] -= timedelta(seconds=limit + 1.0)
    assert state.is_current(limits)
    for name, seconds in others:
        before = state.last_round[name]
        state.last_round[name] -= timedelta(seconds=seconds + 1.0)
        assert not state.is_current(limits), name
        state.last_round[name] = before


def test_a_gpu_has_one_name(make_agent: Callable[[], Agent]) -> None:
    """What the kernel log reported of a slot before the GPU in it was known is on the GPU once it is listed."""
    agent = make_agent()
    state = agent.node_health
    state.apply_events([xid(79, "0000:02:00")])
    (finding,) = state.tracker.active()
    assert finding.component == gpu("0000:02:00.0")
    give_round(agent, WELL)
    (finding,) = state.tracker.active()
    assert (finding.code, finding.component) == ("xid.79", gpu(readings.uuid(1)))
    state.apply_events([xid(79, "0000:02:00")])
    assert [finding.component for finding in state.tracker.active()] == [gpu(readings.uuid(1))]
    assert state.counts.findings == {"xid.79": 1}
    assert state.verdict is not None
    assert {each.uuid: each.verdict for each in state.verdict.gpus} == {
        readings.uuid(0): State.HEALTHY,
        readings.uuid(1): State.UNHEALTHY,
    }


@pytest.mark.parametrize(
    ("unread", "name"), [({"uuid": UNREAD}, "0000:01:00.0"), ({"uuid": UNREAD, "pci": UNREAD}, "gpu0")]
)
def test_a_gpu_without_a_uuid_is_renamed_when_it_has_one(
    make_agent: Callable[[], Agent], unread: dict[str, Missing], name: str
) -> None:
    """A finding on a GPU that had only its address, or only its number, goes on under its uuid: it is raised once."""
    state = (agent := make_agent()).node_health
    give_round(agent, readings.node(readings.gpu(0, remap_failed=True, **unread), kernel_log=WELL.kernel_log, pci=()))
    places = {finding.code: finding.component for finding in state.tracker.active()}
    assert places["gpu_memory.remap_failed"] == gpu(name)
    give_round(agent, readings.node(readings.gpu(0, remap_failed=True), kernel_log=WELL.kernel_log))
    places = {finding.code: finding.component for finding in state.tracker.active()}
    assert places["gpu_memory.remap_failed"] == gpu(readings.uuid(0))
    assert state.counts.findings["gpu_memory.remap_failed"] == 1


def test_a_failing_monitor_is_a_finding_of_its_own(make_agent: Callable[[], Agent]) -> None:
    """A monitor whose readings could not be taken says so on itself, costs no other monitor's outcome, and recovers."""
    agent = make_agent()
    state = agent.node_health
    give_round(agent, WELL)
    (broken,) = (monitor for monitor in state.judge.monitors if monitor.name == "burnin_results")
    with capture_logs() as logged:
        state.apply_round(broken, Missing(MissingReason.ERROR, "x"), failure="OSError: no such device")
    (finding,) = state.tracker.active()
    assert (finding.code, finding.component) == ("agent.monitor_failed", Component(Kind.MONITOR, "burnin_results"))
    assert "OSError: no such device" in finding.message
    assert [line["component"] for line in logged] == ["monitor burnin_results"]
    assert state.state() is State.DEGRADED
    assert not state.tracker.quarantine().findings
    assert {each.verdict for each in state.verdict.gpus} == {State.HEALTHY} if state.verdict else False
    state.apply_round(broken, WELL.readings().of(broken))
    assert [each.code for each in state.tracker.active()] == ["agent.monitor_failed"], "read clean, and not for long"
