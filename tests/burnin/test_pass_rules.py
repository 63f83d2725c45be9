"""The pass rules: each fires on its fault and lets a sound GPU pass."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from testing import readings as builders

from gpuhealth.burnin import figures
from gpuhealth.burnin.pass_rules import Trial, judge
from gpuhealth.burnin.protocol import GpuOutcome
from gpuhealth.burnin.telemetry_window import Watched, warming
from gpuhealth.model.burnin_run import Miscompare, Span, TestResult, TestStatus
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvLink, PciDevice
from gpuhealth.runtime.settings import BurninLimits

H100 = "NVIDIA H100 80GB HBM3"
LIMITS = BurninLimits()
TIMEOUT = Missing(MissingReason.TIMEOUT, "no answer in 20 s")


def reading(**changes: Any) -> GpuReadings:
    """A sound GPU under load."""
    load: dict[str, Any] = {"power_limit_milliwatts": 700_000, "power_milliwatts": 690_000, "clocks_event_reasons": 4}
    load |= {"remap_correctable_rows": 0, "remap_uncorrectable_rows": 0, "retired_pages": {"double_bit": 0}}
    return builders.gpu(**(load | changes))


def watched(after: GpuReadings | None = None, **changes: Any) -> Watched:
    """What telemetry saw of a sound GPU; the software power cap is part of full load."""
    spans = {"power_watts": Span(400, 650, 698)}
    sound = Watched(reading(), after or reading(), clocks_event_reasons={4: 50, 0: 10}, spans=spans)
    return msgspec.structs.replace(sound, **changes)


def trial(*outcomes: GpuOutcome, test: str = "soak", model: str = H100, **changes: Any) -> Trial:
    """A test of GPUs of one model, all sound as far as telemetry goes."""
    gpus = [outcome.gpu for outcome in outcomes]
    sound = Trial(
        test,
        outcomes,
        builders.START,
        60.0,
        watched={gpu: watched() for gpu in gpus},
        models=dict.fromkeys(gpus, model),
    )
    return msgspec.structs.replace(sound, **changes)


def one(judged: Trial, limits: BurninLimits = LIMITS) -> TestResult:
    """The result of the only GPU."""
    (result,) = judge(judged, limits)
    return result


def statuses(judged: Trial, limits: BurninLimits = LIMITS) -> dict[str, str]:
    """GPU -> status."""
    return {result.gpu: result.status.value for result in judge(judged, limits)}


def soak(gpu: str = "A", tflops: float = 700.0) -> GpuOutcome:
    """A soak that found nothing itself."""
    return GpuOutcome(gpu, figures={"bf16_tflops": tflops, "bf16_tflops_worst_second": tflops / 2})


def test_a_sound_gpu_passes() -> None:
    """All limits met: passed, with figures, limits and telemetry told."""
    result = one(trial(soak()))
    assert result.status is TestStatus.PASSED
    assert result.message == "bf16 700 TFLOPS (floor 547)"
    assert result.telemetry["power_watts"].max == 698


def test_the_models_floor() -> None:
    """A node on which all are slow fails by the floor; a floor that is turned off does not."""
    slow = trial(soak(tflops=500.0))
    assert one(slow).status is TestStatus.FAILED
    assert "bf16 500 TFLOPS (floor 547)" in one(slow).message
    assert one(slow, BurninLimits(floor_percent=0)).status is TestStatus.PASSED


def test_the_nodes_best_gpu() -> None:
    """One GPU at 85 % of the best of its model fails by itself, though above the floor; at 95 % it passes."""
    judged = trial(soak("A", 700), soak("B", 700 * 0.85), soak("C", 700 * 0.95))
    assert statuses(judged) == {"A": "passed", "B": "failed", "C": "passed"}
    assert "85 % of the best of 3" in judge(judged, LIMITS)[1].message
    assert statuses(judged, BurninLimits(min_percent_of_best_peer=80))["B"] == "passed"


def test_only_gpus_of_one_model_are_compared() -> None:
    """A slower model beside a faster one is no fault; nor is a processor compared with anything."""
    judged = trial(soak("A", 700), soak("B", 120), models={"A": H100, "B": "NVIDIA L40S"})
    assert statuses(judged)["A"] == "passed"
    assert "B" not in {each.gpu for each in judge(judged, LIMITS) if "best" in each.message}
    processors = trial(soak("cpu", 0.1), soak("cpu2", 0.01), models={}, watched={})
    assert set(statuses(processors).values()) == {"passed"}


def test_a_model_that_is_not_known_has_no_floor() -> None:
    """And the message says so."""
    result = one(trial(soak(tflops=1.0), model="NVIDIA Z1"))
    assert result.status is TestStatus.PASSED
    assert "no floor known for NVIDIA Z1" in result.message


def test_a_wrong_bit_fails_whatever_the_limits_are() -> None:
    """Miscompares fail with the first one named, also in a test that was stopped."""
    lax = BurninLimits(floor_percent=0, min_percent_of_best_peer=0, power_percent=0)
    wrong = GpuOutcome("A", miscompares=(Miscompare("pattern 0xaa", 4096, 2),))
    for stopped in (False, True):
        result = one(trial(wrong, test="memory", stopped=stopped), lax)
        assert result.status is TestStatus.FAILED
        assert result.message == "2 wrong values, the first in pattern 0xaa at 4096"


def test_a_failure_of_the_test_is_told() -> None:
    """What a worker or its parent says is wrong goes into the message, its evidence into the result."""
    result = one(trial(GpuOutcome("A", failure="killed by SIGSEGV.", evidence="stack"), test="exact"))
    assert (result.status, result.message, result.evidence) == (TestStatus.FAILED, "killed by SIGSEGV", "stack")


@pytest.mark.parametrize(
    ("mask", "name"),
    [(0x08, "HW slowdown"), (0x20, "SW thermal"), (0x40, "HW thermal"), (0x80, "HW power brake")],
)
def test_throttle_reasons_are_bits(mask: int, name: str) -> None:
    """A reason counts alone and beside others; the harmless ones together never do."""
    for seen in (mask, mask | 0x04 | 0x01):
        result = one(trial(soak(), watched={"A": watched(clocks_event_reasons={4: 59, seen: 1})}))
        assert result.status is TestStatus.FAILED
        assert name in result.message
        assert "in 1 of 60 samples" in result.message
    harmless = 0x01 | 0x02 | 0x04 | 0x10 | 0x100
    assert one(trial(soak(), watched={"A": watched(clocks_event_reasons={harmless: 60})})).status is TestStatus.PASSED


def test_throttled_time_between_the_samples() -> None:
    """A counter of throttled time that grew fails though no sample showed a reason; the power cap's may grow."""
    for counter, status in (("hw_thermal", "failed"), ("power_brake", "failed"), ("sw_power_cap", "passed")):
        times = {"sw_power_cap": 0, "sw_thermal": 0, "hw_thermal": 0, "power_brake": 0} | {counter: 5_000_000}
        assert statuses(trial(soak(), watched={"A": watched(reading(throttle_nanoseconds=times))})) == {"A": status}


