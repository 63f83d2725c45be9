"""Lost memory is no evidence: what an agent takes from the Node's record, and what ends it."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from testing.burnin_results import FAILED, PASSED
from testing.findings import BOOT, GPU, START, at, burnin_at, clean, findings, found, kinds, readings, settled

from gpuhealth.model.causes import MOST, Cause
from gpuhealth.model.finding import Severity
from gpuhealth.model.history import History
from gpuhealth.model.tracker import Change, ChangeKind, Findings, Ledger
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.runtime.settings import FindingPolicy, Quarantine, Settings

LOST = "quarantine.memory_lost"
RAISED, CLEARED = ChangeKind.RAISED, ChangeKind.CLEARED


def causes(kept: Findings) -> tuple[Cause, ...]:
    """What the record on the Node says then, as another agent reads it."""
    written = msgspec.json.encode(kept.quarantine().causes)
    return msgspec.json.decode(written, type=tuple[Cause, ...])


def out_for(*codes: str, settings: Settings | None = None) -> tuple[Findings, tuple[Cause, ...]]:
    """Findings of a node that is out for these faults of a GPU, and its record."""
    kept = findings(settings)
    kept.take([found(code) for code in codes], at(0), BOOT)
    return kept, causes(kept)


def recalled(
    kept: Findings, record: tuple[Cause, ...], *, time: float = 60, boot: str = BOOT, restored: float | None = None
) -> list[Change]:
    """What an agent makes of the record."""
    return kept.recall(record, START, None if restored is None else at(restored), at(time), boot)


def restarted(kept: Findings) -> Findings:
    """The next agent, with the journal of this one."""
    return findings(ledger=msgspec.json.decode(msgspec.json.encode(kept.ledger()), type=Ledger))


def test_a_forgotten_fault_keeps_the_node_out() -> None:
    """With the journal gone the node stays out, critically, for the GPU of the fault, and says why and what ends it."""
    _, record = out_for("xid.79")
    kept = findings()
    assert kinds(recalled(kept, record)) == [(RAISED, LOST)]
    (finding,) = kept.quarantine().findings
    assert (finding.severity, finding.gpu) == (Severity.CRITICAL, GPU)
    assert "xid.79" in finding.message
    assert finding.clears_when == "the node has rebooted, a later burn-in has passed, or a person says so"
    assert recalled(kept, record, time=70) == [], "once"
    for seconds in (100, 1000):
        assert kept.take_round([clean("gpu.lost")], at(seconds), BOOT) == [], "what is read clean is no evidence"


def test_with_the_journal_nothing_is_recalled() -> None:
    """A restart that keeps the journal changes nothing: what is raised is remembered, and clears by its own rule."""
    kept, record = out_for("gpu_memory.remap_failed")
    again = restarted(kept)
    assert recalled(again, record) == []
    again.take([clean("gpu_memory.remap_failed")], at(70), BOOT)
    assert kinds(again.take([clean("gpu_memory.remap_failed")], at(110), BOOT)) == [
        (CLEARED, "gpu_memory.remap_failed")
    ]
    assert recalled(again, record, time=111) == [], "the Node still says it until it is written to"
    assert recalled(restarted(again), record, time=120) == [], "nor after another restart"


def test_an_older_copy_of_the_journal_proves_nothing() -> None:
    """A journal from before the fault, or that knows an earlier one to be over, does not explain the later one."""
    kept = findings()
    kept.take([found("xid.79")], at(-100), BOOT)
    kept.restore(at(-50), at(-50))
    _, record = out_for("xid.79")
    assert kinds(recalled(restarted(kept), record)) == [(RAISED, LOST)]


def test_a_reboot_ends_it() -> None:
    """Another boot than the one that the record names: at once where it has passed already, or when it comes."""
    _, record = out_for("xid.79")
    assert kinds(recalled(findings(), record, boot="boot-2")) == [(RAISED, LOST), (CLEARED, LOST)]
    kept = findings()
    recalled(kept, record)
    assert kinds(kept.take([], at(100), "boot-2")) == [(CLEARED, LOST)]
    assert recalled(kept, record, boot="boot-2") == [], "it is known to be over"


@pytest.mark.parametrize("boots", [("", BOOT), (BOOT, ""), ("", "")], ids=str)
def test_a_boot_that_is_not_known_is_no_reboot(boots: tuple[str, str]) -> None:
    """Neither a record without the boot's id nor a node whose own cannot be read shows that it has rebooted."""
    kept = findings()
    assert kinds(recalled(kept, (Cause("xid.79", START, GPU, boots[0]),), boot=boots[1])) == [(RAISED, LOST)]
    assert kept.take([], at(100), boots[1]) == []


