"""Monitors fail alone: one that is late, raises or has a bug costs only its own readings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from gpuhealth.agent.agent import Agent
from gpuhealth.model.codes import CODES, Code
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.context import Check
from gpuhealth.model.finding import Action, Clean, Finding, NotChecked, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors import registry
from gpuhealth.monitors.judge import Judge, Memory, decode_memory
from gpuhealth.monitors.monitor import FunctionProbe, Monitor, NoBaseline, NoSettings
from gpuhealth.monitors.runner import MonitorRunner
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings import Schedule

NOW = datetime(2026, 3, 1, tzinfo=UTC)
EXAMPLE = Code("host.example", Severity.WARNING, Action.NONE, "An example.", "Nothing is to be done.")


@pytest.fixture(autouse=True)
def example_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's code exists for the time of a test."""
    monkeypatch.setitem(CODES._codes, EXAMPLE.name, EXAMPLE)


class Value(msgspec.Struct, frozen=True, tag=True):
    """Readings of one number."""

    value: int


def example(read: Callable[[], Value | Missing], run: Callable[[Any], Any] | None = None, name: str = "example") -> Any:
    """A monitor that reads one number, which is a fault where it is above 0."""

    def check(context: Any) -> Any:
        readings = context.readings
        if isinstance(readings, Missing):
            yield EXAMPLE.not_checked(readings)
        elif readings.value > 0:
            yield EXAMPLE.found(NODE, "too many", now=context.time, source="test")
        else:
            yield EXAMPLE.clean()

    return Monitor(
        name=name,
        summary="An example.",
        readings=Value,
        settings=NoSettings,
        baseline=NoBaseline,
        probe=lambda context: FunctionProbe(lambda _: read(), context.settings),
        checks=(Check((EXAMPLE,), run or check),),
    )


def runner(monitor: Any, deadline: float = 60.0) -> MonitorRunner:
    """The monitor's runner, with a deadline of its own."""
    settings = Settings().model_copy(update={"monitors": {monitor.name: Schedule(deadline=deadline)}})
    probe = monitor.probe(type("Context", (), {"settings": settings}))
    return MonitorRunner(monitor, probe, settings)


def raising() -> Value:
    """A probe with a bug."""
    raise ZeroDivisionError("division by zero")


def test_a_probe_that_raises_is_missing_with_one_log_line_and_a_counter() -> None:
    """An exception of a probe becomes Missing(error), is logged once with its traceback, and is counted."""

    async def scenario() -> None:
        reading = runner(example(raising))
        with capture_logs() as logs:
            missing = await reading.read()
        assert isinstance(missing, Missing)
        assert missing.reason is MissingReason.ERROR
        assert "division by zero" in missing.detail
        (line,) = logs
        assert line["event"] == "monitor failed"
        assert line["monitor"] == "example"
        assert isinstance(line["exc_info"], ZeroDivisionError)
        assert reading.errors == 1
        assert reading.failure == "ZeroDivisionError: division by zero"

    asyncio.run(scenario())


def test_a_probe_that_is_late_is_missing_and_never_read_twice_at_once() -> None:
    """A read that passes its deadline is Missing(timeout); it goes on, and its answer is the next reading."""

    async def scenario() -> None:
        release, calls = threading.Event(), []

        def hanging() -> Value:
            calls.append(1)
            release.wait()
            return Value(7)

        reading = runner(example(hanging), deadline=0.05)
        try:
            for late in (1, 2, 3):
                missing = await reading.read()
                assert isinstance(missing, Missing)
                assert missing.reason is MissingReason.TIMEOUT
                assert reading.timeouts == late
            assert len(calls) == 1
        finally:
            release.set()
        while isinstance(value := await reading.read(), Missing):
            pass
        assert value == Value(7)
        assert len(calls) == 1

    asyncio.run(scenario())


def test_a_probe_works_again_after_an_error() -> None:
    """The round after a failed one is read as if nothing had happened."""

    async def scenario() -> None:
        answers: list[Any] = [raising, lambda: Value(1)]
        reading = runner(example(lambda: answers.pop(0)()))
        assert isinstance(await reading.read(), Missing)
        assert await reading.read() == Value(1)
        assert reading.failure == ""

    asyncio.run(scenario())


