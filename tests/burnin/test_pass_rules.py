"""The pass rules: each fires on its fault and lets a sound GPU pass."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from testing import readings as builders

from gpuhealth.burnin import figures
from gpuhealth.burnin.pass_rules import Attempt, judge
from gpuhealth.burnin.protocol import DeviceResult
from gpuhealth.burnin.telemetry_window import TelemetryWindow, temperature_rise
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
    """Readings of a sound GPU under load."""
    load: dict[str, Any] = {"power_limit_milliwatts": 700_000, "power_milliwatts": 690_000, "clocks_event_reasons": 4}
    load |= {"remap_correctable_rows": 0, "remap_uncorrectable_rows": 0, "retired_pages": {"double_bit": 0}}
    return builders.gpu(**(load | changes))


def telemetry(after: GpuReadings | None = None, **changes: Any) -> TelemetryWindow:
    """The telemetry window of a sound GPU; the software power cap is normal at full load."""
    spans = {"power_watts": Span(400, 650, 698)}
    sound = TelemetryWindow(
        before=reading(), after=after or reading(), clocks_event_reasons={4: 50, 0: 10}, spans=spans
    )
    return msgspec.structs.replace(sound, **changes)


def attempt(*outcomes: DeviceResult, test: str = "soak", model: str = H100, **changes: Any) -> Attempt:
    """An attempt on GPUs of one model, all with sound telemetry."""
    gpus = [outcome.gpu for outcome in outcomes]
    sound = Attempt(
        test=test,
        results=outcomes,
        started=builders.START,
        seconds=60.0,
        telemetry={gpu: telemetry() for gpu in gpus},
        models=dict.fromkeys(gpus, model),
    )
    return msgspec.structs.replace(sound, **changes)


def one(judged: Attempt, limits: BurninLimits = LIMITS) -> TestResult:
    """The result of the only GPU."""
    (result,) = judge(judged, limits)
    return result


def statuses(judged: Attempt, limits: BurninLimits = LIMITS) -> dict[str, str]:
    """The status of each GPU."""
    return {result.gpu: result.status.value for result in judge(judged, limits)}


def soak(gpu: str = "A", tflops: float = 700.0) -> DeviceResult:
    """The result of a soak that found no fault itself."""
    return DeviceResult(gpu=gpu, figures={"bf16_tflops": tflops, "bf16_tflops_worst_second": tflops / 2})


def test_a_sound_gpu_passes() -> None:
    """A GPU within all limits passes, with figures, limits and telemetry in its result."""
    result = one(attempt(soak()))
    assert result.status is TestStatus.PASSED
    assert result.message == "bf16 700 TFLOPS (floor 547)"
    assert result.telemetry["power_watts"].max == 698


def test_the_models_floor() -> None:
    """A node on which all GPUs are slow fails by the floor, unless the floor is turned off."""
    slow = attempt(soak(tflops=500.0))
    assert one(slow).status is TestStatus.FAILED
    assert "bf16 500 TFLOPS (floor 547)" in one(slow).message
    assert one(slow, BurninLimits(floor_percent=0)).status is TestStatus.PASSED


def test_the_nodes_best_gpu() -> None:
    """A GPU at 85 % of the best of its model fails although it is above the floor; at 95 % it passes."""
    judged = attempt(soak("A", 700), soak("B", 700 * 0.85), soak("C", 700 * 0.95))
    assert statuses(judged) == {"A": "passed", "B": "failed", "C": "passed"}
    assert "85 % of the best of 3" in judge(judged, LIMITS)[1].message
    assert statuses(judged, BurninLimits(min_percent_of_best_peer=80))["B"] == "passed"


def test_only_gpus_of_one_model_are_compared() -> None:
    """GPUs of different models are not compared, and processors are compared with nothing."""
    judged = attempt(soak("A", 700), soak("B", 120), models={"A": H100, "B": "NVIDIA L40S"})
    assert statuses(judged)["A"] == "passed"
    assert "B" not in {result.gpu for result in judge(judged, LIMITS) if "best" in result.message}
    processors = attempt(soak("cpu", 0.1), soak("cpu2", 0.01), models={}, telemetry={})
    assert set(statuses(processors).values()) == {"passed"}


def test_a_model_that_is_not_known_has_no_floor() -> None:
    """A GPU of an unknown model has no floor, and the message mentions it."""
    result = one(attempt(soak(tflops=1.0), model="NVIDIA Z1"))
    assert result.status is TestStatus.PASSED
    assert "no floor known for NVIDIA Z1" in result.message


def test_a_wrong_bit_fails_whatever_the_limits_are() -> None:
    """Miscompares fail a test whatever the limits are, also a stopped one; the first is named."""
    lax = BurninLimits(floor_percent=0, min_percent_of_best_peer=0, power_percent=0)
    wrong = DeviceResult(gpu="A", miscompares=(Miscompare(what="pattern 0xaa", index=4096, unit="byte", wrong=2),))
    for stopped in (False, True):
        result = one(attempt(wrong, test="memory", stopped=stopped), lax)
        assert result.status is TestStatus.FAILED
        assert result.message == "pattern 0xaa: 2 wrong 64-bit words, first at byte 0x1000"


def test_a_failure_of_the_test_is_in_the_message() -> None:
    """A failure reported by a worker or its parent is in the message, its evidence in the result."""
    result = one(attempt(DeviceResult(gpu="A", failure="killed by SIGSEGV.", evidence="stack"), test="exact"))
    assert (result.status, result.message, result.evidence) == (TestStatus.FAILED, "killed by SIGSEGV", "stack")


@pytest.mark.parametrize(
    ("mask", "name"),
    [(0x08, "HW slowdown"), (0x20, "SW thermal"), (0x40, "HW thermal"), (0x80, "HW power brake")],
)
def test_throttle_reasons_are_bits(mask: int, name: str) -> None:
    """A throttle reason fails a test alone and together with others; harmless reasons never do."""
    for seen in (mask, mask | 0x04 | 0x01):
        result = one(attempt(soak(), telemetry={"A": telemetry(clocks_event_reasons={4: 59, seen: 1})}))
        assert result.status is TestStatus.FAILED
        assert name in result.message
        assert "in 1 of 60 samples" in result.message
    harmless = 0x01 | 0x02 | 0x04 | 0x10 | 0x100
    assert (
        one(attempt(soak(), telemetry={"A": telemetry(clocks_event_reasons={harmless: 60})})).status
        is TestStatus.PASSED
    )


def test_throttled_time_between_the_samples() -> None:
    """A growing counter of throttled time fails a test even without a sample of it; the power cap's may grow."""
    for counter, status in (("hw_thermal", "failed"), ("power_brake", "failed"), ("sw_power_cap", "passed")):
        times = {"sw_power_cap": 0, "sw_thermal": 0, "hw_thermal": 0, "power_brake": 0} | {counter: 5_000_000}
        assert statuses(attempt(soak(), telemetry={"A": telemetry(reading(throttle_nanoseconds=times))})) == {
            "A": status
        }