def event(kind: str, code: int | None, severity: Severity) -> KernelEvent:
    """A kernel event during the test."""
    return KernelEvent(
        kind=kind,
        line=f"NVRM: {kind} {code}",
        finding=f"{kind}.{code}",
        severity=severity,
        action=Action.RESTART_WORKLOAD,
        code=code,
    )


def test_xids() -> None:
    """Any XID fails, an application's too: the application is ours. What is only for information does not."""
    for seen, status in (
        (event("xid", 13, Severity.WARNING), "failed"),
        (event("xid", 79, Severity.CRITICAL), "failed"),
        (event("sxid", 12028, Severity.WARNING), "failed"),
        (event("xid", 63, Severity.INFO), "passed"),
        (event("oom", None, Severity.WARNING), "passed"),
    ):
        assert statuses(trial(soak(), watched={"A": watched(events=(seen,))})) == {"A": status}, seen


ECC = reading().ecc_errors


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"ecc_errors": ECC | {"volatile_uncorrected_total": 1}}, "1 uncorrected ECC errors"),
        ({"ecc_errors": ECC | {"volatile_corrected_total": 1}}, "1 corrected ECC errors"),
        ({"remap_uncorrectable_rows": 1}, "1 rows remapped for uncorrectable errors"),
        ({"remap_correctable_rows": 2}, "2 rows remapped for correctable errors"),
        ({"remap_pending": True}, "a row remapping has become pending"),
        ({"remap_failed": True}, "a row remapping has failed"),
        ({"retired_pages": {"double_bit": 1}}, "1 pages retired for double-bit errors"),
        ({"retirement_pending": True}, "a page retirement has become pending"),
        ({"repair_pending": {"channel": True}}, "a channel repair has become pending"),
        ({"unrepairable_memory": True}, "memory has become unrepairable"),
        ({"sram_threshold_exceeded": True}, "the SRAM error threshold has been exceeded"),
        ({"pcie_replays": 31}, "31 PCIe replays where 30 may be"),
        ({"nvlinks": (NvLink(0, 0, errors={}),)}, "NVLink 0 has gone down"),
        ({"nvlinks": (NvLink(0, 1, errors={"crc_flit": 101}),)}, "101 errors of NVLink 0 where 100 may be"),
        ({"error": builders.LOST}, "after the test NVML answers gpu_lost"),
        ({"pcie_replays": TIMEOUT}, "PCIe replays could not be read (timeout"),
    ],
)
def test_signs_of_hardware_trouble(after: dict[str, Any], words: str) -> None:
    """Each counter or flag that moved during the test fails it; moved before the test, it does not."""
    moved = reading(**after)
    result = one(trial(soak(), watched={"A": watched(moved)}))
    assert result.status is TestStatus.FAILED
    assert words in result.message
    if "could not" not in words and "NVML answers" not in words:
        assert one(trial(soak(), watched={"A": watched(moved, before=moved)})).status is TestStatus.PASSED


