"""A clock that is set under us: it is noticed, by how much, and also when it was while no process ran."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from gpuhealth.runtime.clock import SteadyClock

STEPS = [timedelta(days=1), -timedelta(days=1), timedelta(days=365), -timedelta(days=365)]
A_SECOND = timedelta(seconds=1)


class Wall:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        """The true time and what it was set by."""
        return datetime.now(UTC) + self.offset


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_taken_over_when_asked_for_and_once(step: timedelta) -> None:
    """Until then time goes on as it was; afterwards it is the wall clock's, and small changes are none."""
    wall = Wall()
    clock = SteadyClock(wall)
    assert clock.catch_up() == 0.0
    before = clock()
    wall.offset = step
    assert abs(clock() - before) < timedelta(seconds=30)
    assert clock.catch_up() == pytest.approx(step.total_seconds(), abs=1.0)
    assert abs(clock() - wall()) < A_SECOND
    assert clock.catch_up() == 0.0
    wall.offset += A_SECOND
    assert clock.catch_up() == 0.0


@pytest.mark.parametrize("step", STEPS)
def test_set_while_no_process_ran(step: timedelta) -> None:
    """The monotonic clock measures a step within a boot; across a reboot only a backward step is detected."""
    wall = Wall()
    then = SteadyClock(wall).instant("boot")
    assert SteadyClock(wall).set_since(then, "boot") == 0.0
    assert SteadyClock(wall).set_since(then, "another") == 0.0
    wall.offset = step
    assert SteadyClock(wall).set_since(then, "boot") == pytest.approx(step.total_seconds(), abs=1.0)
    over_a_reboot = SteadyClock(wall).set_since(then, "another")
    assert over_a_reboot == (0.0 if step > timedelta() else pytest.approx(step.total_seconds(), abs=30.0))


def test_time_that_passes_is_no_step() -> None:
    """An hour without an agent is an hour by both clocks."""
    wall = Wall()
    then = SteadyClock(wall).instant("boot")
    an_hour_ago = msgspec.structs.replace(
        then, time=then.time - timedelta(hours=1), monotonic_seconds=then.monotonic_seconds - 3600.0
    )
    assert SteadyClock(wall).set_since(an_hour_ago, "boot") == 0.0
