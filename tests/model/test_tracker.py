"""Findings over time: debounce, clearing by evidence, and what survives a restart."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from testing.findings import (
    BOOT,
    GPU,
    START,
    TIMEOUT,
    at,
    clean,
    facts,
    found,
    kinds,
    mig,
    not_checked,
    resolved,
    tracker,
)
from testing.nvml_facts import NOT_ANSWERED, answered, nvml_facts

from gpuhealth.model.component import NODE, ComponentInfo, gpu
from gpuhealth.model.finding import Severity
from gpuhealth.model.pci import PciAddress
from gpuhealth.model.tracker import ChangeKind
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.model.verdict import State
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.monitors.registry import code_of
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings import FindingSettings

OTHER = gpu("GPU-2")


def test_raised_once_and_cleared_after_clean_reads() -> None:
    """A finding is raised once, and cleared when it has been read clean for as long as its code says."""
    tracked = tracker()
    clear_after = code_of("gpu_memory.remap_failed").clear_after
    assert kinds(tracked.apply([found("gpu_memory.remap_failed")], at(0), BOOT)) == [
        (ChangeKind.RAISED, "gpu_memory.remap_failed")
    ]
    assert tracked.apply([found("gpu_memory.remap_failed")], at(10), BOOT) == []
    assert tracked.apply([clean("gpu_memory.remap_failed")], at(20), BOOT) == []
    assert tracked.active()
    (cleared,) = tracked.apply([clean("gpu_memory.remap_failed")], at(20 + clear_after), BOOT)
    assert cleared.kind is ChangeKind.CLEARED
    assert cleared.finding.first_seen == START
    assert "read clean" in cleared.reason
    assert tracked.active() == ()


def test_a_flapping_fault_stays_raised() -> None:
    """One bad reading within the clearing time restarts it, which prevents flapping."""
    tracked = tracker()
    tracked.apply([found("gpu_memory.remap_failed")], at(0), BOOT)
    step = code_of("gpu_memory.remap_failed").clear_after * 0.6
    for number in range(1, 10):
        outcome = clean("gpu_memory.remap_failed") if number % 2 else found("gpu_memory.remap_failed")
        assert tracked.apply([outcome], at(number * step), BOOT) == []
    assert len(tracked.active()) == 1


def test_not_measured_clears_nothing() -> None:
    """A reading that is missing is no clean reading, and time without one does not count as clean."""
    tracked = tracker()
    clear_after = code_of("gpu_memory.remap_failed").clear_after
    tracked.apply([found("gpu_memory.remap_failed")], at(0), BOOT)
    tracked.apply([clean("gpu_memory.remap_failed")], at(1), BOOT)
    tracked.apply([not_checked("gpu_memory.remap_failed")], at(2), BOOT)
    assert tracked.apply([clean("gpu_memory.remap_failed")], at(3 + clear_after), BOOT) == []
    assert tracked.active()


def test_raise_after_debounces_and_one_look_does_not() -> None:
    """What has to hold for a while is raised only then; a single look cannot wait."""
    settings = Settings(findings={"thermal.gpu": FindingSettings(raise_after=30.0)})
    tracked = tracker(settings)
    assert tracked.apply([found("thermal.gpu")], at(0), BOOT) == []
    assert tracked.apply([found("thermal.gpu")], at(29), BOOT) == []
    assert kinds(tracked.apply([found("thermal.gpu")], at(30), BOOT)) == [(ChangeKind.RAISED, "thermal.gpu")]
    short = tracker(settings)
    short.apply([found("thermal.gpu")], at(0), BOOT)
    assert short.apply([clean("thermal.gpu")], at(10), BOOT) == []
    assert short.apply([found("thermal.gpu")], at(35), BOOT) == []
    assert tracker(settings, one_look=True).apply([found("thermal.gpu")], at(0), BOOT)


def test_bursts_far_apart_do_not_add_up() -> None:
    """What is seen for a moment now and then, and cannot be judged between, has not held."""
    tracked = tracker()
    raise_after = code_of("gpu.straggler").raise_after
    burst = found("gpu.straggler", Severity.WARNING)
    for start in (0.0, 3600.0, 7200.0):
        assert tracked.apply([burst], at(start), BOOT) == []
        assert tracked.apply([not_checked("gpu.straggler")], at(start + 10), BOOT) == []
        assert tracked.apply([not_checked("gpu.straggler")], at(start + raise_after + 10), BOOT) == []
    tracked.apply([burst], at(9000), BOOT)
    tracked.apply([not_checked("gpu.straggler")], at(9010), BOOT)  # but a short gap is no break
    assert kinds(tracked.apply([burst], at(9000 + raise_after), BOOT)) == [(ChangeKind.RAISED, "gpu.straggler")]


def test_measured_means_what_is_there_now() -> None:
    """A GPU that is gone and an event that came once make no check look overdue."""
    tracked = tracker()
    tracked.apply_round("nvidia", [clean("gpu.lost"), clean("gpu.lost", OTHER)], facts(GPU, OTHER))
    tracked.apply([found("xid.31", Severity.WARNING)], at(1), BOOT)
    later = facts(GPU, OTHER, time=at(10))
    tracked.apply_round("nvidia", [clean("gpu.lost", OTHER), not_checked("ecc.disabled")], later)
    assert tracked.coverage.last_measured() == {"gpu.lost": at(10)}
    assert tracked.coverage.coverage().checked == ("gpu.lost",)


def test_severity_follows_what_is_read() -> None:
    """A reading that gets worse or better changes the finding's severity, and says what it was."""
    tracked = tracker()
    tracked.apply([found("driver.unresponsive", Severity.WARNING, NODE)], at(20), BOOT)
    (worse,) = tracked.apply([found("driver.unresponsive", Severity.CRITICAL, NODE)], at(60), BOOT)
    assert (worse.kind, worse.finding.severity, worse.reason) == (ChangeKind.CHANGED, Severity.CRITICAL, "was warning")
    (better,) = tracked.apply([found("driver.unresponsive", Severity.WARNING, NODE)], at(70), BOOT)
    assert better.finding.severity is Severity.WARNING


