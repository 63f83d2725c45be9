"""Findings over time: debounce, clearing by evidence, unknown as a state of its own, and what survives a restart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gpuhealth import checks
from gpuhealth.checks.history import Baseline, History
from gpuhealth.config import FindingPolicy, Quarantine, Settings
from gpuhealth.model import Clean, Evidence, Finding, Missing, MissingReason, NotChecked, Severity, State
from gpuhealth.readings import (
    BurninReadings,
    BurninRun,
    GpuReadings,
    MigDevice,
    NodeReadings,
    NvmlReadings,
    Release,
    TestStatus,
)
from gpuhealth.verdict import Change, ChangeKind, Findings, Ledger
from tests.burnin.builders import FAILED, PASSED, STOPPED, result, run
from tests.burnin.builders import START as BURNIN_START

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GPU = "GPU-1"
BOOT = "boot-1"
TIMEOUT = Missing(MissingReason.TIMEOUT)


def at(seconds: float) -> datetime:
    """So many seconds after the start."""
    return START + timedelta(seconds=seconds)


def found(
    code: str, severity: Severity = Severity.CRITICAL, component: str = GPU, mig: str = "", time: datetime = START
) -> Finding:
    """A finding as a check would give it."""
    gpu = component if component.startswith("GPU") else ""
    action = checks.code(code).action
    return Finding(code, severity, component, "text", action, Evidence("test"), time, time, "", gpu, mig)


def clean(code: str, component: str = GPU) -> Clean:
    """A clean outcome."""
    return Clean(code, component)


def findings(settings: Settings | None = None, ledger: Ledger | None = None, one_look: bool = False) -> Findings:
    """Findings of a node that starts at START."""
    return Findings(settings or Settings(), START, ledger, one_look=one_look)


def readings(*gpus: GpuReadings, time: datetime = START) -> NodeReadings:
    """A round in which NVML has answered for these GPUs."""
    return NodeReadings("node-1", time, BOOT, NvmlReadings(answered=True, gpus=gpus))


def kinds(changes: list[Change]) -> list[tuple[ChangeKind, str]]:
    """What happened to which code."""
    return [(change.kind, change.finding.code) for change in changes]


def test_raised_once_and_cleared_after_clean_reads() -> None:
    """A finding is raised once, and cleared when it has been read clean for as long as its code says."""
    kept = findings()
    clear_after = checks.code("memory.remap_failed").clear_after
    assert kinds(kept.take([found("memory.remap_failed")], at(0), BOOT)) == [(ChangeKind.RAISED, "memory.remap_failed")]
    assert kept.take([found("memory.remap_failed")], at(10), BOOT) == []
    assert kept.take([clean("memory.remap_failed")], at(20), BOOT) == []
    assert kept.active()
    (cleared,) = kept.take([clean("memory.remap_failed")], at(20 + clear_after), BOOT)
    assert cleared.kind is ChangeKind.CLEARED
    assert cleared.finding.first_seen == START
    assert "read clean" in cleared.reason
    assert kept.active() == ()


def test_a_flapping_fault_stays_raised() -> None:
    """One bad reading within the clearing time begins it anew: no flapping."""
    kept = findings()
    kept.take([found("memory.remap_failed")], at(0), BOOT)
    step = checks.code("memory.remap_failed").clear_after * 0.6
    for number in range(1, 10):
        outcome = clean("memory.remap_failed") if number % 2 else found("memory.remap_failed")
        assert kept.take([outcome], at(number * step), BOOT) == []
    assert len(kept.active()) == 1


def test_not_measured_clears_nothing() -> None:
    """A reading that is missing is no clean reading, and time without one does not count as clean."""
    kept = findings()
    clear_after = checks.code("memory.remap_failed").clear_after
    kept.take([found("memory.remap_failed")], at(0), BOOT)
    kept.take([clean("memory.remap_failed")], at(1), BOOT)
    kept.take([NotChecked("memory.remap_failed", GPU, TIMEOUT)], at(2), BOOT)
    assert kept.take([clean("memory.remap_failed")], at(3 + clear_after), BOOT) == []
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
    again = findings(ledger=msgspec.json.decode(msgspec.json.encode(kept.ledger()), type=Ledger))
    assert again.take([], at(7 * 86400), BOOT) == []
    assert again.active() == kept.active()
    (cleared,) = again.take([], at(7 * 86400 + 60), "boot-2")
    assert (cleared.kind, cleared.reason) == (ChangeKind.CLEARED, "the node has rebooted")


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


def test_a_person_ends_what_waits_for_one() -> None:
    """A person's word ends what is latched and was last seen before it, once, and nothing that can be read again."""
    kept = findings()
    kept.take([found("xid.79"), found("memory.remap_failed")], at(0), BOOT)
    kept.take([found("gpu.lost", component="GPU-2")], at(100), BOOT)
    assert kinds(kept.restore(at(50), at(110))) == [(ChangeKind.CLEARED, "xid.79")]
    assert {finding.code for finding in kept.active()} == {"memory.remap_failed", "gpu.lost"}
    kept.take([found("xid.79")], at(40), BOOT)  # by a clock that was ahead, before the time that was told
    assert kept.restore(at(50), at(120)) == []
    again = findings(ledger=msgspec.json.decode(msgspec.json.encode(kept.ledger()), type=Ledger))
    assert again.restore(at(50), at(130)) == []
    assert kinds(again.restore(at(60), at(130))) == [(ChangeKind.CLEARED, "xid.79")]


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


