"""Lost memory is no evidence: what an agent takes from the Node's record, and what ends it."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from testing.burnin_results import FAILED, PASSED
from testing.findings import (
    BOOT,
    GPU,
    OTHER,
    START,
    at,
    burnin_at,
    clean,
    facts,
    found,
    kinds,
    mig,
    resolved,
    tracker,
)
from testing.nvml_facts import answered, nvml_facts

from gpuhealth.model.causes import MAX_CAUSES, Cause
from gpuhealth.model.component import NODE, Component, Kind, gpu
from gpuhealth.model.finding import Severity
from gpuhealth.model.tracker import Change, ChangeKind, FindingTracker
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings import FindingSettings, Quarantine

LOST = "quarantine.memory_lost"
RAISED, CLEARED = ChangeKind.RAISED, ChangeKind.CLEARED


def causes(tracked: FindingTracker) -> tuple[Cause, ...]:
    """What the record on the Node says then, as another agent reads it."""
    written = msgspec.json.encode(tracked.quarantine().causes)
    return msgspec.json.decode(written, type=tuple[Cause, ...])


def out_for(*codes: str, settings: Settings | None = None) -> tuple[FindingTracker, tuple[Cause, ...]]:
    """The findings of a node that is out for these faults of a GPU, and its record."""
    tracked = tracker(settings)
    tracked.apply([found(code) for code in codes], at(0), BOOT)
    return tracked, causes(tracked)


def recalled(
    tracked: FindingTracker,
    record: tuple[Cause, ...],
    *,
    time: float = 60,
    boot: str = BOOT,
    restored: float | None = None,
) -> list[Change]:
    """What an agent makes of the record."""
    return tracked.recall(record, START, None if restored is None else at(restored), at(time), boot)


def restarted(tracked: FindingTracker) -> FindingTracker:
    """The next agent, with the journal of this one."""
    return tracker(state=msgspec.json.decode(msgspec.json.encode(tracked.state()), type=TrackerState))


def test_a_forgotten_fault_keeps_the_node_out() -> None:
    """With the journal gone the node stays out, critically, for the GPU of the fault, and says why and what ends it."""
    _, record = out_for("xid.79")
    tracked = tracker()
    assert kinds(recalled(tracked, record)) == [(RAISED, LOST)]
    (finding,) = tracked.quarantine().findings
    assert (finding.severity, finding.component) == (Severity.CRITICAL, GPU)
    assert "xid.79" in finding.message
    assert finding.clears_when == "the node has rebooted, a later burn-in has passed, or a person restores the node"
    assert recalled(tracked, record, time=70) == [], "once"
    for seconds in (100, 1000):
        changes = tracked.apply_round("nvidia", [clean("gpu.lost")], facts(GPU, time=at(seconds)))
        assert changes == [], "what is read clean is no evidence"


def test_with_the_journal_nothing_is_recalled() -> None:
    """A restart that keeps the journal changes nothing: what is raised is remembered, and clears by its own rule."""
    tracked, record = out_for("gpu_memory.remap_failed")
    again = restarted(tracked)
    assert recalled(again, record) == []
    again.apply([clean("gpu_memory.remap_failed")], at(70), BOOT)
    assert kinds(again.apply([clean("gpu_memory.remap_failed")], at(110), BOOT)) == [
        (CLEARED, "gpu_memory.remap_failed")
    ]
    assert recalled(again, record, time=111) == [], "the Node still says it until it is written to"
    assert recalled(restarted(again), record, time=120) == [], "nor after another restart"


def test_an_older_copy_of_the_journal_proves_nothing() -> None:
    """A journal from before the fault, or that knows an earlier one to be over, does not explain the later one."""
    tracked = tracker()
    tracked.apply([found("xid.79")], at(-100), BOOT)
    tracked.restore(at(-50), at(-50))
    _, record = out_for("xid.79")
    assert kinds(recalled(restarted(tracked), record)) == [(RAISED, LOST)]


def test_a_reboot_ends_it() -> None:
    """Another boot than the one that the record names: at once where it has passed already, or when it comes."""
    _, record = out_for("xid.79")
    assert kinds(recalled(tracker(), record, boot="boot-2")) == [(RAISED, LOST), (CLEARED, LOST)]
    tracked = tracker()
    recalled(tracked, record)
    assert kinds(tracked.apply([], at(100), "boot-2")) == [(CLEARED, LOST)]
    assert recalled(tracked, record, boot="boot-2") == [], "it is known to be over"


@pytest.mark.parametrize("boots", [("", BOOT), (BOOT, ""), ("", "")], ids=str)
def test_a_boot_that_is_not_known_is_no_reboot(boots: tuple[str, str]) -> None:
    """Neither a record without the boot's id nor a node whose own cannot be read shows that it has rebooted."""
    tracked = tracker()
    assert kinds(recalled(tracked, (Cause("xid.79", START, GPU, boots[0]),), boot=boots[1])) == [(RAISED, LOST)]
    assert tracked.apply([], at(100), boots[1]) == []


