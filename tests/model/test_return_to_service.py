"""What has to be tested before a node returns, where the settings ask for it."""

from __future__ import annotations

import msgspec
from testing.burnin_results import FAILED, STOPPED
from testing.findings import BOOT, GPU, at, burnin_at, clean, found, kinds, resolved, tracker

from gpuhealth.model.component import NODE, gpu
from gpuhealth.model.finding import Severity
from gpuhealth.model.tracker import Change, ChangeKind, FindingTracker
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings import FindingSettings, Quarantine

OTHER, NEW = gpu("GPU-2"), gpu("GPU-9")
TESTED = Settings(quarantine=Quarantine(test_before_return=True))


def rebooted(tracked: FindingTracker, time: float = 10) -> list[Change]:
    """What changes with a reboot."""
    return tracked.apply([], at(time), "boot-2")


def test_a_test_is_required_before_the_node_returns() -> None:
    """A finding that kept the node out leaves the requirement behind; a restart keeps it, a later pass ends it."""
    tracked = tracker(TESTED)
    tracked.apply([found("xid.79")], at(0), BOOT)
    assert kinds(rebooted(tracked)) == [(ChangeKind.CLEARED, "xid.79"), (ChangeKind.RAISED, "burnin.required")]
    assert resolved(tracked, burnin_at(5, GPU)) == [], "it began before the fault had cleared"
    assert resolved(tracked, burnin_at(20, GPU, status=FAILED), burnin_at(30, GPU, status=STOPPED)) == []
    assert resolved(tracked, burnin_at(20, OTHER)) == [], "another GPU"
    again = tracker(TESTED, msgspec.json.decode(msgspec.json.encode(tracked.state()), type=TrackerState))
    (required,) = again.quarantine().findings
    assert (required.code, required.component, again.quarantine().drain) == ("burnin.required", GPU, False)
    assert "xid.79 has cleared" in required.message
    assert kinds(resolved(again, burnin_at(20, GPU))) == [(ChangeKind.CLEARED, "burnin.required")]
    assert again.quarantine().findings == ()


def test_after_a_fault_of_the_node_every_gpu_is_tested() -> None:
    """A node's finding asks for all GPUs; they may pass in different runs."""
    tracked = tracker(TESTED)
    tracked.apply([found("gpu.missing", component=NODE)], at(0), BOOT)
    tracked.apply([clean("gpu.missing", NODE)], at(10), BOOT)
    tracked.apply([clean("gpu.missing", NODE)], at(1000), BOOT)
    both = (GPU, OTHER)
    assert resolved(tracked, gpus=()) == [], "no GPU at all proves nothing"
    assert resolved(tracked, burnin_at(2000, GPU), gpus=both) == []
    assert resolved(tracked, burnin_at(2000, GPU), burnin_at(2100, OTHER), gpus=both)


def test_a_fault_that_comes_back_asks_for_another_test() -> None:
    """A pass from before the last clearing does not count."""
    tracked = tracker(TESTED)
    for start in (0, 100):
        tracked.apply([found("xid.79")], at(start), f"boot-{start}")
        tracked.apply([], at(start + 10), f"boot-{start}-again")
    assert resolved(tracked, burnin_at(50, GPU)) == []
    assert resolved(tracked, burnin_at(120, GPU))


def test_no_test_is_required_where_nobody_asked_for_one() -> None:
    """Not by default, not for a code whose policy says no, not for what never kept the node out; one code may ask."""
    quiet = tracker()
    quiet.apply([found("xid.79")], at(0), BOOT)
    assert kinds(rebooted(quiet)) == [(ChangeKind.CLEARED, "xid.79")]
    policies = {"xid.79": FindingSettings(test_before_return=False)}
    but_one = tracker(TESTED.model_copy(update={"findings": policies}))
    but_one.apply([found("xid.79"), found("pcie.width", Severity.WARNING)], at(0), BOOT)
    but_one.apply([clean("pcie.width")], at(5), BOOT)
    assert "burnin.required" not in [each.finding.code for each in [*rebooted(but_one), *rebooted(but_one, 999)]]
    only = tracker(Settings(findings={"xid.79": FindingSettings(test_before_return=True)}))
    only.apply([found("xid.79")], at(0), BOOT)
    assert (ChangeKind.RAISED, "burnin.required") in kinds(rebooted(only))


def test_a_finding_that_is_no_longer_critical_asks_too() -> None:
    """What no longer quarantines, since it has become a warning, has let the node go as well."""
    tracked = tracker(TESTED)
    tracked.apply([found("ecc.uncorrectable")], at(0), BOOT)
    changes = tracked.apply([found("ecc.uncorrectable", Severity.WARNING)], at(10), BOOT)
    assert kinds(changes) == [(ChangeKind.CHANGED, "ecc.uncorrectable"), (ChangeKind.RAISED, "burnin.required")]


def test_a_failed_burnin_asks_for_its_own_test_only() -> None:
    """A burn-in's finding ends with a pass of the test, at once and with nothing left to prove."""
    tracked = tracker(TESTED)
    tracked.apply([found("burnin.exact")], at(0), BOOT)
    assert rebooted(tracked) == [], "a reboot proves nothing"
    (cleared,) = tracked.apply([clean("burnin.exact")], at(20), BOOT)
    assert (cleared.kind, cleared.reason) == (ChangeKind.CLEARED, "the test has passed")
    assert tracked.active() == ()


def test_a_person_may_trust_the_node_untested() -> None:
    """A dismissed requirement is gone, and nothing takes its place."""
    tracked = tracker(TESTED)
    tracked.apply([found("xid.79")], at(0), BOOT)
    rebooted(tracked)
    assert kinds(tracked.dismiss("burnin.required", at(20))) == [(ChangeKind.CLEARED, "burnin.required")]
    assert resolved(tracked) == []
    assert tracked.active() == ()


def test_the_gpu_in_the_place_of_a_bad_one_is_tested() -> None:
    """With the policy on, a replaced GPU leaves the requirement with the node: the new one has proved nothing."""
    tracked = tracker(TESTED)
    tracked.apply([found("burnin.exact")], at(0), BOOT)
    changes = resolved(tracked, gpus=(NEW,))
    assert kinds(changes) == [(ChangeKind.CLEARED, "burnin.exact"), (ChangeKind.RAISED, "burnin.required")]
    assert tracked.active()[0].component == NODE
    assert resolved(tracked, burnin_at(2000, NEW), gpus=(NEW,), time=3000)
    assert tracked.active() == ()


def test_restored_is_trusted_untested() -> None:
    """A person's restore ends what cannot be read again and asks for no test; a test that failed stays."""
    tracked = tracker(TESTED)
    tracked.apply([found("xid.79"), found("burnin.exact", component=OTHER)], at(0), BOOT)
    assert kinds(tracked.restore(at(5), at(6))) == [(ChangeKind.CLEARED, "xid.79")]
    assert [each.code for each in tracked.active()] == ["burnin.exact"]
    again = tracker(TESTED)
    again.apply([found("xid.79")], at(0), BOOT)
    rebooted(again)
    assert kinds(again.restore(at(15), at(16))) == [(ChangeKind.CLEARED, "burnin.required")]