def test_every_finding_of_a_node_is_kept() -> None:
    """Many findings on one node are all in the verdict, the worst first."""
    kept = findings()
    codes = ["persistence.off", "pcie.width", "gpu.lost", "memory.remap_failed", "nvlink.down", "thermal.gpu"]
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
    kept.take([found("memory.remap_failed")], at(1), BOOT)
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


TESTED = Settings(quarantine=Quarantine(test_before_return=True))


def burnin_at(seconds: float, *gpus: str, status: TestStatus = PASSED) -> BurninRun:
    """A burn-in of these GPUs that began so many seconds after the start."""
    return run(*(result(gpu=gpu, status=status) for gpu in gpus), at=(at(seconds) - BURNIN_START).total_seconds())


def settled(kept: Findings, *runs: BurninRun, gpus: tuple[str, ...] = (GPU,), time: float = 1000) -> list[Change]:
    """What changes by a complete round with these GPUs and burn-in results."""
    listed = tuple(GpuReadings(index=index, uuid=gpu) for index, gpu in enumerate(gpus))
    seen = msgspec.structs.replace(readings(*listed, time=at(time)), burnin=BurninReadings(runs))
    return kept.settle(seen, History())


def rebooted(kept: Findings, time: float = 10) -> list[Change]:
    """What changes with a reboot."""
    return kept.take([], at(time), "boot-2")


def test_a_test_is_required_before_the_node_returns() -> None:
    """A finding that kept the node out leaves the requirement behind; a restart keeps it, a later pass ends it."""
    kept = findings(TESTED)
    kept.take([found("xid.79")], at(0), BOOT)
    assert kinds(rebooted(kept)) == [(ChangeKind.CLEARED, "xid.79"), (ChangeKind.RAISED, "burnin.required")]
    assert settled(kept, burnin_at(5, GPU)) == [], "it began before the fault had cleared"
    assert settled(kept, burnin_at(20, GPU, status=FAILED), burnin_at(30, GPU, status=STOPPED)) == []
    assert settled(kept, burnin_at(20, "GPU-2")) == [], "another GPU"
    again = findings(TESTED, msgspec.json.decode(msgspec.json.encode(kept.ledger()), type=Ledger))
    (required,) = again.quarantine().findings
    assert (required.code, required.gpu, again.quarantine().drain) == ("burnin.required", GPU, False)
    assert "xid.79 has cleared" in required.message
    assert kinds(settled(again, burnin_at(20, GPU))) == [(ChangeKind.CLEARED, "burnin.required")]
    assert again.quarantine().findings == ()


def test_after_a_fault_of_the_node_every_gpu_is_tested() -> None:
    """A node's finding asks for all GPUs; they may pass in different runs."""
    kept = findings(TESTED)
    kept.take([found("gpu.missing", component="node")], at(0), BOOT)
    kept.take([clean("gpu.missing", "node")], at(10), BOOT)
    kept.take([clean("gpu.missing", "node")], at(1000), BOOT)
    both = (GPU, "GPU-2")
    assert settled(kept, gpus=()) == [], "no GPU at all proves nothing"
    assert settled(kept, burnin_at(2000, GPU), gpus=both) == []
    assert settled(kept, burnin_at(2000, GPU), burnin_at(2100, "GPU-2"), gpus=both)