def test_latched_by_the_boot() -> None:
    """What only a reboot ends is not ended by silence, by clean rounds or by a restart of the agent."""
    tracked = tracker()
    tracked.apply([found("xid.79")], at(0), BOOT)
    assert tracked.apply([], at(7 * 86400), BOOT) == []
    again = tracker(state=msgspec.json.decode(msgspec.json.encode(tracked.state()), type=TrackerState))
    assert again.apply([], at(7 * 86400), BOOT) == []
    assert again.active() == tracked.active()
    (cleared,) = again.apply([], at(7 * 86400 + 60), "boot-2")
    assert (cleared.kind, cleared.reason) == (ChangeKind.CLEARED, "the node has rebooted")


def test_the_same_fault_in_the_next_boot() -> None:
    """A fault that comes again with the first words of a new boot is one of that boot, and waits for the next."""
    tracked = tracker()
    tracked.apply([found("xid.79")], at(0), BOOT)
    assert tracked.apply([found("xid.79")], at(300), "boot-2") == []
    assert kinds(tracked.apply([], at(600), "boot-3")) == [(ChangeKind.CLEARED, "xid.79")]


def test_a_reset_clears_what_the_gpu_asked_it_for() -> None:
    """Recovery action back to none ends the GPU's latched XIDs, not those of another GPU, not those never reset."""
    tracked = tracker()
    tracked.apply([found("xid.95"), found("xid.95", component=OTHER), found("gpu.recovery_action")], at(0), BOOT)
    later = at(code_of("gpu.recovery_action").clear_after + 10)
    tracked.apply([clean("gpu.recovery_action")], at(10), BOOT)
    changes = tracked.apply([clean("gpu.recovery_action")], later, BOOT)
    assert {(change.finding.code, change.finding.component) for change in changes} == {
        ("gpu.recovery_action", GPU),
        ("xid.95", GPU),
    }
    assert [finding.component for finding in tracked.active()] == [OTHER]