def test_a_fault_that_outlasted_a_reboot_is_of_the_later_boot() -> None:
    """What was found again after a reboot is not ended by that one, should it be forgotten then."""
    tracked, _ = out_for("gpu.lost")
    tracked.apply([found("gpu.lost")], at(10), "boot-2")
    assert {cause.boot_id for cause in causes(tracked)} == {"boot-2"}
    assert kinds(recalled(tracker(), causes(tracked), boot="boot-2")) == [(RAISED, LOST)]


def test_a_burnin_ends_it() -> None:
    """One that passed on its GPU and began after the node went out, and no other; it asks for no second one."""
    _, record = out_for("xid.79")
    tracked = tracker(Settings(quarantine=Quarantine(test_before_return=True)))
    recalled(tracked, record)
    assert resolved(tracked, burnin_at(-5, GPU), burnin_at(30, OTHER), burnin_at(40, GPU, status=FAILED)) == []
    assert kinds(resolved(tracked, burnin_at(50, GPU, status=PASSED))) == [(CLEARED, LOST)]


def test_of_a_fault_of_the_node_all_gpus_are_tested() -> None:
    """Where the record names no GPU all of them have to pass."""
    tracked = tracker()
    recalled(tracked, (Cause("gpu.missing", START, NODE, BOOT),))
    both = (GPU, OTHER)
    assert resolved(tracked, burnin_at(50, GPU), gpus=both) == []
    assert kinds(resolved(tracked, burnin_at(50, GPU), burnin_at(60, OTHER), gpus=both)) == [(CLEARED, LOST)]


def test_after_a_reboot_a_test_may_be_asked_for() -> None:
    """Where the settings ask for a burn-in before a return, the reboot that ends it asks for one as after any fault."""
    _, record = out_for("xid.79")
    tracked = tracker(Settings(quarantine=Quarantine(test_before_return=True)))
    changes = recalled(tracked, record, boot="boot-2")
    assert kinds(changes) == [(RAISED, LOST), (CLEARED, LOST), (RAISED, "burnin.required")]


@pytest.mark.parametrize("code", ["burnin.exact", "burnin.required"])
def test_what_only_a_test_can_end(code: str) -> None:
    """A failed or required burn-in that is forgotten is required again: a reboot mends no GPU that computes wrong."""
    tracked, record = tracker(), (Cause(code, START, GPU, BOOT),)
    assert kinds(recalled(tracked, record)) == [(RAISED, "burnin.required")]
    assert tracked.apply([], at(100), "boot-2") == []
    assert recalled(restarted(tracked), record) == []
    assert kinds(resolved(tracked, burnin_at(50, GPU))) == [(CLEARED, "burnin.required")]


def test_a_person_ends_it() -> None:
    """`gpuhealth restore` after the node went out does, before or after the restart; one before that does not."""
    _, record = out_for("xid.79")
    for restored, ends in ((-10.0, False), (30.0, True)):
        tracked = tracker()
        recalled(tracked, record, restored=restored)
        assert bool(tracked.restore(at(restored), at(60))) is ends
        assert kinds(tracked.dismiss(LOST, at(70))) == [(CLEARED, LOST)] * (not ends)


