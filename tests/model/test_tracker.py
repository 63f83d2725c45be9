"""Findings over time: debounce, clearing by evidence, and what survives a restart."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from testing.findings import BOOT, GPU, START, TIMEOUT, at, clean, findings, found, kinds, readings, settled

from gpuhealth import monitors as checks
from gpuhealth.model.finding import NotChecked, Severity
from gpuhealth.model.history import Baseline, History
from gpuhealth.model.policy import FindingPolicy
from gpuhealth.model.tracker import ChangeKind
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.model.verdict import State
from gpuhealth.monitors.nvidia.readings import GpuReadings, MigDevice, NvmlReadings
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.monitors.settings import Settings


def test_raised_once_and_cleared_after_clean_reads() -> None:
    """A finding is raised once, and cleared when it has been read clean for as long as its code says."""
    kept = findings()
    clear_after = checks.code("gpu_memory.remap_failed").clear_after
    assert kinds(kept.take([found("gpu_memory.remap_failed")], at(0), BOOT)) == [
        (ChangeKind.RAISED, "gpu_memory.remap_failed")
    ]
    assert kept.take([found("gpu_memory.remap_failed")], at(10), BOOT) == []
    assert kept.take([clean("gpu_memory.remap_failed")], at(20), BOOT) == []
    assert kept.active()
    (cleared,) = kept.take([clean("gpu_memory.remap_failed")], at(20 + clear_after), BOOT)
    assert cleared.kind is ChangeKind.CLEARED
    assert cleared.finding.first_seen == START
    assert "read clean" in cleared.reason
    assert kept.active() == ()


def test_a_flapping_fault_stays_raised() -> None:
    """One bad reading within the clearing time begins it anew: no flapping."""
    kept = findings()
    kept.take([found("gpu_memory.remap_failed")], at(0), BOOT)
    step = checks.code("gpu_memory.remap_failed").clear_after * 0.6
    for number in range(1, 10):
        outcome = clean("gpu_memory.remap_failed") if number % 2 else found("gpu_memory.remap_failed")
        assert kept.take([outcome], at(number * step), BOOT) == []
    assert len(kept.active()) == 1


def test_not_measured_clears_nothing() -> None:
    """A reading that is missing is no clean reading, and time without one does not count as clean."""
    kept = findings()
    clear_after = checks.code("gpu_memory.remap_failed").clear_after
    kept.take([found("gpu_memory.remap_failed")], at(0), BOOT)
    kept.take([clean("gpu_memory.remap_failed")], at(1), BOOT)
    kept.take([NotChecked("gpu_memory.remap_failed", GPU, TIMEOUT)], at(2), BOOT)
    assert kept.take([clean("gpu_memory.remap_failed")], at(3 + clear_after), BOOT) == []
    assert kept.active()


def test_raise_after_debounces_and_one_look_does_not() -> None:
    """What has to hold for a while is raised only then; a single look cannot wait."""
    settings = Settings(findings={"thermal.gpu": FindingPolicy(raise_after=30.0)})
    kept = findings(settings)
    assert kept.take([found("thermal.gpu")], at(0), BOOT) == []
    assert kept.take([found("thermal.gpu")], at(29), BOOT) == []
    assert kinds(kept.take([found("thermal.gpu")], at(30), BOOT)) == [(ChangeKind.RAISED, "thermal.gpu")]
    short = findings(settings)
    short.take([found("thermal.gpu")], at(0), BOOT)
    assert short.take([clean("thermal.gpu")], at(10), BOOT) == []
    assert short.take([found("thermal.gpu")], at(35), BOOT) == []
    assert findings(settings, one_look=True).take([found("thermal.gpu")], at(0), BOOT)


def test_bursts_far_apart_do_not_add_up() -> None:
    """What is seen for a moment now and then, and cannot be judged between, has not held."""
    kept = findings()
    raise_after = checks.code("gpu.straggler").raise_after
    burst = found("gpu.straggler", Severity.WARNING)
    for start in (0.0, 3600.0, 7200.0):
        assert kept.take([burst], at(start), BOOT) == []
        assert kept.take([NotChecked("gpu.straggler", GPU, TIMEOUT)], at(start + 10), BOOT) == []
        assert kept.take([NotChecked("gpu.straggler", GPU, TIMEOUT)], at(start + raise_after + 10), BOOT) == []
    kept.take([burst], at(9000), BOOT)
    kept.take([NotChecked("gpu.straggler", GPU, TIMEOUT)], at(9010), BOOT)  # but a short gap is no break
    assert kinds(kept.take([burst], at(9000 + raise_after), BOOT)) == [(ChangeKind.RAISED, "gpu.straggler")]


def test_measured_means_what_is_there_now() -> None:
    """A GPU that is gone and an event that came once make no check look overdue."""
    kept = findings()
    kept.take_round([clean("gpu.lost"), clean("gpu.lost", "GPU-2")], at(0), BOOT)
    kept.take([found("xid.31", Severity.WARNING)], at(1), BOOT)
    kept.take_round([clean("gpu.lost", "GPU-2"), NotChecked("ecc.disabled", GPU, TIMEOUT)], at(10), BOOT)
    assert kept.measured.last_measured() == {"gpu.lost": at(10)}


def test_severity_follows_what_is_read() -> None:
    """A reading that gets worse or better changes the finding's severity, and says what it was."""
    kept = findings()
    kept.take([found("driver.unresponsive", Severity.WARNING, "node")], at(20), BOOT)
    (worse,) = kept.take([found("driver.unresponsive", Severity.CRITICAL, "node")], at(60), BOOT)
    assert (worse.kind, worse.finding.severity, worse.reason) == (ChangeKind.CHANGED, Severity.CRITICAL, "was warning")
    (better,) = kept.take([found("driver.unresponsive", Severity.WARNING, "node")], at(70), BOOT)
    assert better.finding.severity is Severity.WARNING


