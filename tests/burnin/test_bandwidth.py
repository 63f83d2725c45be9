"""The test of bandwidths, on the processor: its figures are of copies in main memory."""

from __future__ import annotations

import pytest
from testing import readings as builders
from testing.burnin_jobs import Stopper, done

from gpuhealth.burnin import bandwidth, figures
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.pass_rules import Attempt, judge
from gpuhealth.burnin.protocol import Fault, Job
from gpuhealth.burnin.telemetry_window import TelemetryWindow
from gpuhealth.model.burnin_run import TestStatus
from gpuhealth.runtime.settings import BurninLimits

ALL = {
    figures.HOST_TO_DEVICE,
    figures.DEVICE_TO_HOST,
    figures.MEMORY_COPY,
    figures.MEMORY_READ,
    figures.MEMORY_WRITE,
}


def test_a_sound_device_has_all_figures() -> None:
    """A sound device has five figures above zero, and no miscompare."""
    outcome = done(bandwidth.run)["A"]
    assert (outcome.failure, outcome.miscompares) == ("", ())
    assert set(outcome.figures) == ALL
    assert all(figure > 0 for figure in outcome.figures.values())


@pytest.mark.parametrize(
    ("after", "what"),
    [(0, "from the host"), (1, "to the host"), (2, "copies in memory"), (3, "fills of memory"), (4, "sums of memory")],
)
def test_one_flipped_bit_is_found_in_each_direction(after: int, what: str) -> None:
    """A bit that flips once after any of the five operations is found in that operation, as transient."""
    outcome = done(bandwidth.run, Fault(kind="memory_bits", after=after, times=1))["A"]
    (miss,) = outcome.miscompares
    assert what in miss.what
    assert (miss.kind, miss.wrong, int(miss.xor, 16).bit_count()) == ("transient", 1, 1)
    assert outcome.failure != ""


def test_a_bit_that_always_flips_is_repeatable() -> None:
    """A stuck bit is repeatable, and only on the device that has it."""
    outcomes = done(bandwidth.run, Fault(kind="memory_bits", gpu="B"), gpus="AB")
    assert outcomes["A"].miscompares == ()
    assert {miss.kind for miss in outcomes["B"].miscompares} == {"repeatable"}


def test_a_transfer_that_did_not_happen_is_found() -> None:
    """Data of an earlier transfer is not accepted as the result of a transfer that moved nothing."""
    job = Job(test="bandwidth", devices=("cpu",), gpus=("A",), seconds=0.0, seed=7)
    test = bandwidth._BandwidthTest(job, Device("cpu", "A", small=True), lambda _: None, InjectedFaults(job), 0.0)
    for transfer in test._transfers():
        test._sample(transfer)
        assert not test._miscompares
        test._sample(transfer._replace(work=lambda: None))
        assert test._miscompares.pop().what == transfer.what


def test_a_slow_device_has_low_figures() -> None:
    """A device that is twenty times slower has lower figures; enough samples are taken for a busy machine."""
    outcomes = done(bandwidth.run, Fault(kind="slow", gpu="B", factor=20), gpus="AB", seconds=2.0)
    for figure in ALL:
        assert outcomes["B"].figures[figure] < outcomes["A"].figures[figure] / 2, figure


def test_a_device_below_its_models_floor_fails() -> None:
    """A processor's memory fails the floors of an H100, and passes a thousandth of them."""
    outcomes = tuple(done(bandwidth.run).values())
    sound = builders.gpu(remap_correctable_rows=0, remap_uncorrectable_rows=0)
    models = {"A": "NVIDIA H100 80GB HBM3"}
    window = TelemetryWindow(before=sound, after=sound)
    attempt = Attempt(
        test="bandwidth", results=outcomes, started=builders.START, seconds=1.0, telemetry={"A": window}, models=models
    )
    (strict,), (lax,) = (judge(attempt, BurninLimits(floor_percent=percent)) for percent in (100, 0.1))
    assert strict.status is TestStatus.FAILED
    assert "(floor 1905)" in strict.message
    assert lax.status is TestStatus.PASSED


def test_progress_names_the_direction_and_a_stop_ends_it() -> None:
    """Each direction is reported before it starts; after a stop, the figures so far are kept."""
    stopper = Stopper(after=2)
    outcome = done(bandwidth.run, seconds=3600, on_progress=stopper)["A"]
    assert [progress.activity for progress in stopper.messages] == [
        "copies from the host",
        "copies to the host",
        "copies in memory",
    ]
    assert set(outcome.figures) == {figures.HOST_TO_DEVICE, figures.DEVICE_TO_HOST}
    assert set(stopper.messages[-1].rates) == set(outcome.figures)