def test_a_fault_that_outlasted_a_reboot_is_of_the_later_boot() -> None:
    """What was found again after a reboot is not ended by that one, should it be forgotten then."""
    kept, _ = out_for("gpu.lost")
    kept.take([found("gpu.lost")], at(10), "boot-2")
    assert {cause.boot_id for cause in causes(kept)} == {"boot-2"}
    assert kinds(recalled(findings(), causes(kept), boot="boot-2")) == [(RAISED, LOST)]


def test_a_burnin_ends_it() -> None:
    """One that passed on its GPU and began after the node went out, and no other; it asks for no second one."""
    _, record = out_for("xid.79")
    kept = findings(Settings(quarantine=Quarantine(test_before_return=True)))
    recalled(kept, record)
    assert settled(kept, burnin_at(-5, GPU), burnin_at(30, "GPU-2"), burnin_at(40, GPU, status=FAILED)) == []
    assert kinds(settled(kept, burnin_at(50, GPU, status=PASSED))) == [(CLEARED, LOST)]


def test_of_a_fault_of_the_node_all_gpus_are_tested() -> None:
    """Where the record names no GPU all of them have to pass."""
    kept = findings()
    recalled(kept, (Cause("gpu.missing", START, "", BOOT),))
    both = (GPU, "GPU-2")
    assert settled(kept, burnin_at(50, GPU), gpus=both) == []
    assert kinds(settled(kept, burnin_at(50, GPU), burnin_at(60, "GPU-2"), gpus=both)) == [(CLEARED, LOST)]


def test_after_a_reboot_a_test_may_be_asked_for() -> None:
    """Where the settings ask for a burn-in before a return, the reboot that ends it asks for one as after any fault."""
    _, record = out_for("xid.79")
    kept = findings(Settings(quarantine=Quarantine(test_before_return=True)))
    changes = recalled(kept, record, boot="boot-2")
    assert kinds(changes) == [(RAISED, LOST), (CLEARED, LOST), (RAISED, "burnin.required")]


@pytest.mark.parametrize("code", ["burnin.exact", "burnin.required"])
def test_what_only_a_test_can_end(code: str) -> None:
    """A failed or required burn-in that is forgotten is required again: a reboot mends no GPU that computes wrong."""
    kept, record = findings(), (Cause(code, START, GPU, BOOT),)
    assert kinds(recalled(kept, record)) == [(RAISED, "burnin.required")]
    assert kept.take([], at(100), "boot-2") == []
    assert recalled(restarted(kept), record) == []
    assert kinds(settled(kept, burnin_at(50, GPU))) == [(CLEARED, "burnin.required")]


def test_a_person_ends_it() -> None:
    """`gpuhealth restore` after the node went out does, before or after the restart; one before that does not."""
    _, record = out_for("xid.79")
    for restored, ends in ((-10.0, False), (30.0, True)):
        kept = findings()
        recalled(kept, record, restored=restored)
        assert bool(kept.restore(at(restored), at(60))) is ends
        assert kinds(kept.dismiss(LOST, at(70))) == [(CLEARED, LOST)] * (not ends)


def test_a_restore_by_a_clock_that_is_fast_is_no_evidence_later() -> None:
    """A time to come that stands on the Node may be from before the fault; another one set now is a person's word."""
    _, record = out_for("xid.79")
    kept, future = findings(), 1e6
    recalled(kept, record, restored=future)
    assert kept.restore(at(future), at(60)) == []
    assert kinds(kept.restore(at(future + 1), at(70))) == [(CLEARED, LOST)]


def test_found_again_it_is_an_ordinary_finding() -> None:
    """The same fault, found again, takes its place, before or after the record is read; then its own rule counts."""
    _, record = out_for("gpu_memory.remap_failed")
    first, after = findings(), findings()
    first.take([found("gpu_memory.remap_failed")], at(50), BOOT)
    assert recalled(first, record) == []
    recalled(after, record)
    changes = after.take([found("gpu_memory.remap_failed")], at(70), BOOT)
    assert kinds(changes) == [(RAISED, "gpu_memory.remap_failed"), (CLEARED, LOST)]
    assert [each.code for each in after.quarantine().findings] == ["gpu_memory.remap_failed"]