def event(kind: str, code: int | None, severity: Severity) -> KernelEvent:
    """A kernel event that occurs during the test."""
    return KernelEvent(
        kind=kind,
        line=f"NVRM: {kind} {code}",
        finding=f"{kind}.{code}",
        severity=severity,
        action=Action.RESTART_WORKLOAD,
        code=code,
    )


def test_xids() -> None:
    """Any XID fails a test, also one of an application, which is ours; an informational one does not."""
    for seen, status in (
        (event("xid", 13, Severity.WARNING), "failed"),
        (event("xid", 79, Severity.CRITICAL), "failed"),
        (event("sxid", 12028, Severity.WARNING), "failed"),
        (event("xid", 63, Severity.INFO), "passed"),
        (event("oom", None, Severity.WARNING), "passed"),
    ):
        assert statuses(attempt(soak(), telemetry={"A": telemetry(events=(seen,))})) == {"A": status}, seen


ECC = reading().ecc_errors


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"ecc_errors": ECC | {"volatile_uncorrected_total": 1}}, "1 uncorrected ECC errors"),
        ({"ecc_errors": ECC | {"volatile_corrected_total": 1}}, "1 corrected ECC errors"),
        ({"remap_uncorrectable_rows": 1}, "1 rows remapped for uncorrectable errors"),
        ({"remap_correctable_rows": 2}, "2 rows remapped for correctable errors"),
        ({"remap_pending": True}, "a row remapping became pending"),
        ({"remap_failed": True}, "a row remapping failed"),
        ({"retired_pages": {"double_bit": 1}}, "1 pages retired for double-bit errors"),
        ({"retirement_pending": True}, "a page retirement became pending"),
        ({"repair_pending": {"channel": True}}, "a channel repair became pending"),
        ({"unrepairable_memory": True}, "memory became unrepairable"),
        ({"sram_threshold_exceeded": True}, "the SRAM error threshold was exceeded"),
        ({"pcie_replays": 31}, "31 PCIe replays (limit 30)"),
        ({"nvlinks": (NvLink(0, 0, errors={}),)}, "NVLink 0 went down"),
        ({"nvlinks": (NvLink(0, 1, errors={"crc_flit": 101}),)}, "101 errors on NVLink 0 (limit 100)"),
        ({"error": builders.LOST}, "NVML returns gpu_lost"),
        ({"pcie_replays": TIMEOUT}, "PCIe replays could not be read (timeout"),
    ],
)
def test_signs_of_hardware_trouble(after: dict[str, Any], words: str) -> None:
    """Each counter or flag that changed during the test fails it; one that changed before does not."""
    moved = reading(**after)
    result = one(attempt(soak(), telemetry={"A": telemetry(moved)}))
    assert result.status is TestStatus.FAILED
    assert words in result.message
    if "could not" not in words and "NVML returns" not in words:
        assert one(attempt(soak(), telemetry={"A": telemetry(moved, before=moved)})).status is TestStatus.PASSED


