"""Whatever happens to a node, in any order: what is not measured is not healthy, and nothing ends but by evidence."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.findings import GPU, at, clean, facts, found, not_checked, tracker

from gpuhealth.model.component import Component, Kind
from gpuhealth.model.finding import Outcome, Severity
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.model.verdict import State
from gpuhealth.monitors.registry import code_of
from gpuhealth.monitors.settings import Settings

ESSENTIAL, READ, DEBOUNCED, LATCHED = "gpu.lost", "gpu_memory.remap_failed", "gpu.straggler", "xid.79"
SEVERITY = {ESSENTIAL: Severity.CRITICAL, READ: Severity.CRITICAL, DEBOUNCED: Severity.WARNING}
MOUNT = Component(Kind.MOUNT, "/data")
SAID = st.sampled_from(["found", "clean", "unread"])
ROUNDS = st.lists(
    st.fixed_dictionaries(
        {
            "pause": st.sampled_from([1.0, 10.0, 31.0, 61.0, 121.0, 3600.0]),
            "said": st.fixed_dictionaries(dict.fromkeys(SEVERITY, SAID)),
            "xid": st.booleans(),
            "mount": st.sampled_from(["clean", "unread", ""]),  # of another monitor; empty where it has no round
            "restarted": st.booleans(),
            "rebooted": st.sampled_from([False, False, False, True]),
        }
    ),
    max_size=30,
)


def outcome(code: str, said: str) -> Outcome:
    """What a check says of the GPU."""
    if said == "found":
        return found(code, SEVERITY[code])
    return clean(code) if said == "clean" else not_checked(code)


class Reported:
    """What was said of one code, and since when."""

    def __init__(self) -> None:
        self.clean_since: float | None = None
        self.found_since: float | None = None
        self.found_last = 0.0

    def take(self, said: str, now: float, raise_after: float) -> None:
        """Notes what a round says."""
        self.clean_since = (now if self.clean_since is None else self.clean_since) if said == "clean" else None
        unseen = said == "unread" and self.found_since is not None and now - self.found_last > raise_after
        if said == "clean" or unseen:
            self.found_since = None
        if said == "found":
            self.found_since = now if self.found_since is None else self.found_since
            self.found_last = now


def is_overdue(measured: float | None, now: float) -> bool:
    """Whether what was measured then, or never, is unknown now."""
    return measured is None or now - measured >= Settings().unknown_after


@settings(max_examples=300, deadline=None)
@given(ROUNDS)
def test_the_laws(rounds: list[dict[str, object]]) -> None:
    """Over any rounds, restarts and reboots a verdict is healthy only by measurement, and findings end by evidence.

    Of two monitors, neither makes up for what the other has not measured.
    """
    tracked, now, boot, latched = tracker(), 0.0, 0, False
    reported = {code: Reported() for code in SEVERITY}
    measured: float | None = None  # when the essential check last was
    mount_measured: float | None = None  # and that of the other monitor
    mount_said = ""  # by the other monitor since the agent started
    active: set[str] = set()
    for each in rounds:
        now += each["pause"]  # type: ignore[operator]
        said: dict[str, str] = each["said"]  # type: ignore[assignment]
        boot += bool(each["rebooted"])
        if each["restarted"] or each["rebooted"]:
            remembered = msgspec.json.decode(msgspec.json.encode(tracked.state()), type=TrackerState)
            tracked, mount_said = tracker(state=remembered), ""
        latched = bool(each["xid"]) or (latched and not each["rebooted"])
        if each["xid"]:
            tracked.apply([found(LATCHED)], at(now), f"boot-{boot}")
        known = facts(GPU, MOUNT, time=at(now), boot_id=f"boot-{boot}")
        tracked.apply_round("nvidia", [outcome(code, word) for code, word in said.items()], known)
        if each["mount"]:
            mount_said = str(each["mount"])
            of_mount = clean(ESSENTIAL, MOUNT) if mount_said == "clean" else not_checked(ESSENTIAL, MOUNT)
            tracked.apply_round("mounts", [of_mount], known)
            mount_measured = now if mount_said == "clean" else mount_measured
        before, active = active, {finding.code for finding in tracked.active()}

        for code, word in said.items():
            rule = code_of(code)
            reported[code].take(word, now, rule.raise_after)
            began = reported[code].found_since
            held = began is not None and now - began >= rule.raise_after
            if word == "found" and held:
                assert code in active, f"{code} has held and is not raised"
            if code in active - before:
                assert word == "found", f"{code} is raised and was not found"
                assert held, f"{code} is raised before it has held"
            if code in before - active:
                since = reported[code].clean_since
                assert since is not None, f"{code} ended and was not read clean"
                assert now - since >= rule.clear_after, f"{code} ended too early"
        assert (LATCHED in active) == latched

        measured = measured if said[ESSENTIAL] == "unread" else now
        state = tracked.verdict(known).verdict
        unknown = is_overdue(measured, now) or (mount_said == "unread" and is_overdue(mount_measured, now))
        critical = any(finding.severity is Severity.CRITICAL for finding in tracked.active())
        assert state is (
            State.UNHEALTHY if critical else State.UNKNOWN if unknown else State.DEGRADED if active else State.HEALTHY
        )