def test_found_again_as_something_harmless_is_not_found_again() -> None:
    """A warning does not explain why the node is out: what made it critical may have been forgotten with the rest."""
    _, record = out_for("ecc.uncorrectable")
    kept = findings()
    kept.take([found("ecc.uncorrectable", Severity.WARNING)], at(50), BOOT)
    assert kinds(recalled(kept, record)) == [(RAISED, LOST)]
    assert kept.take([found("ecc.uncorrectable", Severity.WARNING)], at(70), BOOT) == []


def test_two_causes_of_which_one_is_found_again() -> None:
    """The other one keeps the node out; other GPUs' faults explain nothing either."""
    _, record = out_for("gpu.lost", "xid.79")
    kept = findings()
    kept.take([found("gpu.lost"), found("xid.79", component="GPU-2")], at(50), BOOT)
    assert kinds(recalled(kept, record)) == [(RAISED, LOST)]
    (finding,) = [each for each in kept.active() if each.code == LOST]
    assert "xid.79" in finding.message
    assert "gpu.lost" not in finding.message


def test_forgotten_twice() -> None:
    """An agent that loses its journal again finds the first fault in the record, and in the boot of the first one."""
    _, record = out_for("gpu.lost", "xid.79")
    kept = findings()
    recalled(kept, record)
    assert {(cause.code, cause.gpu, cause.boot_id) for cause in causes(kept)} == {
        ("gpu.lost", GPU, BOOT),
        ("xid.79", GPU, BOOT),
    }
    again = findings()
    assert kinds(recalled(again, causes(kept))) == [(RAISED, LOST)]
    assert recalled(restarted(kept), causes(kept)) == []


def test_a_code_that_nobody_knows() -> None:
    """Of a newer version, or written by hand: it keeps the node out like any other, and is quoted with care."""
    kept = findings()
    odd = tuple(Cause(code, START) for code in ("gpu.telepathy", "a, b", "", "x" * 5000))
    assert kinds(recalled(kept, odd)) == [(RAISED, LOST)]
    (finding,) = kept.active()
    assert len(finding.message) < 500
    assert not kept.quarantine().drain


def test_the_forgotten_fault_asked_for_a_drain() -> None:
    """What was moved away before the memory was lost is moved away after it, too."""
    _, record = out_for("xid.79")
    kept = findings()
    recalled(kept, record)
    assert kept.quarantine().drain


def test_a_gpu_that_is_not_listed_is_not_gone() -> None:
    """With the journal the list of GPUs may be lost: one that NVML does not name was not taken out in this boot."""
    _, record = out_for("xid.79")
    kept = findings()
    recalled(kept, record)
    assert kept.settle(readings(GpuReadings(0, uuid="GPU-2"), time=at(70)), History()) == []


def test_policies_hold_for_it() -> None:
    """A deployment may say that it shall not keep nodes out."""
    _, record = out_for("xid.79")
    kept = findings(Settings(findings={LOST: FindingPolicy(ignore=True)}))
    assert recalled(kept, record) == []


def test_a_gpu_that_tells_its_name_later() -> None:
    """A fault that was recorded under a GPU's address is known by its uuid later: nothing is forgotten."""
    kept = findings()
    kept.take([found("xid.79", component="GPU-unnamed")], at(0), BOOT)
    record = causes(kept)
    kept.attribute({"GPU-unnamed": GPU})
    assert recalled(kept, record) == []


def test_the_record_is_bounded() -> None:
    """However many findings there are, the annotation stays small."""
    kept = findings()
    kept.take([found("xid.79", component=f"GPU-{k}") for k in range(500)], at(0), BOOT)
    assert len(kept.quarantine().causes) == MOST


def test_the_clock_was_set() -> None:
    """What is over stays over when the clock is set, by whatever."""
    kept, record = out_for("xid.79")
    kept.restore(at(10), at(10))
    kept.shift(timedelta(hours=1).total_seconds())
    assert recalled(kept, record, time=4000) == []