def function(**changes: Any) -> PciDevice:
    """A sound GPU's function on the PCI bus."""
    sound = PciDevice(builders.pci(0), 0x030200, 0x2330, aer_correctable=0, aer_nonfatal=0, aer_fatal=0)
    return msgspec.structs.replace(sound, **changes)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (function(aer_nonfatal=2), "2 uncorrectable PCIe errors (aer_dev_nonfatal)"),
        (function(aer_fatal=1), "1 uncorrectable PCIe errors (aer_dev_fatal)"),
        (function(aer_fatal=TIMEOUT), "uncorrectable PCIe errors (aer_dev_fatal) could not be read (timeout"),
        (None, "could not be read (not_installed: sysfs shows no 0000:"),
    ],
)
def test_errors_on_the_pci_bus(after: PciDevice | None, words: str) -> None:
    """The kernel's counts of uncorrectable errors must not move during a test: a bad riser shows in them alone."""
    result = one(trial(soak(), watched={"A": watched(pci_before=function(), pci_after=after)}))
    assert result.status is TestStatus.FAILED
    assert words in result.message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, None),
        (function(aer_fatal=1), function(aer_fatal=1)),
        (function(aer_correctable=0), function(aer_correctable=9)),
        (function(aer_fatal=NOT_SUPPORTED), function(aer_fatal=NOT_SUPPORTED)),
    ],
)
def test_a_bus_without_new_errors(before: PciDevice | None, after: PciDevice | None) -> None:
    """Not shown to this container, counted earlier, corrected, or not counted by this bus at all: no fault."""
    quiet = watched(pci_before=before, pci_after=after)
    assert one(trial(soak(), watched={"A": quiet})).status is TestStatus.PASSED


def test_what_a_gpu_does_not_have_is_no_fault() -> None:
    """NOT_SUPPORTED counters are nothing to check."""
    no = Missing(MissingReason.NOT_SUPPORTED)
    old = reading(remap_correctable_rows=no, remap_uncorrectable_rows=no, pcie_replays=no, nvlinks=no)
    assert one(trial(soak(), watched={"A": watched(old, before=old)})).status is TestStatus.PASSED


def test_a_gpu_without_telemetry_does_not_pass() -> None:
    """Not measured is not healthy: throttling and errors of a GPU must have been looked for."""
    result = one(trial(soak(), watched={}))
    assert result.status is TestStatus.FAILED
    assert "telemetry saw nothing" in result.message


def test_a_soak_too_short_for_a_steady_temperature_says_so() -> None:
    """It passes, since nothing is wrong; whoever reads it knows what was not reached. Other tests need no such time."""
    hotter = {"A": watched(warming_celsius=warming([40, 50, 60, 65, 68]))}
    steady = {"A": watched(warming_celsius=warming([40, 60, 68, 69, 69]))}
    result = one(trial(soak(), watched=hotter))
    assert result.status is TestStatus.PASSED
    assert "still getting warmer (3.0 °C)" in result.message
    assert "warmer" not in one(trial(soak(), watched=steady)).message
    assert "warmer" not in one(trial(GpuOutcome("A"), test="memory", watched=hotter)).message
    assert warming([40, 50]) == 0