def test_latched_by_the_boot() -> None:
    """What only a reboot ends is not ended by silence, by clean rounds or by a restart of the agent."""
    kept = findings()
    kept.take([found("xid.79")], at(0), BOOT)
    assert kept.take([], at(7 * 86400), BOOT) == []
    again = findings(ledger=msgspec.json.decode(msgspec.json.encode(kept.ledger()), type=TrackerState))
    assert again.take([], at(7 * 86400), BOOT) == []
    assert again.active() == kept.active()
    (cleared,) = again.take([], at(7 * 86400 + 60), "boot-2")
    assert (cleared.kind, cleared.reason) == (ChangeKind.CLEARED, "the node has rebooted")


def test_the_same_fault_in_the_next_boot() -> None:
    """A fault that comes again with the first words of a new boot is one of that boot, and waits for the next."""
    kept = findings()
    kept.take([found("xid.79")], at(0), BOOT)
    assert kept.take([found("xid.79")], at(300), "boot-2") == []
    assert kinds(kept.take([], at(600), "boot-3")) == [(ChangeKind.CLEARED, "xid.79")]


def test_a_reset_clears_what_the_gpu_asked_it_for() -> None:
    """Recovery action back to none ends the GPU's latched XIDs, not those of another GPU, not those never reset."""
    kept = findings()
    kept.take([found("xid.95"), found("xid.95", component="GPU-2"), found("gpu.recovery_action")], at(0), BOOT)
    later = at(checks.code("gpu.recovery_action").clear_after + 10)
    kept.take([clean("gpu.recovery_action")], at(10), BOOT)
    changes = kept.take([clean("gpu.recovery_action")], later, BOOT)
    assert {(change.finding.code, change.finding.component) for change in changes} == {
        ("gpu.recovery_action", GPU),
        ("xid.95", GPU),
    }
    assert [finding.component for finding in kept.active()] == ["GPU-2"]


def test_the_drivers_own_word_ends_what_it_asked_for() -> None:
    """XID 154 back to none ends the XIDs before it at once, also where no recovery action can be read."""
    kept = findings()
    kept.take([found("xid.95"), found("xid.154"), found("xid.95", component="GPU-2")], at(0), BOOT)
    kept.take([found("gpu.recovery_action")], at(0), BOOT)  # before anybody knew that it cannot be read
    assert kept.take_round([clean("gpu.lost")], at(100), BOOT) == []
    changes = kept.take([clean("gpu.recovery_action"), clean("xid.154")], at(200), BOOT)
    assert {code for _, code in kinds(changes)} == {"gpu.recovery_action", "xid.154", "xid.95"}
    assert [finding.component for finding in kept.active()] == ["GPU-2"]


def test_a_person_ends_what_waits_for_one() -> None:
    """A person's word ends what is latched and was last seen before it, once, and nothing that can be read again."""
    kept = findings()
    kept.take([found("xid.79"), found("gpu_memory.remap_failed")], at(0), BOOT)
    kept.take([found("gpu.lost", component="GPU-2")], at(100), BOOT)
    assert kinds(kept.restore(at(50), at(110))) == [(ChangeKind.CLEARED, "xid.79")]
    assert {finding.code for finding in kept.active()} == {"gpu_memory.remap_failed", "gpu.lost"}
    kept.take([found("xid.79")], at(40), BOOT)  # by a clock that was ahead, before the time that was told
    assert kept.restore(at(50), at(120)) == []
    again = findings(ledger=msgspec.json.decode(msgspec.json.encode(kept.ledger()), type=TrackerState))
    assert again.restore(at(50), at(130)) == []
    assert kinds(again.restore(at(60), at(130))) == [(ChangeKind.CLEARED, "xid.79")]


