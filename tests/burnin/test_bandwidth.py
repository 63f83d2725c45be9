"""The test of bandwidths, on the processor: its figures are of copies in main memory."""

from __future__ import annotations

import pytest

from gpuhealth.burnin import bandwidth, figures
from gpuhealth.burnin.jobs import Fault
from tests.burnin.jobs import Stopper, done

ALL = {
    figures.HOST_TO_DEVICE,
    figures.DEVICE_TO_HOST,
    figures.MEMORY_COPY,
    figures.MEMORY_READ,
    figures.MEMORY_WRITE,
}


def test_a_sound_device_has_all_figures() -> None:
    """Five figures above zero, and all data as it must be."""
    outcome = done(bandwidth.run)["A"]
    assert (outcome.failure, outcome.miscompares) == ("", ())
    assert set(outcome.figures) == ALL
    assert all(figure > 0 for figure in outcome.figures.values())


@pytest.mark.parametrize(
    ("after", "what"),
    [(0, "from the host"), (1, "to the host"), (2, "copies in memory"), (3, "fills of memory"), (4, "sums of memory")],
)
def test_one_flipped_bit_is_found_in_each_direction(after: int, what: str) -> None:
    """A bit that flips once behind any one of the five is found there, and is transient."""
    outcome = done(bandwidth.run, Fault("memory_bits", after=after, times=1))["A"]
    (miss,) = outcome.miscompares
    assert what in miss.what
    assert (miss.kind, miss.wrong, int(miss.xor, 16).bit_count()) == ("transient", 1, 1)
    assert outcome.failure != ""


def test_a_bit_that_always_flips_is_repeatable() -> None:
    """Only on the device that has it."""
    outcomes = done(bandwidth.run, Fault("memory_bits", gpu="B"), gpus="AB")
    assert outcomes["A"].miscompares == ()
    assert {miss.kind for miss in outcomes["B"].miscompares} == {"repeatable"}


def test_a_slow_device_has_low_figures() -> None:
    """Twenty times slower shows in every figure, whatever else the machine does meanwhile."""
    outcomes = done(bandwidth.run, Fault("slow", gpu="B", factor=20), gpus="AB")
    for figure in ALL:
        assert outcomes["B"].figures[figure] < outcomes["A"].figures[figure] / 2, figure


def test_it_tells_what_it_does_and_stops_when_told() -> None:
    """The direction is named before it begins; figures up to then are kept."""
    stopper = Stopper(after=4)
    outcome = done(bandwidth.run, seconds=3600, say=stopper)["A"]
    assert [each.doing for each in stopper.heard][::2] == [
        "copies from the host",
        "copies to the host",
        "copies in memory",
    ]
    assert set(outcome.figures) == {figures.HOST_TO_DEVICE, figures.DEVICE_TO_HOST}