def test_the_drivers_own_word_ends_what_it_asked_for() -> None:
    """XID 154 back to none ends the XIDs before it at once, also where no recovery action can be read."""
    tracked = tracker()
    tracked.apply([found("xid.95"), found("xid.154"), found("xid.95", component=OTHER)], at(0), BOOT)
    tracked.apply([found("gpu.recovery_action")], at(0), BOOT)  # before anybody knew that it cannot be read
    assert tracked.apply_round("nvidia", [clean("gpu.lost")], facts(GPU, OTHER, time=at(100))) == []
    changes = tracked.apply([clean("gpu.recovery_action"), clean("xid.154")], at(200), BOOT)
    assert {code for _, code in kinds(changes)} == {"gpu.recovery_action", "xid.154", "xid.95"}
    assert [finding.component for finding in tracked.active()] == [OTHER]


def test_a_person_ends_what_waits_for_one() -> None:
    """A person's word ends what is latched and was last seen before it, once, and nothing that can be read again."""
    tracked = tracker()
    tracked.apply([found("xid.79"), found("gpu_memory.remap_failed")], at(0), BOOT)
    tracked.apply([found("gpu.lost", component=OTHER)], at(100), BOOT)
    assert kinds(tracked.restore(at(50), at(110))) == [(ChangeKind.CLEARED, "xid.79")]
    assert {finding.code for finding in tracked.active()} == {"gpu_memory.remap_failed", "gpu.lost"}
    tracked.apply([found("xid.79")], at(40), BOOT)  # timestamped by a clock that was ahead, before the restore time
    assert tracked.restore(at(50), at(120)) == []
    again = tracker(state=msgspec.json.decode(msgspec.json.encode(tracked.state()), type=TrackerState))
    assert again.restore(at(50), at(130)) == []
    assert kinds(again.restore(at(60), at(130))) == [(ChangeKind.CLEARED, "xid.79")]


def test_a_person_ends_what_no_round_reads_any_more() -> None:
    """What became unreadable for good, such as by another driver, stays until a person says that it is over."""
    tracked = tracker()
    tracked.apply([found("gpu_memory.remap_failed"), found("gpu_memory.unrepairable")], at(0), BOOT)
    rebooted = facts(GPU, time=at(1e6), boot_id="boot-2")
    tracked.apply_round("nvidia", [not_checked("gpu_memory.unrepairable")], rebooted)
    assert len(tracked.active()) == 2
    assert kinds(tracked.restore(at(1e6), at(1e6))) == [(ChangeKind.CLEARED, "gpu_memory.remap_failed")]


def test_an_event_expires() -> None:
    """A program's fault leaves nothing to read again: it ends when it has not come back."""
    tracked = tracker()
    expire_after = code_of("xid.31").clear_after
    tracked.apply([found("xid.31", Severity.WARNING)], at(0), BOOT)
    tracked.apply([found("xid.31", Severity.WARNING)], at(expire_after - 1), BOOT)
    assert tracked.apply([], at(expire_after + 1), BOOT) == []
    assert kinds(tracked.apply([], at(2 * expire_after), BOOT)) == [(ChangeKind.CLEARED, "xid.31")]


def test_policy_changes_severity_ignores_and_quarantines() -> None:
    """The deployment's word holds: another severity, not at all, or out of service for a warning."""
    tracked = tracker(
        Settings(
            findings={
                "persistence.off": FindingSettings(severity=Severity.INFO),
                "xid.*": FindingSettings(ignore=True),
                "pcie.width": FindingSettings(quarantine=True, drain=True),
                "gpu.lost": FindingSettings(quarantine=False),
            }
        )
    )
    outcomes = [found("persistence.off", Severity.WARNING), found("xid.79"), found("gpu.lost")]
    tracked.apply([*outcomes, found("pcie.width", Severity.WARNING)], at(0), BOOT)
    assert {finding.code: finding.severity for finding in tracked.active()} == {
        "persistence.off": Severity.INFO,
        "gpu.lost": Severity.CRITICAL,
        "pcie.width": Severity.WARNING,
    }
    assert [finding.code for finding in tracked.quarantine().findings] == ["pcie.width"]
    assert tracked.quarantine().drain