def test_a_person_ends_what_no_round_reads_any_more() -> None:
    """What became unreadable for good, such as by another driver, stays until a person says that it is over."""
    kept = findings()
    kept.take([found("gpu_memory.remap_failed"), found("gpu_memory.unrepairable")], at(0), BOOT)
    kept.take_round([NotChecked("gpu_memory.unrepairable", GPU, TIMEOUT)], at(1e6), "boot-2")
    assert len(kept.active()) == 2
    assert kinds(kept.restore(at(1e6), at(1e6))) == [(ChangeKind.CLEARED, "gpu_memory.remap_failed")]


def test_an_event_expires() -> None:
    """A program's fault leaves nothing to read again: it ends when it has not come back."""
    kept = findings()
    expire_after = checks.code("xid.31").clear_after
    kept.take([found("xid.31", Severity.WARNING)], at(0), BOOT)
    kept.take([found("xid.31", Severity.WARNING)], at(expire_after - 1), BOOT)
    assert kept.take([], at(expire_after + 1), BOOT) == []
    assert kinds(kept.take([], at(2 * expire_after), BOOT)) == [(ChangeKind.CLEARED, "xid.31")]


def test_policy_changes_severity_ignores_and_quarantines() -> None:
    """The deployment's word holds: another severity, not at all, or out of service for a warning."""
    kept = findings(
        Settings(
            findings={
                "persistence.off": FindingPolicy(severity=Severity.INFO),
                "xid.*": FindingPolicy(ignore=True),
                "pcie.width": FindingPolicy(quarantine=True, drain=True),
                "gpu.lost": FindingPolicy(quarantine=False),
            }
        )
    )
    outcomes = [found("persistence.off", Severity.WARNING), found("xid.79"), found("gpu.lost")]
    kept.take([*outcomes, found("pcie.width", Severity.WARNING)], at(0), BOOT)
    assert {finding.code: finding.severity for finding in kept.active()} == {
        "persistence.off": Severity.INFO,
        "gpu.lost": Severity.CRITICAL,
        "pcie.width": Severity.WARNING,
    }
    assert [finding.code for finding in kept.quarantine().findings] == ["pcie.width"]
    assert kept.quarantine().drain


def test_a_finding_tells_the_clearing_rule_that_is_in_force() -> None:
    """What a finding says of its clearing follows the deployment's settings."""
    kept = findings(Settings(findings={"gpu.lost": FindingPolicy(clear_after=7.0)}))
    kept.take([found("gpu.lost")], at(0), BOOT)
    assert kept.active()[0].clears_when == "read clean for 7 s"


def test_programs_faults_quarantine_nobody() -> None:
    """XIDs that a program can cause never take a node out of service by themselves, however severe they are called."""
    kept = findings()
    kept.take([found(f"xid.{code}") for code in (13, 31, 43, 45, 94)], at(0), BOOT)
    assert kept.quarantine().findings == ()


def test_every_finding_of_a_node_is_kept() -> None:
    """Many findings on one node are all in the verdict, the worst first."""
    kept = findings()
    codes = ["persistence.off", "pcie.width", "gpu.lost", "gpu_memory.remap_failed", "nvlink.down", "thermal.gpu"]
    severities = [Severity.WARNING, Severity.WARNING, *[Severity.CRITICAL] * 4]
    kept.take([found(*pair) for pair in zip(codes, severities, strict=True)], at(0), BOOT)
    active = kept.active()
    assert {finding.code for finding in active} == set(codes)
    assert [finding.severity.rank for finding in active] == [2, 2, 2, 2, 1, 1]


def test_mig_faults_concern_parent_and_instance() -> None:
    """A fault of one MIG instance is its and its parent's; a fault of the parent is every instance's."""
    gpu = GpuReadings(
        index=0, uuid=GPU, pci="0000:1b:00.0", mig_devices=(MigDevice("MIG-a", 1, 0), MigDevice("MIG-b", 2, 0))
    )
    kept = findings()
    kept.take([found("xid.94", Severity.WARNING, mig="MIG-a")], at(0), BOOT)
    (parent,) = kept.verdict(readings(gpu), History(), at(0)).gpus
    assert parent.verdict is State.DEGRADED
    assert {mig.uuid: mig.verdict for mig in parent.mig} == {"MIG-a": State.DEGRADED, "MIG-b": State.HEALTHY}
    kept.take([found("gpu_memory.remap_failed")], at(1), BOOT)
    (parent,) = kept.verdict(readings(gpu), History(), at(1)).gpus
    assert {mig.verdict for mig in parent.mig} == {State.UNHEALTHY}


