"""What is not measured is unknown, after a while, and never healthy; a release of the driver excuses what it hides."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from testing.findings import BOOT, GPU, START, TIMEOUT, at, clean, findings, found, readings

from gpuhealth.model.finding import NotChecked
from gpuhealth.model.history import Baseline, History
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.model.verdict import State
from gpuhealth.monitors.nvidia.readings import GpuReadings, Release
from gpuhealth.monitors.nvidia.settings import DriverRelease
from gpuhealth.monitors.settings import Settings


def test_unknown_after_patience_and_never_healthy() -> None:
    """An essential check that is not measured makes unknown after `unknown_after`; at one look at once."""
    gpu = GpuReadings(index=0, uuid=GPU, pci="0000:1b:00.0", name="H100")
    unread = [NotChecked("ecc.uncorrectable", GPU, TIMEOUT)]
    kept = findings(Settings(unknown_after=120.0))
    kept.take_round([clean("ecc.uncorrectable")], at(0), BOOT)
    for seconds, state in ((60, State.HEALTHY), (119, State.HEALTHY), (120, State.UNKNOWN)):
        kept.take_round(unread, at(seconds), BOOT)
        verdict = kept.verdict(readings(gpu), History(), at(seconds))
        assert (verdict.verdict, verdict.gpus[0].verdict) == (state, state)
        assert verdict.coverage.not_checked[0].check == "ecc.uncorrectable"
    kept.take_round([clean("ecc.uncorrectable")], at(130), BOOT)
    assert kept.verdict(readings(gpu), History(), at(130)).verdict is State.HEALTHY
    look = findings(one_look=True)
    look.take_round(unread, at(0), BOOT)
    assert look.verdict(readings(gpu), History(), at(0)).verdict is State.UNKNOWN


def test_what_was_never_measured_is_unknown_at_once() -> None:
    """A node that is new is unknown until each essential check was measured; over a restart the patience goes on."""
    gpu = GpuReadings(index=0, uuid=GPU, pci="0000:1b:00.0", name="H100")
    measured, unread = clean("ecc.uncorrectable"), NotChecked("ecc.uncorrectable", GPU, TIMEOUT)

    def state(kept: Findings, seconds: float) -> State:
        return kept.verdict(readings(gpu), History(), at(seconds)).verdict

    new = findings(Settings(unknown_after=120.0))
    new.take_round([clean("xid", "node"), unread], at(0), BOOT)
    assert (state(new, 0), new.ledger().measured) == (State.UNKNOWN, None)
    new.take_round([measured], at(10), BOOT)
    assert state(new, 10) is State.HEALTHY
    new.take_round([unread], at(100), BOOT)
    again = findings(
        Settings(unknown_after=120.0), ledger=msgspec.json.decode(msgspec.json.encode(new.ledger()), type=TrackerState)
    )
    again.take_round([unread], at(110), BOOT)
    assert (state(again, 129), state(again, 130)) == (State.HEALTHY, State.UNKNOWN)
    again.shift(3600.0)
    assert (state(again, 3729), state(again, 3730)) == (State.HEALTHY, State.UNKNOWN)


def test_nothing_known_is_unknown() -> None:
    """A node of which nothing is known is not healthy."""
    verdict = findings().verdict(readings(), History(), START)
    assert (verdict.verdict, verdict.gpus) == (State.UNKNOWN, ())


@given(st.lists(st.sampled_from(list(State))))
def test_combining_never_turns_unknown_into_healthy(states: list[State]) -> None:
    """Whatever the parts are: the whole is healthy only if all of them are, and there are some."""
    combined = State.combined(states)
    assert (combined is State.HEALTHY) == (bool(states) and set(states) == {State.HEALTHY})
    if State.UNHEALTHY in states:
        assert combined is State.UNHEALTHY


RELEASED = Missing(MissingReason.RELEASED, "on request")
HOUR = 3600.0


def unmeasured(kept: Findings, seconds: float, known: bool = True) -> State:
    """The verdict in a round in which the driver is released, since a minute after the start."""
    now = at(seconds)
    kept.take_round([NotChecked("gpu.lost", GPU, RELEASED)], now, BOOT)
    round_ = msgspec.structs.replace(readings(time=now), release=Release(("annotation",), at(60), known))
    return kept.verdict(round_, History(Baseline({GPU: "0000:18:00.0"})), now).verdict


def test_released_on_request_keeps_what_was_known() -> None:
    """A release makes nothing unknown within its limit, a finding stays, and one that comes meanwhile counts."""
    kept = findings(Settings(driver_release=DriverRelease(max_duration=HOUR)))
    kept.take_round([clean("gpu.lost")], at(0), BOOT)
    assert unmeasured(kept, 61) is State.HEALTHY
    assert unmeasured(kept, 60 + HOUR - 1) is State.HEALTHY
    assert unmeasured(kept, 60 + HOUR) is State.UNKNOWN
    kept.take([found("xid.79")], at(HOUR), BOOT)
    assert unmeasured(kept, HOUR) is State.UNHEALTHY


def test_released_before_anything_was_known() -> None:
    """A release is no excuse for a node that was unknown when it began."""
    kept = findings()
    assert unmeasured(kept, 61 + Settings().unknown_after, known=False) is State.UNKNOWN


def test_something_else_that_is_not_measured_during_a_release() -> None:
    """Only what the release hides is excused: a kernel log that cannot be read is not."""
    kept = findings()
    now = at(300)
    kept.take_round([NotChecked("gpu.lost", GPU, RELEASED), NotChecked("xid", "node", TIMEOUT)], now, BOOT)
    round_ = msgspec.structs.replace(readings(time=now), release=Release(("signal",), at(60), known=True))
    assert kept.verdict(round_, History(Baseline({GPU: "0000:18:00.0"})), now).verdict is State.UNKNOWN