def test_a_finding_tells_the_clearing_rule_that_is_in_force() -> None:
    """What a finding says of its clearing follows the deployment's settings."""
    tracked = tracker(Settings(findings={"gpu.lost": FindingSettings(clear_after=7.0)}))
    tracked.apply([found("gpu.lost")], at(0), BOOT)
    assert tracked.active()[0].clears_when == "read clean for 7 s"


def test_programs_faults_quarantine_nobody() -> None:
    """XIDs that a program can cause never take a node out of service by themselves, however severe they are called."""
    tracked = tracker()
    tracked.apply([found(f"xid.{code}") for code in (13, 31, 43, 45, 94)], at(0), BOOT)
    assert tracked.quarantine().findings == ()


def test_every_finding_of_a_node_is_kept() -> None:
    """Many findings on one node are all in the verdict, the worst first."""
    tracked = tracker()
    codes = ["persistence.off", "pcie.width", "gpu.lost", "gpu_memory.remap_failed", "nvlink.down", "thermal.gpu"]
    severities = [Severity.WARNING, Severity.WARNING, *[Severity.CRITICAL] * 4]
    tracked.apply([found(*pair) for pair in zip(codes, severities, strict=True)], at(0), BOOT)
    active = tracked.active()
    assert {finding.code for finding in active} == set(codes)
    assert [finding.severity.rank for finding in active] == [2, 2, 2, 2, 1, 1]


def test_mig_faults_concern_parent_and_instance() -> None:
    """A fault of one MIG instance is its and its parent's; a fault of the parent is every instance's."""
    parent = ComponentInfo(component=GPU, index=0, pci=PciAddress("0000:1b:00.0"))
    devices = [ComponentInfo(component=mig(f"MIG-{name}"), index=index) for index, name in enumerate("ab", 1)]
    known = facts(parent, *devices)
    tracked = tracker()
    tracked.apply([found("xid.94", Severity.WARNING, mig("MIG-a"))], at(0), BOOT)
    (whole,) = tracked.verdict(known).gpus
    assert whole.verdict is State.DEGRADED
    assert {device.uuid: device.verdict for device in whole.mig} == {"MIG-a": State.DEGRADED, "MIG-b": State.HEALTHY}
    tracked.apply([found("gpu_memory.remap_failed")], at(1), BOOT)
    (whole,) = tracked.verdict(known).gpus
    assert {device.verdict for device in whole.mig} == {State.UNHEALTHY}


def test_a_remembered_gpu_that_is_gone_is_shown() -> None:
    """A GPU that the node once had stays in the verdict, with its address and model."""
    tracked = tracker()
    tracked.apply([found("gpu.missing")], at(0), BOOT)
    remembered = nvml_facts(answered(), gpus={GPU.id: PciAddress("0000:1b:00.0")}, models={GPU.id: "H100"})
    (gone,) = tracked.verdict(remembered).gpus
    assert (gone.uuid, gone.pci, gone.model, gone.verdict) == (GPU.id, "0000:1b:00.0", "H100", State.UNHEALTHY)


def test_a_code_of_another_version_is_dropped() -> None:
    """A remembered finding whose code no longer exists does not stop the agent."""
    before = tracker()
    before.apply([found("gpu.lost")], at(0), BOOT)
    state = before.state()
    state.tracked[0].finding = msgspec.structs.replace(state.tracked[0].finding, code="gpu.of_old")
    again = tracker(state=state)
    assert again.apply([], at(1), BOOT) == []
    assert again.active() == ()


def test_findings_of_a_replaced_gpu_end() -> None:
    """Findings end with a GPU that is neither present nor remembered; they stay while its presence is unknown."""
    tracked = tracker()
    tracked.apply([found("gpu_memory.remap_failed"), found("burnin.exact")], at(0), BOOT)
    assert tracked.resolve(nvml_facts(NOT_ANSWERED, 5)) == []
    another = answered(GpuReadings(0, uuid="GPU-9"))
    assert tracked.resolve(nvml_facts(another, 6, gpus={GPU.id: PciAddress("0000:1b:00.0")})) == []
    assert len(tracked.resolve(nvml_facts(another, 7))) == 2
    assert tracked.active() == ()


