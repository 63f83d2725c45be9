"""Driver release on request: the requesters, rounds during a release, and how it ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import NvidiaReadings, NvmlReadings, Release
from gpuhealth.monitors.nvidia.release import DriverRelease, excused
from gpuhealth.monitors.nvidia.settings import Nvml

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GRACE = 60.0
AWAY = NvmlReadings(problem=Missing(MissingReason.NOT_LOADED, "no driver"))


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        """What was set."""
        return self.now


class Requests:
    """A release of a driver that nothing holds, with what it says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.nvml = NvmlProbe(Nvml())
        self.said: list[str] = []
        self.release = DriverRelease(self.nvml, self.clock, self.said.append)

    def is_released(self) -> bool:
        """Whether the probe keeps its hands off."""
        return self.nvml.released

    def reasons(self) -> tuple[str, ...]:
        """The requests that stand."""
        return self.release.reasons

    def ask(self, reason: str, wanted: bool = True) -> None:
        """A request, or its end."""
        self.release.ask(reason, wanted=wanted, known=True)

    def masked(self, nvml: NvmlReadings, seconds: float = 0.0) -> NvidiaReadings:
        """A round so many seconds later, of a node with eight GPUs."""
        self.clock.now += timedelta(seconds=seconds)
        return self.release.mask(NvidiaReadings(nvml=nvml), self.clock.now, 8, GRACE)


def answer(gpus: int) -> NvmlReadings:
    """A complete round of NVML."""
    return NvmlReadings(answered=True, count=gpus)


def test_the_driver_is_released_until_the_last_request_is_gone() -> None:
    """The first request releases the driver, withdrawing the last one reopens it, and every change is logged."""

    async def run() -> None:
        it = Requests()
        it.ask("annotation")
        it.ask("annotation")
        await asyncio.sleep(0.05)
        assert it.is_released()
        it.ask("driver_upgrade")
        assert it.reasons() == ("annotation", "driver_upgrade")
        it.ask("annotation", wanted=False)
        await asyncio.sleep(0.05)
        assert it.is_released()
        assert it.reasons() == ("driver_upgrade",)
        it.ask("driver_upgrade", wanted=False)
        assert not it.is_released()
        assert it.reasons() == ()
        assert [text.partition(":")[0] for text in it.said] == [
            "driver released on request",
            "the driver stays released",
            "the driver stays released",
            "driver opened again",
        ]

    asyncio.run(run())


def test_nothing_of_nvml_is_judged_while_it_stands() -> None:
    """Whatever NVML answers, the round says: released, on whose request, since when."""

    async def run() -> None:
        it = Requests()
        assert it.masked(AWAY).nvml == AWAY
        it.ask("signal")
        for nvml in (AWAY, answer(8)):
            readings = it.masked(nvml, 3600.0)
            assert readings.nvml.problem == Missing(
                MissingReason.RELEASED, "the driver is released (signal) since 2026-03-01T12:00:00Z"
            )
            assert readings.release == Release(("signal",), START, known=True)

    asyncio.run(run())


@pytest.mark.parametrize("coming", [AWAY, answer(3), NvmlReadings(count=8), NvmlReadings()])
def test_after_the_end_the_driver_may_take_its_time(coming: NvmlReadings) -> None:
    """It is over when the driver answers for all GPUs, or when the grace is: then what is read counts."""

    async def run() -> None:
        it = Requests()
        it.ask("annotation")
        it.clock.now += timedelta(hours=1)
        it.ask("annotation", wanted=False)
        readings = it.masked(coming, GRACE - 1)
        assert readings.release
        assert "and not back since 13:00:00Z" in str(readings.release)
        assert readings.nvml.problem
        assert readings.nvml.problem.reason is MissingReason.RELEASED
        assert it.masked(answer(8)).release is None
        assert it.masked(AWAY).nvml == AWAY
        it.ask("annotation")
        it.ask("annotation", wanted=False)
        readings = it.masked(coming, GRACE)
        assert (readings.nvml, readings.release) == (coming, None)

    asyncio.run(run())


def test_asked_again_while_it_is_coming_back() -> None:
    """A request before the driver is reopened continues the same release and does not restart its limit."""

    async def run() -> None:
        it = Requests()
        it.ask("annotation")
        it.ask("annotation", wanted=False)
        it.clock.now += timedelta(seconds=10)
        it.ask("signal")
        assert it.release.current == Release(("signal",), START, known=True)

    asyncio.run(run())


def test_taken_up_after_a_restart() -> None:
    """An agent that starts while the driver is released does not touch it."""

    async def run() -> None:
        it = Requests()
        it.release.resume(Release(("driver_upgrade",), START))
        problem = (await it.nvml.read(1.0)).problem
        assert problem
        assert problem.reason is MissingReason.RELEASED
        assert it.nvml.starts == 0
        it.ask("driver_upgrade", wanted=False)
        assert not it.is_released()

    asyncio.run(run())


@pytest.mark.parametrize(("known", "reason"), [(True, MissingReason.RELEASED), (False, None)])
def test_a_release_excuses_what_was_known_before_it(known: bool, reason: MissingReason | None) -> None:
    """Missing readings make nothing unknown while the driver is released, if the state was known, up to a limit."""
    assert excused(None, START, 7200.0) is None
    release = Release(("annotation",), START, known=known)
    assert excused(release, START + timedelta(seconds=7199), 7200.0) is reason
    assert excused(release, START + timedelta(seconds=7200), 7200.0) is None

    async def run() -> None:
        it = Requests()
        it.release.ask("annotation", wanted=True, known=known)
        assert it.release.excused(START, 7200.0) is reason
        it.release.shift(-3600.0)
        assert it.release.excused(START + timedelta(seconds=3599), 7200.0) is reason
        assert it.release.excused(START + timedelta(seconds=3600), 7200.0) is None

    asyncio.run(run())
