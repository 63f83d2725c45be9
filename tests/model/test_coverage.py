"""What is not measured is unknown, after a while, and never healthy; a release of the driver excuses what it hides."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from testing.findings import BOOT, GPU, TIMEOUT, at, clean, facts, found, not_checked, tracker
from testing.nvml_facts import nvml_facts

from gpuhealth.model.component import NODE, ComponentInfo, gpu
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.pci import PciAddress
from gpuhealth.model.tracker import FindingTracker
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.model.verdict import State
from gpuhealth.monitors.nvidia.readings import NvmlReadings, Release
from gpuhealth.monitors.nvidia.settings import DriverRelease
from gpuhealth.monitors.settings import Settings

H100 = ComponentInfo(component=GPU, index=0, pci=PciAddress("0000:1b:00.0"), model="H100")


def overall(tracked: FindingTracker, seconds: float) -> State:
    """The state of the node with its one GPU."""
    return tracked.verdict(facts(H100, time=at(seconds))).verdict


def restarted(tracked: FindingTracker) -> FindingTracker:
    """The tracker of the next agent, with what this one has stored."""
    stored = msgspec.json.decode(msgspec.json.encode(tracked.state()), type=TrackerState)
    return tracker(Settings(unknown_after=120.0), stored)


def test_unknown_after_patience_and_never_healthy() -> None:
    """An essential check that is not measured makes unknown after `unknown_after`; at one look at once."""
    unread = [not_checked("ecc.uncorrectable")]
    tracked = tracker(Settings(unknown_after=120.0))
    tracked.apply_round("nvidia", [clean("ecc.uncorrectable")], facts(H100))
    for seconds, state in ((60, State.HEALTHY), (119, State.HEALTHY), (120, State.UNKNOWN)):
        tracked.apply_round("nvidia", unread, facts(H100, time=at(seconds)))
        verdict = tracked.verdict(facts(H100, time=at(seconds)))
        assert (verdict.verdict, verdict.gpus[0].verdict) == (state, state)
        assert verdict.coverage.not_checked[0].check == "ecc.uncorrectable"
    tracked.apply_round("nvidia", [clean("ecc.uncorrectable")], facts(H100, time=at(130)))
    assert overall(tracked, 130) is State.HEALTHY
    look = tracker(one_look=True)
    look.apply_round("nvidia", unread, facts(H100))
    assert overall(look, 0) is State.UNKNOWN


def test_what_was_never_measured_is_unknown_at_once() -> None:
    """A node that is new is unknown until each essential check was measured; over a restart the patience goes on."""
    measured, unread = clean("ecc.uncorrectable"), not_checked("ecc.uncorrectable")
    new = tracker(Settings(unknown_after=120.0))
    new.apply_round("nvidia", [clean("xid", NODE), unread], facts(H100))
    assert (overall(new, 0), new.state().last_complete) == (State.UNKNOWN, {})
    new.apply_round("nvidia", [measured], facts(H100, time=at(10)))
    assert overall(new, 10) is State.HEALTHY
    new.apply_round("nvidia", [unread], facts(H100, time=at(100)))
    again = restarted(new)
    again.apply_round("nvidia", [unread], facts(H100, time=at(110)))
    assert (overall(again, 129), overall(again, 130)) == (State.HEALTHY, State.UNKNOWN)
    again.shift(3600.0)
    assert (overall(again, 3729), overall(again, 3730)) == (State.HEALTHY, State.UNKNOWN)


def test_no_other_monitor_prolongs_the_patience() -> None:
    """Over restarts as well: a monitor that reads all of its own says nothing of what another has not read."""
    tracked = tracker(Settings(unknown_after=120.0))
    tracked.apply_round("nvidia", [clean("ecc.uncorrectable")], facts(H100))
    tracked.apply_round("kernel_log", [clean("xid", NODE)], facts(H100))
    for seconds in (50, 100):
        tracked = restarted(tracked)
        tracked.apply_round("kernel_log", [clean("xid", NODE)], facts(H100, time=at(seconds)))
    tracked.apply_round("nvidia", [not_checked("ecc.uncorrectable")], facts(H100, time=at(110)))
    tracked.apply_round("kernel_log", [clean("xid", NODE)], facts(H100, time=at(115)))
    assert (overall(tracked, 119), overall(tracked, 120)) == (State.HEALTHY, State.UNKNOWN)


def test_every_monitor_covers_its_own() -> None:
    """The round of one changes nothing of what others have or have not measured, and replaces all of its own."""
    tracked = tracker()
    tracked.apply_round("nvidia", [not_checked("gpu.lost"), clean("ecc.disabled")], facts(H100))
    tracked.apply_round("kernel_log", [not_checked("agent.kmsg_overrun", NODE)], facts(H100, time=at(1)))
    assert tracked.coverage.unmeasured == {
        ("gpu.lost", GPU): TIMEOUT,
        ("agent.kmsg_overrun", NODE): TIMEOUT,
    }
    assert tracked.coverage.is_looked_for(("gpu.lost", GPU))
    tracked.apply_round("kernel_log", [clean("agent.kmsg_overrun", NODE)], facts(H100, time=at(2)))
    assert tracked.coverage.coverage().checked == ("agent.kmsg_overrun", "ecc.disabled")
    assert tracked.coverage.last_measured() == {"agent.kmsg_overrun": at(2), "ecc.disabled": at(0)}
    tracked.apply_round("nvidia", [clean("ecc.disabled")], facts(H100, time=at(3)))
    assert tracked.coverage.unmeasured == {}
    assert not tracked.coverage.is_looked_for(("gpu.lost", GPU))
    assert tracked.coverage.components() == {GPU, NODE}


def test_what_is_missing_in_words() -> None:
    """For people, one line for a check and a reason, with the components; what is excused is left out."""
    tracked = tracker()
    missing = [not_checked("gpu.lost", gpu(name)) for name in ("GPU-2", "GPU-1")]
    tracked.apply_round("nvidia", [*missing, not_checked("xid", NODE, RELEASED)], facts(H100))
    coverage = tracked.verdict(facts(H100)).coverage
    assert coverage.in_words() == [
        ("gpu.lost", "timeout (GPU-1, GPU-2)"),
        ("xid", "released: on request (node)"),
    ]
    assert [check for check, _ in coverage.in_words(excused=MissingReason.RELEASED)] == ["gpu.lost"]


def test_nothing_known_is_unknown() -> None:
    """A node of which nothing is known is not healthy."""
    verdict = tracker().verdict(facts())
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


def unmeasured(tracked: FindingTracker, seconds: float, known: bool = True) -> State:
    """The verdict in a round in which the driver is released, since a minute after the start."""
    settings = Settings(driver_release=DriverRelease(max_duration=HOUR))
    release = Release(("annotation",), at(60), known)
    round_ = nvml_facts(HIDDEN, seconds, settings=settings, release=release, gpus=REMEMBERED)
    tracked.apply_round("nvidia", [not_checked("gpu.lost", reason=RELEASED)], round_)
    return tracked.verdict(round_).verdict


HIDDEN = NvmlReadings(problem=RELEASED)
REMEMBERED = {GPU.id: PciAddress("0000:18:00.0")}


def test_released_on_request_keeps_what_was_known() -> None:
    """A release makes nothing unknown within its limit, a finding stays, and one that comes meanwhile counts."""
    tracked = tracker()
    tracked.apply_round("nvidia", [clean("gpu.lost")], facts(H100))
    assert unmeasured(tracked, 61) is State.HEALTHY
    assert unmeasured(tracked, 60 + HOUR - 1) is State.HEALTHY
    assert unmeasured(tracked, 60 + HOUR) is State.UNKNOWN
    tracked.apply([found("xid.79")], at(HOUR), BOOT)
    assert unmeasured(tracked, HOUR) is State.UNHEALTHY


def test_released_before_anything_was_known() -> None:
    """A release is no excuse for a node that was unknown when it began."""
    tracked = tracker()
    assert unmeasured(tracked, 61 + Settings().unknown_after, known=False) is State.UNKNOWN


def test_something_else_that_is_not_measured_during_a_release() -> None:
    """Only what the release hides is excused: a kernel log that cannot be read is not."""
    tracked = tracker()
    round_ = nvml_facts(HIDDEN, 300, release=Release(("signal",), at(60), known=True), gpus=REMEMBERED)
    tracked.apply_round("nvidia", [not_checked("gpu.lost", reason=RELEASED), not_checked("xid", NODE)], round_)
    assert tracked.verdict(round_).verdict is State.UNKNOWN