def test_a_check_with_a_bug_costs_its_own_codes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that raises leaves its codes unchecked, raises agent.monitor_failed, and is counted."""

    def broken(_: Any) -> Any:
        raise KeyError("no such thing")

    monitor = example(lambda: Value(0), broken)
    monkeypatch.setattr(registry, "monitors", lambda: (monitor,))
    judge = Judge(Settings(), time=NOW)
    with capture_logs() as logs:
        outcomes = judge.round(monitor, Value(0), NOW)
    (unchecked, failed) = outcomes
    assert isinstance(unchecked, NotChecked)
    assert unchecked.reason.reason is MissingReason.AGENT_FAULT
    assert isinstance(failed, Finding)
    assert failed.code == "agent.monitor_failed"
    assert failed.component == Component(Kind.MONITOR, "example")
    assert [line["event"] for line in logs] == ["check failed"]
    assert judge.failures["example"] == 1


def test_a_failed_monitor_is_found_and_clears(monkeypatch: pytest.MonkeyPatch) -> None:
    """agent.monitor_failed is raised for the monitor that failed, and read clean once it works again."""
    monitor = example(lambda: Value(0))
    monkeypatch.setattr(registry, "monitors", lambda: (monitor,))
    judge = Judge(Settings(), time=NOW)
    missing = Missing(MissingReason.ERROR, "example failed")
    failed = judge.round(monitor, missing, NOW, failure="ZeroDivisionError")
    assert {outcome.code for outcome in failed} == {"host.example", "agent.monitor_failed"}
    for _ in range(2):  # the finding ends only when it has been read clean for a while
        assert Clean("agent.monitor_failed", Component(Kind.MONITOR, "example")) in judge.round(monitor, Value(0), NOW)


def test_a_monitor_that_never_failed_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that works leaves only the outcomes of its own checks."""
    monitor = example(lambda: Value(0))
    monkeypatch.setattr(registry, "monitors", lambda: (monitor,))
    assert Judge(Settings(), time=NOW).round(monitor, Value(0), NOW) == [EXAMPLE.clean()]


def test_memory_survives_as_json() -> None:
    """What checks remember is the same after a restart, and one of another version is refused."""
    memory = Memory()
    for monitor in registry.monitors():
        memory.baseline(monitor)
    memory.history.counter_increase(memory_key := "ecc/GPU-1", 3, 100.0, 60.0)  # type: ignore[arg-type]
    read = decode_memory(msgspec.json.encode(memory))
    assert read == memory
    assert memory_key in read.history.counters
    with pytest.raises(msgspec.DecodeError):
        decode_memory(b'{"history": 5}')


@pytest.mark.process
def test_a_hung_monitor_delays_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one monitor hangs and another raises, the rounds of all others go on, and the agent says which failed."""

    async def scenario() -> None:
        release = threading.Event()

        def hanging() -> Value:
            release.wait()
            return Value(0)

        others = registry.monitors()
        broken = example(raising, name="broken")
        hung = example(hanging, name="hung")
        monkeypatch.setattr(registry, "monitors", lambda: (*others, broken, hung))
        settings = {"interval": "20ms", "monitors": {"hung": {"deadline": "1h"}}}
        agent = Agent(
            Settings.model_validate(
                settings
                | {
                    "node_name": "node-1",
                    "journal": {"path": tmp_path / "journal.sqlite"},
                    "kubernetes": {"enabled": False},
                }
            )
        )
        running = asyncio.create_task(agent.run())
        try:
            while min(agent.counts.rounds[monitor.name] for monitor in (*others, broken)) < 5:
                await asyncio.sleep(0.01)
            assert agent.counts.rounds["hung"] == 0
            status = {part.monitor.name: part for part in agent.status().monitors}
            assert status["broken"].errors >= 5
            found = {(finding.code, finding.component.id) for finding in agent.node_health.tracker.active()}
            assert ("agent.monitor_failed", "broken") in found
            assert not agent.counts.failures
        finally:
            release.set()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