def test_a_fault_that_comes_back_asks_for_another_test() -> None:
    """A pass from before the last clearing does not count."""
    kept = findings(TESTED)
    for start in (0, 100):
        kept.take([found("xid.79")], at(start), f"boot-{start}")
        kept.take([], at(start + 10), f"boot-{start}-again")
    assert settled(kept, burnin_at(50, GPU)) == []
    assert settled(kept, burnin_at(120, GPU))


def test_no_test_is_required_where_nobody_asked_for_one() -> None:
    """Not by default, not for a code whose policy says no, not for what never kept the node out; one code may ask."""
    quiet = findings()
    quiet.take([found("xid.79")], at(0), BOOT)
    assert kinds(rebooted(quiet)) == [(ChangeKind.CLEARED, "xid.79")]
    policies = {"xid.79": FindingPolicy(test_before_return=False)}
    but_one = findings(TESTED.model_copy(update={"findings": policies}))
    but_one.take([found("xid.79"), found("pcie.width", Severity.WARNING)], at(0), BOOT)
    but_one.take([clean("pcie.width")], at(5), BOOT)
    assert "burnin.required" not in [each.finding.code for each in [*rebooted(but_one), *rebooted(but_one, 999)]]
    only = findings(Settings(findings={"xid.79": FindingPolicy(test_before_return=True)}))
    only.take([found("xid.79")], at(0), BOOT)
    assert (ChangeKind.RAISED, "burnin.required") in kinds(rebooted(only))


def test_a_finding_that_is_no_longer_critical_asks_too() -> None:
    """What no longer quarantines, since it has become a warning, has let the node go as well."""
    kept = findings(TESTED)
    kept.take([found("ecc.uncorrectable")], at(0), BOOT)
    changes = kept.take([found("ecc.uncorrectable", Severity.WARNING)], at(10), BOOT)
    assert kinds(changes) == [(ChangeKind.CHANGED, "ecc.uncorrectable"), (ChangeKind.RAISED, "burnin.required")]


def test_a_failed_burnin_asks_for_its_own_test_only() -> None:
    """A burn-in's finding ends with a pass of the test, at once and with nothing left to prove."""
    kept = findings(TESTED)
    kept.take([found("burnin.exact")], at(0), BOOT)
    assert rebooted(kept) == [], "a reboot proves nothing"
    (cleared,) = kept.take([clean("burnin.exact")], at(20), BOOT)
    assert (cleared.kind, cleared.reason) == (ChangeKind.CLEARED, "the test has passed")
    assert kept.active() == ()


def test_a_person_may_trust_the_node_untested() -> None:
    """A dismissed requirement is gone, and nothing takes its place."""
    kept = findings(TESTED)
    kept.take([found("xid.79")], at(0), BOOT)
    rebooted(kept)
    assert kinds(kept.dismiss("burnin.required", at(20))) == [(ChangeKind.CLEARED, "burnin.required")]
    assert settled(kept) == []
    assert kept.active() == ()


def test_findings_of_a_replaced_gpu_end() -> None:
    """A GPU that is neither there nor remembered takes its findings along; while it cannot be told, they stay."""
    kept = findings()
    kept.take([found("memory.remap_failed"), found("burnin.exact")], at(0), BOOT)
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


def test_the_gpu_in_the_place_of_a_bad_one_is_tested() -> None:
    """With the policy on, a replaced GPU leaves the requirement with the node: the new one has proved nothing."""
    kept = findings(TESTED)
    kept.take([found("burnin.exact")], at(0), BOOT)
    changes = settled(kept, gpus=("GPU-9",))
    assert kinds(changes) == [(ChangeKind.CLEARED, "burnin.exact"), (ChangeKind.RAISED, "burnin.required")]
    assert kept.active()[0].component == "node"
    assert settled(kept, burnin_at(2000, "GPU-9"), gpus=("GPU-9",), time=3000)
    assert kept.active() == ()


def test_restored_is_trusted_untested() -> None:
    """A person's restore ends what cannot be read again and asks for no test; a test that failed stays."""
    kept = findings(TESTED)
    kept.take([found("xid.79"), found("burnin.exact", component="GPU-2")], at(0), BOOT)
    assert kinds(kept.restore(at(5), at(6))) == [(ChangeKind.CLEARED, "xid.79")]
    assert [each.code for each in kept.active()] == ["burnin.exact"]
    again = findings(TESTED)
    again.take([found("xid.79")], at(0), BOOT)
    rebooted(again)
    assert kinds(again.restore(at(15), at(16))) == [(ChangeKind.CLEARED, "burnin.required")]


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
    kept = findings(Settings(release_limit=HOUR))
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