def test_a_restore_by_a_clock_that_is_fast_is_no_evidence_later() -> None:
    """A time to come that stands on the Node may be from before the fault; another one set now is a person's word."""
    _, record = out_for("xid.79")
    tracked, future = tracker(), 1e6
    recalled(tracked, record, restored=future)
    assert tracked.restore(at(future), at(60)) == []
    assert kinds(tracked.restore(at(future + 1), at(70))) == [(CLEARED, LOST)]


def test_found_again_it_is_an_ordinary_finding() -> None:
    """A fault found again replaces the lost record, read before or after it; then its own rule applies."""
    _, record = out_for("gpu_memory.remap_failed")
    first, after = tracker(), tracker()
    first.apply([found("gpu_memory.remap_failed")], at(50), BOOT)
    assert recalled(first, record) == []
    recalled(after, record)
    changes = after.apply([found("gpu_memory.remap_failed")], at(70), BOOT)
    assert kinds(changes) == [(RAISED, "gpu_memory.remap_failed"), (CLEARED, LOST)]
    assert [each.code for each in after.quarantine().findings] == ["gpu_memory.remap_failed"]


def test_found_again_as_something_harmless_is_not_found_again() -> None:
    """A warning does not explain why the node is out: what made it critical may have been forgotten with the rest."""
    _, record = out_for("ecc.uncorrectable")
    tracked = tracker()
    tracked.apply([found("ecc.uncorrectable", Severity.WARNING)], at(50), BOOT)
    assert kinds(recalled(tracked, record)) == [(RAISED, LOST)]
    assert tracked.apply([found("ecc.uncorrectable", Severity.WARNING)], at(70), BOOT) == []


def test_two_causes_of_which_one_is_found_again() -> None:
    """The other one keeps the node out; other GPUs' faults explain nothing either."""
    _, record = out_for("gpu.lost", "xid.79")
    tracked = tracker()
    tracked.apply([found("gpu.lost"), found("xid.79", component=OTHER)], at(50), BOOT)
    assert kinds(recalled(tracked, record)) == [(RAISED, LOST)]
    (finding,) = [each for each in tracked.active() if each.code == LOST]
    assert "xid.79" in finding.message
    assert "gpu.lost" not in finding.message


def test_forgotten_twice() -> None:
    """An agent that loses its journal again finds the first fault in the record, and in the boot of the first one."""
    _, record = out_for("gpu.lost", "xid.79")
    tracked = tracker()
    recalled(tracked, record)
    assert {(cause.code, cause.component, cause.boot_id) for cause in causes(tracked)} == {
        ("gpu.lost", GPU, BOOT),
        ("xid.79", GPU, BOOT),
    }
    again = tracker()
    assert kinds(recalled(again, causes(tracked))) == [(RAISED, LOST)]
    assert recalled(restarted(tracked), causes(tracked)) == []


def test_a_code_that_nobody_knows() -> None:
    """Of a newer version, or written by hand: it keeps the node out like any other, and is quoted with care."""
    tracked = tracker()
    odd = tuple(Cause(code, START) for code in ("gpu.telepathy", "a, b", "", "x" * 5000))
    assert kinds(recalled(tracked, odd)) == [(RAISED, LOST)]
    (finding,) = tracked.active()
    assert len(finding.message) < 500
    assert not tracked.quarantine().drain


def test_the_forgotten_fault_asked_for_a_drain() -> None:
    """What was moved away before the memory was lost is moved away after it, too."""
    _, record = out_for("xid.79")
    tracked = tracker()
    recalled(tracked, record)
    assert tracked.quarantine().drain


def test_a_gpu_that_is_not_listed_is_not_gone() -> None:
    """With the journal the list of GPUs may be lost: one that NVML does not name was not taken out in this boot."""
    _, record = out_for("xid.79")
    tracked = tracker()
    recalled(tracked, record)
    assert tracked.resolve(nvml_facts(answered(GpuReadings(0, uuid=OTHER.id)), 70)) == []