def function(**changes: Any) -> PciDevice:
    """The PCI function of a sound GPU."""
    sound = PciDevice(builders.pci(0), 0x030200, 0x2330, aer_correctable=0, aer_nonfatal=0, aer_fatal=0)
    return msgspec.structs.replace(sound, **changes)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (function(aer_nonfatal=2), "2 uncorrectable PCIe errors (aer_dev_nonfatal)"),
        (function(aer_fatal=1), "1 uncorrectable PCIe errors (aer_dev_fatal)"),
        (function(aer_fatal=TIMEOUT), "uncorrectable PCIe errors (aer_dev_fatal) could not be read (timeout"),
        (None, "could not be read (not_installed: sysfs no longer shows 0000:"),
    ],
)
def test_errors_on_the_pci_bus(after: PciDevice | None, words: str) -> None:
    """The kernel's counters of uncorrectable errors must not grow during a test: a bad riser shows only there."""
    result = one(attempt(soak(), telemetry={"A": telemetry(pci_before=function(), pci_after=after)}))
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
    """Counters that are not visible, old, corrected or not supported are no fault."""
    quiet = telemetry(pci_before=before, pci_after=after)
    assert one(attempt(soak(), telemetry={"A": quiet})).status is TestStatus.PASSED


def test_what_a_gpu_does_not_have_is_no_fault() -> None:
    """Counters that the GPU does not support are not checked."""
    no = Missing(MissingReason.NOT_SUPPORTED)
    old = reading(remap_correctable_rows=no, remap_uncorrectable_rows=no, pcie_replays=no, nvlinks=no)
    assert one(attempt(soak(), telemetry={"A": telemetry(old, before=old)})).status is TestStatus.PASSED


def test_a_gpu_without_telemetry_does_not_pass() -> None:
    """A GPU without telemetry fails, because throttling and errors were not checked."""
    result = one(attempt(soak(), telemetry={}))
    assert result.status is TestStatus.FAILED
    assert "no telemetry of this GPU" in result.message


def test_a_soak_too_short_for_a_steady_temperature_says_so() -> None:
    """A soak that ends too early passes with a remark; other tests need no steady temperature."""
    hotter = {"A": telemetry(temperature_rise_celsius=temperature_rise([40, 50, 60, 65, 68]))}
    steady = {"A": telemetry(temperature_rise_celsius=temperature_rise([40, 60, 68, 69, 69]))}
    result = one(attempt(soak(), telemetry=hotter))
    assert result.status is TestStatus.PASSED
    assert "still rising (3.0 °C)" in result.message
    assert "rising" not in one(attempt(soak(), telemetry=steady)).message
    assert "rising" not in one(attempt(DeviceResult(gpu="A"), test="memory", telemetry=hotter)).message
    assert temperature_rise([40, 50]) == 0


def test_power_under_full_load() -> None:
    """A soak with low power fails; a lower power limit lowers the requirement, and other tests have none."""
    idle = telemetry(spans={"power_watts": Span(100, 200, 400)})
    result = one(attempt(soak(), telemetry={"A": idle}))
    assert result.status is TestStatus.FAILED
    assert "max power 400 W under full load, expected at least 525 W of 700 W" in result.message
    capped = msgspec.structs.replace(idle, after=reading(power_limit_milliwatts=450_000))
    assert one(attempt(soak(), telemetry={"A": capped})).status is TestStatus.PASSED
    assert one(attempt(DeviceResult(gpu="A"), test="memory", telemetry={"A": idle})).status is TestStatus.PASSED