def test_power_under_full_load() -> None:
    """A soak that draws little fails; where the limit is set lower, less is asked; other tests draw what they draw."""
    idle = watched(spans={"power_watts": Span(100, 200, 400)})
    result = one(trial(soak(), watched={"A": idle}))
    assert result.status is TestStatus.FAILED
    assert "at most 400 W drawn under full load where at least 525 W of 700 W are to be" in result.message
    capped = msgspec.structs.replace(idle, after=reading(power_limit_milliwatts=450_000))
    assert one(trial(soak(), watched={"A": capped})).status is TestStatus.PASSED
    assert one(trial(GpuOutcome("A"), test="memory", watched={"A": idle})).status is TestStatus.PASSED


def test_a_stopped_test_is_not_held_to_its_speed() -> None:
    """Stopped is stopped, not slow; but an ECC error until then fails."""
    assert one(trial(soak(tflops=1.0), stopped=True)).status is TestStatus.STOPPED
    ecc = watched(reading(ecc_errors=ECC | {"volatile_uncorrected_total": 1}))
    assert one(trial(soak(), stopped=True, watched={"A": ecc})).status is TestStatus.FAILED


def test_skipped() -> None:
    """With nothing to test the reason is told; trouble seen meanwhile still fails."""
    skipped = GpuOutcome("A", skipped="one GPU has no peer")
    assert one(trial(skipped, test="p2p")).message == "one GPU has no peer"
    assert one(trial(skipped, test="p2p")).status is TestStatus.SKIPPED
    lost = watched(reading(error=builders.LOST))
    assert one(trial(skipped, test="p2p", watched={"A": lost})).status is TestStatus.FAILED


def test_bandwidth_floors() -> None:
    """Memory and host copies have floors; eight lanes by the slot's wiring ask for half."""
    figure = {figures.MEMORY_COPY: 2500.0, figures.HOST_TO_DEVICE: 25.0, figures.DEVICE_TO_HOST: 50.0}
    judged = trial(GpuOutcome("A", figures=figure), test="bandwidth")
    result = one(judged)
    assert result.status is TestStatus.FAILED
    assert result.message == "host to device 25 GB/s (floor 43)"
    narrow = watched(reading(pcie_width=8, pcie_width_max=8))
    assert one(msgspec.structs.replace(judged, watched={"A": narrow})).status is TestStatus.PASSED
    slow = GpuOutcome("A", figures=figure | {figures.MEMORY_COPY: 1800.0})
    assert "memory copy 1800 GB/s (floor 1905)" in one(trial(slow, test="bandwidth")).message


def pairs(speeds: dict[str, dict[str, float]]) -> Trial:
    """A p2p test of these one-way speeds."""
    outcomes = []
    for gpu, to in speeds.items():
        middle = sorted(to.values())[len(to) // 2]
        outcomes.append(
            GpuOutcome(gpu, figures={figures.pair(peer): speed for peer, speed in to.items()} | {figures.P2P: middle})
        )
    return trial(*outcomes, test="p2p")


def all_pairs(gpus: str, slow: set[tuple[str, str]], speed: float = 100.0) -> dict[str, dict[str, float]]:
    """Every ordered pair at 380 GB/s, but the slow ones."""
    return {a: {b: speed if (a, b) in slow else 380.0 for b in gpus if b != a} for a in gpus}


def test_one_slow_pair_is_blamed_on_both_its_ends() -> None:
    """Nothing tells which end it is; the others pass."""
    judged = pairs(all_pairs("ABCD", {("A", "B")}))
    assert statuses(judged) == {"A": "failed", "B": "failed", "C": "passed", "D": "passed"}
    assert "A to B 100 GB/s (floor 301)" in judge(judged, LIMITS)[1].message


def test_one_slow_gpu_is_blamed_alone() -> None:
    """A GPU that is slow to and from everyone fails; its peers are not blamed for it."""
    slow = {(a, b) for a in "ABCD" for b in "ABCD" if "B" in (a, b)}
    assert statuses(pairs(all_pairs("ABCD", slow))) == {"A": "passed", "B": "failed", "C": "passed", "D": "passed"}
    assert set(statuses(pairs(all_pairs("ABCD", set()))).values()) == {"passed"}


def test_all_reduce_floor_holds_for_its_number_of_gpus() -> None:
    """The floor of eight GPUs is not asked of two."""
    for ranks, status in ((8.0, "failed"), (2.0, "passed")):
        slow = GpuOutcome("A", figures={figures.ALL_REDUCE: 200.0, figures.RANKS: ranks})
        assert statuses(trial(slow, test="collectives")) == {"A": status}
    fast = GpuOutcome("A", figures={figures.ALL_REDUCE: 400.0, figures.RANKS: 8.0})
    assert statuses(trial(fast, test="collectives")) == {"A": "passed"}
