"""Whatever happens to a node, in any order: what is not measured is not healthy, and nothing ends but by evidence."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.findings import GPU, TIMEOUT, at, clean, found, readings

from gpuhealth import monitors as checks
from gpuhealth.model.finding import NotChecked, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.model.verdict import State
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.monitors.settings import Settings

ESSENTIAL, READ, DEBOUNCED, LATCHED = "gpu.lost", "gpu_memory.remap_failed", "gpu.straggler", "xid.79"
SEVERITY = {ESSENTIAL: Severity.CRITICAL, READ: Severity.CRITICAL, DEBOUNCED: Severity.WARNING}
SAID = st.sampled_from(["found", "clean", "unread"])
ROUNDS = st.lists(
    st.fixed_dictionaries(
        {
            "pause": st.sampled_from([1.0, 10.0, 31.0, 61.0, 121.0, 3600.0]),
            "said": st.fixed_dictionaries(dict.fromkeys(SEVERITY, SAID)),
            "xid": st.booleans(),
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
    return clean(code) if said == "clean" else NotChecked(code, GPU, TIMEOUT)


class Told:
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


@settings(max_examples=300, deadline=None)
@given(ROUNDS)
def test_the_laws(rounds: list[dict[str, object]]) -> None:
    """Over any rounds, restarts and reboots a verdict is healthy only by measurement, and findings end by evidence."""
    kept, now, boot, latched = Findings(Settings()), 0.0, 0, False
    told = {code: Told() for code in SEVERITY}
    measured: float | None = None  # when the essential check last was
    active: set[str] = set()
    for each in rounds:
        now += each["pause"]  # type: ignore[operator]
        said: dict[str, str] = each["said"]  # type: ignore[assignment]
        boot += bool(each["rebooted"])
        if each["restarted"] or each["rebooted"]:
            remembered = msgspec.json.decode(msgspec.json.encode(kept.ledger()), type=TrackerState)
            kept = Findings(Settings(), remembered)
        latched = bool(each["xid"]) or (latched and not each["rebooted"])
        if each["xid"]:
            kept.take([found(LATCHED)], at(now), f"boot-{boot}")
        kept.take_round([outcome(code, word) for code, word in said.items()], at(now), f"boot-{boot}")
        before, active = active, {finding.code for finding in kept.active()}

        for code, word in said.items():
            rule = checks.code(code)
            told[code].take(word, now, rule.raise_after)
            began = told[code].found_since
            held = began is not None and now - began >= rule.raise_after
            if word == "found" and held:
                assert code in active, f"{code} has held and is not raised"
            if code in active - before:
                assert word == "found", f"{code} is raised and was not found"
                assert held, f"{code} is raised before it has held"
            if code in before - active:
                since = told[code].clean_since
                assert since is not None, f"{code} ended and was not read clean"
                assert now - since >= rule.clear_after, f"{code} ended too early"
        assert (LATCHED in active) == latched

        measured = measured if said[ESSENTIAL] == "unread" else now
        state = kept.verdict(readings(GpuReadings(0, uuid=GPU), time=at(now)), History(), at(now)).verdict
        unknown = measured is None or now - measured >= Settings().unknown_after
        critical = any(finding.severity is Severity.CRITICAL for finding in kept.active())
        assert state is (
            State.UNHEALTHY if critical else State.UNKNOWN if unknown else State.DEGRADED if active else State.HEALTHY
        )
