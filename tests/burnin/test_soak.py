"""The test under full load, on the processor."""

from __future__ import annotations

from testing import readings as builders
from testing.burnin_jobs import Stopper, done

from gpuhealth.burnin import soak
from gpuhealth.burnin.pass_rules import Attempt, judge
from gpuhealth.burnin.protocol import Fault
from gpuhealth.burnin.telemetry_window import TelemetryWindow
from gpuhealth.model.burnin_run import TestStatus
from gpuhealth.runtime.settings import BurninLimits

LIMITS = BurninLimits()


def test_a_sound_device_keeps_its_speed_and_its_bits() -> None:
    """A sound device has throughput and worst second as figures, and no miscompare."""
    stopper = Stopper(after=10_000)
    outcome = done(soak.run, seconds=1.5, on_progress=stopper)["A"]
    assert (outcome.failure, outcome.miscompares) == ("", ())
    assert 0 < outcome.figures["fp32_tflops_worst_second"] <= outcome.figures["fp32_tflops"]
    assert outcome.figures["products_compared"] >= 1
    assert any("fp32_tflops" in progress.rates for progress in stopper.messages)


def test_a_flipped_bit_is_found() -> None:
    """A product that differs from the first in one bit is found, and is transient if the next ones are right."""
    outcome = done(soak.run, Fault(kind="result_bits", after=1, times=1))["A"]
    (miss,) = outcome.miscompares
    assert (miss.kind, miss.wrong, int(miss.xor, 16).bit_count()) == ("transient", 1, 1)
    assert miss.what.startswith("the load fp32")
    assert "1 of 2 products are wrong" in outcome.failure


def test_a_device_that_is_always_wrong() -> None:
    """A device that is wrong from the first product on repeats itself; the product with a known result shows it."""
    outcome = done(soak.run, Fault(kind="result_bits", bits=2))["A"]
    (miss,) = outcome.miscompares
    assert miss.what.startswith("fp32 256x256x256")
    assert (miss.kind, miss.wrong) == ("repeatable", 1)
    assert int(miss.got, 16) ^ int(miss.expected, 16) == int(miss.xor, 16)
    assert int(miss.xor, 16).bit_count() == 2


def test_a_device_that_goes_wrong_hot() -> None:
    """A fault that starts later and stays is repeatable, and does not affect the other device."""
    outcomes = done(soak.run, Fault(kind="result_bits", gpu="B", after=1), gpus="AB")
    assert outcomes["A"].failure == ""
    assert outcomes["B"].miscompares[0].kind == "repeatable"


def test_a_slow_device_has_a_low_throughput() -> None:
    """A device that is twenty times slower has less throughput, and fails in comparison with a sound one."""
    outcomes = done(soak.run, Fault(kind="slow", gpu="B", factor=20), gpus="AB", seconds=1.0)
    assert outcomes["B"].figures["fp32_tflops"] < outcomes["A"].figures["fp32_tflops"] / 2
    model = dict.fromkeys("AB", "a model without floors")
    sound = builders.gpu(remap_correctable_rows=0, remap_uncorrectable_rows=0)
    telemetry = {gpu: TelemetryWindow(before=sound, after=sound) for gpu in "AB"}
    attempt = Attempt(
        test="soak",
        results=tuple(outcomes.values()),
        started=builders.START,
        seconds=1.0,
        telemetry=telemetry,
        models=model,
    )
    assert [result.status for result in judge(attempt, LIMITS)] == [TestStatus.PASSED, TestStatus.FAILED]


def test_a_stop_ends_it() -> None:
    """A stop ends the test at once, in the middle of a second, without a failure."""
    stopper = Stopper(after=1)
    outcome = done(soak.run, seconds=3600, on_progress=stopper)["A"]
    assert len(stopper.messages) == 2
    assert outcome.failure == ""