def test_a_stopped_test_is_not_held_to_its_speed() -> None:
    """A stopped test does not fail by its speed, but by an ECC error so far."""
    assert one(attempt(soak(tflops=1.0), stopped=True)).status is TestStatus.STOPPED
    ecc = telemetry(reading(ecc_errors=ECC | {"volatile_uncorrected_total": 1}))
    assert one(attempt(soak(), stopped=True, telemetry={"A": ecc})).status is TestStatus.FAILED


def test_skipped() -> None:
    """A skipped test has its reason as message; a fault in the telemetry still fails it."""
    skipped = DeviceResult(gpu="A", skipped="one GPU has no peer")
    assert one(attempt(skipped, test="p2p")).message == "one GPU has no peer"
    assert one(attempt(skipped, test="p2p")).status is TestStatus.SKIPPED
    lost = telemetry(reading(error=builders.LOST))
    assert one(attempt(skipped, test="p2p", telemetry={"A": lost})).status is TestStatus.FAILED


def test_bandwidth_floors() -> None:
    """Memory and host copies have floors; a slot with eight lanes halves those of host copies."""
    figure = {figures.MEMORY_COPY: 2500.0, figures.HOST_TO_DEVICE: 25.0, figures.DEVICE_TO_HOST: 50.0}
    judged = attempt(DeviceResult(gpu="A", figures=figure), test="bandwidth")
    result = one(judged)
    assert result.status is TestStatus.FAILED
    assert result.message == "host to device 25 GB/s (floor 43)"
    narrow = telemetry(reading(pcie_width=8, pcie_width_max=8))
    assert one(msgspec.structs.replace(judged, telemetry={"A": narrow})).status is TestStatus.PASSED
    slow = DeviceResult(gpu="A", figures=figure | {figures.MEMORY_COPY: 1800.0})
    assert "memory copy 1800 GB/s (floor 1905)" in one(attempt(slow, test="bandwidth")).message


def pairs(speeds: dict[str, dict[str, float]]) -> Attempt:
    """An attempt of the p2p test with these one-way speeds."""
    outcomes = []
    for gpu, to in speeds.items():
        middle = sorted(to.values())[len(to) // 2]
        outcomes.append(
            DeviceResult(
                gpu=gpu,
                figures={figures.pair_figure(peer): speed for peer, speed in to.items()} | {figures.P2P: middle},
            )
        )
    return attempt(*outcomes, test="p2p")


def all_pairs(gpus: str, slow: set[tuple[str, str]], speed: float = 100.0) -> dict[str, dict[str, float]]:
    """Speeds of all ordered pairs: 380 GB/s except for the slow ones."""
    return {a: {b: speed if (a, b) in slow else 380.0 for b in gpus if b != a} for a in gpus}


def test_one_slow_pair_is_blamed_on_both_its_ends() -> None:
    """A slow pair fails both its GPUs, and no others."""
    judged = pairs(all_pairs("ABCD", {("A", "B")}))
    assert statuses(judged) == {"A": "failed", "B": "failed", "C": "passed", "D": "passed"}
    assert "A to B 100 GB/s (floor 301)" in judge(judged, LIMITS)[1].message


def test_one_slow_gpu_is_blamed_alone() -> None:
    """A GPU that is slow to and from all others fails alone."""
    slow = {(a, b) for a in "ABCD" for b in "ABCD" if "B" in (a, b)}
    assert statuses(pairs(all_pairs("ABCD", slow))) == {"A": "passed", "B": "failed", "C": "passed", "D": "passed"}
    assert set(statuses(pairs(all_pairs("ABCD", set()))).values()) == {"passed"}


def test_all_reduce_floor_holds_for_its_number_of_gpus() -> None:
    """The floor for eight GPUs does not apply to two."""
    for ranks, status in ((8.0, "failed"), (2.0, "passed")):
        slow = DeviceResult(gpu="A", figures={figures.ALL_REDUCE: 200.0, figures.RANKS: ranks})
        assert statuses(attempt(slow, test="collectives")) == {"A": status}
    fast = DeviceResult(gpu="A", figures={figures.ALL_REDUCE: 400.0, figures.RANKS: 8.0})
    assert statuses(attempt(fast, test="collectives")) == {"A": "passed"}