def test_policies_hold_for_it() -> None:
    """A deployment may say that it shall not keep nodes out."""
    _, record = out_for("xid.79")
    tracked = tracker(Settings(findings={LOST: FindingSettings(ignore=True)}))
    assert recalled(tracked, record) == []


def test_a_gpu_that_tells_its_name_later() -> None:
    """A fault that was recorded under a GPU's address is known by its uuid later: nothing is forgotten."""
    tracked = tracker()
    tracked.apply([found("xid.79", component=gpu("GPU-unnamed"))], at(0), BOOT)
    record = causes(tracked)
    tracked.set_gpu_aliases({"GPU-unnamed": GPU.id})
    assert recalled(tracked, record) == []


def test_the_record_is_bounded() -> None:
    """However many findings there are, the annotation stays small."""
    tracked = tracker()
    tracked.apply([found("xid.79", component=gpu(f"GPU-{k}")) for k in range(500)], at(0), BOOT)
    assert len(tracked.quarantine().causes) == MAX_CAUSES


def test_the_clock_was_set() -> None:
    """What is over stays over when the clock is set, by whatever."""
    tracked, record = out_for("xid.79")
    tracked.restore(at(10), at(10))
    tracked.shift(timedelta(hours=1).total_seconds())
    assert recalled(tracked, record, time=4000) == []


MOUNT = Component(Kind.MOUNT, "/data")
PARTS = [(mig("MIG-a"), GPU), (MOUNT, NODE)]
"""Components that are no GPU, and what has to be rebooted or tested where a fault of theirs is forgotten."""


@pytest.mark.parametrize(("part", "place"), PARTS, ids=["mig", "mount"])
def test_a_forgotten_fault_of_a_part(part: Component, place: Component) -> None:
    """A fault of a MIG device keeps its GPU out, that of a part of the host the node; once, and until a reboot."""
    before, after = tracker(), tracker()
    before.apply([found("xid.95", component=part)], at(0), BOOT)
    record = causes(before)
    assert [cause.component for cause in record] == [part]
    assert recalled(restarted(before), record) == [], "with the journal nothing is forgotten"
    assert kinds(recalled(after, record)) == [(RAISED, LOST)]
    assert [finding.component for finding in after.active()] == [place]
    assert recalled(after, record, time=70) == []
    assert kinds(after.apply([], at(100), "boot-2")) == [(CLEARED, LOST)]
    assert recalled(after, record, boot="boot-2") == [], "it is known to be over, whatever the Node says yet"


@pytest.mark.parametrize(("part", "place"), PARTS, ids=["mig", "mount"])
def test_a_fault_of_a_part_is_found_again(part: Component, place: Component) -> None:
    """On the same part it takes the place of the forgotten one, before or after the record is read."""
    record = (Cause("xid.95", START, part, BOOT),)
    first, after = tracker(), tracker()
    first.apply([found("xid.95", component=part)], at(50), BOOT)
    assert recalled(first, record) == []
    recalled(after, record)
    changes = after.apply([found("xid.95", component=part)], at(70), BOOT)
    assert kinds(changes) == [(RAISED, "xid.95"), (CLEARED, LOST)]


def test_a_fault_of_another_part_explains_nothing() -> None:
    """Neither that of another GPU's MIG device nor that of another mount."""
    for part, another in ((mig("MIG-a"), mig("MIG-z", OTHER)), (MOUNT, Component(Kind.MOUNT, "/scratch"))):
        tracked = tracker()
        tracked.apply([found("xid.95", component=another)], at(50), BOOT)
        assert kinds(recalled(tracked, (Cause("xid.95", START, part, BOOT),))) == [(RAISED, LOST)]


def test_a_person_ends_a_forgotten_fault_of_a_part() -> None:
    """Also where the Node still names the part: it is not raised again."""
    for part, _ in PARTS:
        tracked, record = tracker(), (Cause("xid.95", START, part, BOOT),)
        recalled(tracked, record)
        assert kinds(tracked.dismiss(LOST, at(70))) == [(CLEARED, LOST)]
        assert recalled(tracked, record, time=80) == []