def test_a_gpu_that_tells_its_name_takes_over_what_was_found_before() -> None:
    """Findings on an address or index move to the uuid and are merged with the findings it already has."""
    tracked = tracker()
    places = [gpu("gpu3"), gpu("0000:1b:00.0"), gpu("0000:43:00"), GPU]
    tracked.apply([found("gpu.lost", component=place) for place in places], at(0), BOOT)
    tracked.set_gpu_aliases({"gpu3": GPU.id, "0000:1b:00.0": "GPU-2", "0000:43:00": "GPU-3"})
    assert {(each.component, each.component.gpu) for each in tracked.active()} == {
        (gpu(name), name) for name in (GPU.id, "GPU-2", "GPU-3")
    }


def test_mig_devices_follow_the_name_of_their_gpu() -> None:
    """A finding on a MIG device that predates the uuid of its GPU counts as a fault of that GPU."""
    tracked, address = tracker(), PciAddress("0000:1b:00.0")
    parent = ComponentInfo(component=GPU, index=0, pci=address)
    tracked.apply([found("xid.94", Severity.WARNING, mig("MIG-a", gpu(address)))], at(0), BOOT)
    assert tracked.verdict(facts(parent)).gpus[0].verdict is State.HEALTHY
    tracked.set_gpu_aliases({address: GPU.id})
    assert [each.component for each in tracked.active()] == [mig("MIG-a")]
    assert tracked.verdict(facts(parent)).gpus[0].verdict is State.DEGRADED


def test_what_nobody_can_read_again_under_its_name_ends() -> None:
    """The findings of a removed GPU with an unknown uuid are cleared; XIDs stay until a reboot."""
    tracked = tracker()
    lost, xid = found("gpu.lost", component=gpu("gpu3")), found("xid.79", component=gpu("0000:1b:00"))
    tracked.apply([lost, xid], at(0), BOOT)
    nameless = answered(GpuReadings(0, uuid="GPU-9"), GpuReadings(3, uuid=TIMEOUT))
    assert tracked.resolve(nvml_facts(nameless, 5)) == []
    assert kinds(resolved(tracked, gpus=(gpu("GPU-9"),))) == [(ChangeKind.CLEARED, "gpu.lost")]
    assert [each.code for each in tracked.active()] == ["xid.79"]


@given(st.sampled_from([86400.0, -86400.0, 365 * 86400.0, -365 * 86400.0]))
def test_a_clock_that_is_set_changes_no_duration(step: float) -> None:
    """Debounce, clearing and expiry last as long as they would have: nothing is raised or cleared by the step."""
    settings = Settings(findings={"thermal.gpu": FindingSettings(raise_after=30.0, clear_after=30.0)})
    tracked = tracker(settings)
    tracked.apply([found("thermal.gpu"), found("xid.13", Severity.WARNING)], at(0), BOOT)
    tracked.shift(step)
    assert tracked.apply([found("thermal.gpu")], at(step + 29), BOOT) == []
    assert kinds(tracked.apply([found("thermal.gpu")], at(step + 31), BOOT)) == [(ChangeKind.RAISED, "thermal.gpu")]
    assert tracked.apply([clean("thermal.gpu")], at(step + 40), BOOT) == []
    tracked.shift(-step)
    assert tracked.apply([clean("thermal.gpu")], at(69), BOOT) == []
    assert kinds(tracked.apply([clean("thermal.gpu")], at(71), BOOT)) == [(ChangeKind.CLEARED, "thermal.gpu")]
    state = tracked.state()
    state.shift(step)
    again = tracker(settings, state)
    assert again.apply([], at(step + 599), BOOT) == []
    assert kinds(again.apply([], at(step + 601), BOOT)) == [(ChangeKind.CLEARED, "xid.13")]