def test_a_remembered_gpu_that_is_gone_is_shown() -> None:
    """A GPU that the node once had stays in the verdict, with its address and model."""
    history = History(baseline=Baseline(gpus={GPU: "0000:1b:00.0"}, models={GPU: "H100"}))
    kept = findings()
    kept.take([found("gpu.missing", component=GPU)], at(0), BOOT)
    (gone,) = kept.verdict(readings(), history, at(0)).gpus
    assert (gone.uuid, gone.pci, gone.model, gone.verdict) == (GPU, "0000:1b:00.0", "H100", State.UNHEALTHY)


def test_a_code_of_another_version_is_dropped() -> None:
    """A remembered finding whose code no longer exists does not stop the agent."""
    ledger = findings()
    ledger.take([found("gpu.lost")], at(0), BOOT)
    kept = ledger.ledger()
    kept.tracked[0].finding = msgspec.structs.replace(kept.tracked[0].finding, code="gpu.of_old")
    again = findings(ledger=kept)
    assert again.take([], at(1), BOOT) == []
    assert again.active() == ()


def test_findings_of_a_replaced_gpu_end() -> None:
    """A GPU that is neither there nor remembered takes its findings along; while it cannot be told, they stay."""
    kept = findings()
    kept.take([found("gpu_memory.remap_failed"), found("burnin.exact")], at(0), BOOT)
    hung = NodeReadings("node-1", at(5), BOOT, NvmlReadings())
    assert kept.settle(hung, History()) == []
    remembered = History(baseline=Baseline(gpus={GPU: "0000:1b:00.0"}))
    assert kept.settle(readings(GpuReadings(0, uuid="GPU-9"), time=at(6)), remembered) == []
    assert len(settled(kept, gpus=("GPU-9",))) == 2
    assert kept.active() == ()


def test_a_gpu_that_tells_its_name_takes_over_what_was_found_before() -> None:
    """What was found on an address or an index goes on under the uuid, beside what the uuid has already."""
    kept = findings()
    places = ["gpu3", "0000:1b:00.0", "0000:43:00", GPU]
    kept.take([found("gpu.lost", component=place) for place in places], at(0), BOOT)
    kept.attribute({"gpu3": GPU, "0000:1b:00": "GPU-2", "0000:43:00": "GPU-3"})
    assert {(each.component, each.gpu) for each in kept.active()} == {(name, name) for name in (GPU, "GPU-2", "GPU-3")}


def test_what_nobody_can_read_again_under_its_name_ends() -> None:
    """A GPU that never told its uuid and is gone takes along what it was found with; XIDs wait for the reboot."""
    kept = findings()
    lost, xid = found("gpu.lost", component="gpu3"), found("xid.79", component="0000:1b:00")
    named = [msgspec.structs.replace(each, gpu=each.component) for each in (lost, xid)]
    kept.take(named, at(0), BOOT)
    nameless = readings(GpuReadings(0, uuid="GPU-9"), GpuReadings(3, uuid=TIMEOUT), time=at(5))
    assert kept.settle(nameless, History()) == []
    assert kinds(settled(kept, gpus=("GPU-9",))) == [(ChangeKind.CLEARED, "gpu.lost")]
    assert [each.code for each in kept.active()] == ["xid.79"]


@given(st.sampled_from([86400.0, -86400.0, 365 * 86400.0, -365 * 86400.0]))
def test_a_clock_that_is_set_changes_no_duration(step: float) -> None:
    """Debounce, clearing and expiry last as long as they would have: nothing is raised or cleared by the step."""
    settings = Settings(findings={"thermal.gpu": FindingPolicy(raise_after=30.0, clear_after=30.0)})
    kept = findings(settings)
    kept.take([found("thermal.gpu"), found("xid.13", Severity.WARNING)], at(0), BOOT)
    kept.shift(step)
    assert kept.take([found("thermal.gpu")], at(step + 29), BOOT) == []
    assert kinds(kept.take([found("thermal.gpu")], at(step + 31), BOOT)) == [(ChangeKind.RAISED, "thermal.gpu")]
    assert kept.take([clean("thermal.gpu")], at(step + 40), BOOT) == []
    kept.shift(-step)
    assert kept.take([clean("thermal.gpu")], at(69), BOOT) == []
    assert kinds(kept.take([clean("thermal.gpu")], at(71), BOOT)) == [(ChangeKind.CLEARED, "thermal.gpu")]
    ledger = kept.ledger()
    ledger.shift(step)
    again = findings(settings, ledger)
    assert again.take([], at(step + 599), BOOT) == []
    assert kinds(again.take([], at(step + 601), BOOT)) == [(ChangeKind.CLEARED, "xid.13")]
