"""Exact arithmetic on the processor: right products pass, wrong ones are found, located and classified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gpuhealth.burnin import exact
from gpuhealth.burnin.bit_compare import same_bits
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import InjectedFaults, flip
from gpuhealth.burnin.gemm import FORMATS
from gpuhealth.burnin.operands import OperandPair
from gpuhealth.burnin.protocol import DeviceResult, Fault, Job, Progress, StopRequested

BF16 = next(fmt for fmt in FORMATS if fmt.name == "bf16")


def _job(*faults: Fault, seconds: float = 0.5, gpus: tuple[str, ...] = ("cpu0",)) -> Job:
    return Job(
        test="exact",
        devices=("cpu",) * len(gpus),
        gpus=gpus,
        seconds=seconds,
        seed=7,
        small=True,
        faults=faults,
    )


def _run(job: Job, faults: InjectedFaults | None = None, device: Device | None = None) -> tuple[DeviceResult, ...]:
    devices = [device] if device else [Device("cpu", gpu, small=True) for gpu in job.gpus]
    messages: list[Progress] = []
    outcomes = exact.run(job, devices, messages.append, faults or InjectedFaults(job))
    assert all(0 <= progress.fraction <= 1 for progress in messages)
    return outcomes


@pytest.fixture
def one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test bf16 and fp32 only; fp32 because a device without it counts as broken."""
    monkeypatch.setattr(exact, "FORMATS", [fmt for fmt in FORMATS if fmt.name in ("bf16", "fp32")])


def test_right_products_pass_in_every_format() -> None:
    """Every format that the processor supports is multiplied, without a miscompare."""
    (outcome,) = _run(_job(seconds=1.0))
    assert (outcome.failure, outcome.miscompares) == ("", ())
    assert {f"{fmt.name}_tflops" for fmt in FORMATS} <= set(outcome.figures)


@pytest.mark.usefixtures("one_format")
@pytest.mark.parametrize("after", [0, 1, 5])
def test_one_flip_is_found_and_transient(after: int) -> None:
    """A flip is found in the first product, which has no other to compare with, and in later ones, with its bits."""
    (outcome,) = _run(_job(Fault(kind="result_bits", after=after, times=1), seconds=2.0))
    (found,) = outcome.miscompares
    assert (found.kind, found.wrong) == ("transient", 1)
    assert int(found.got, 16) ^ int(found.expected, 16) == int(found.xor, 16) != 0
    assert int(found.xor, 16).bit_count() == 1
    assert "transient" in outcome.failure


@pytest.mark.usefixtures("one_format")
def test_a_bit_that_always_flips_is_repeatable() -> None:
    """Many elements and several bits are counted, and the test ends after enough miscompares."""
    (outcome,) = _run(_job(Fault(kind="result_bits", bits=2, elements=40)))
    assert {found.kind for found in outcome.miscompares} == {"repeatable"}
    assert {found.wrong for found in outcome.miscompares} == {40}
    assert outcome.miscompares[0].repeats == "5 of 5 hot, 3 of 3 with other operands, 3 of 3 after idle"


@pytest.mark.usefixtures("one_format")
def test_a_corrupted_operand_is_named() -> None:
    """A corrupted operand is found before a product is computed with it."""
    (outcome,) = _run(_job(Fault(kind="input_bits", times=1)))
    (found,) = outcome.miscompares
    assert found.what.startswith("operand ")
    assert (found.kind, found.wrong) == ("transient", 1)


@pytest.mark.usefixtures("one_format")
def test_only_the_bad_one_of_two_devices_fails() -> None:
    """Of two devices with the same operands, only the one with a fault fails."""
    good, bad = _run(_job(Fault(kind="result_bits", gpu="cpu1", after=2), seconds=2.0, gpus=("cpu0", "cpu1")))
    assert (good.failure, good.miscompares) == ("", ())
    assert bad.miscompares
    assert good.figures["products"] > 0


class _Flipping(InjectedFaults):
    """Flips a bit of a product where a condition of the test holds."""

    def __init__(self, when: Callable[[Tensor], bool]) -> None:
        super().__init__(_job())
        self._when = when

    def after_product(self, _: Device, result: Tensor) -> None:
        """Flip a bit of the product where the condition holds."""
        if self._when(result):
            flip(result, [3], 4)


@pytest.mark.usefixtures("one_format")
def test_what_only_some_operands_bring_is_data_dependent() -> None:
    """A flip that occurs with some operands only, as in a path of the chip that few numbers take, is data dependent."""
    seen: list[float] = []

    def with_the_first_operands(result: Tensor) -> bool:
        seen.append(float(result[0, 0]))
        return seen[0] == seen[-1]

    (outcome,) = _run(_job(), _Flipping(with_the_first_operands))
    assert [found.kind for found in outcome.miscompares] == ["data_dependent"]


@pytest.mark.usefixtures("one_format")
def test_what_a_rest_cures_is_hot_only() -> None:
    """A fault that disappears after the device was idle is hot only."""

    class Resting(Device):
        rested = False

        def idle(self, _: float) -> None:
            self.rested = True

    device = Resting("cpu", "cpu0", small=True)
    (outcome,) = _run(_job(), _Flipping(lambda _: not device.rested), device)
    assert outcome.miscompares[0].kind == "hot_only"


@pytest.mark.usefixtures("one_format")
def test_a_device_whose_own_check_is_wrong_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose own check rejects a product that the host proves right fails."""
    load = OperandPair.to

    def corrupted(pair: OperandPair, device: Device) -> OperandPair:
        loaded = load(pair, device)
        return replace(loaded, expected=loaded.expected + 1)

    monkeypatch.setattr(OperandPair, "to", corrupted)
    (outcome,) = _run(_job())
    assert outcome.miscompares[0].what.startswith("check of ")
    assert outcome.failure


@pytest.mark.usefixtures("one_format")
def test_a_stop_keeps_what_was_found() -> None:
    """A miscompare is in the result even if a stop interrupts its classification."""
    job = _job(Fault(kind="result_bits"), seconds=60)

    def stop(_: Progress) -> None:
        raise StopRequested

    (outcome,) = exact.run(job, [Device("cpu", "cpu0", small=True)], stop, InjectedFaults(job))
    assert outcome.miscompares
    assert outcome.failure


@pytest.mark.usefixtures("one_format")
def test_a_device_that_cannot_multiply_at_all_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that cannot multiply in fp32 fails; other formats may be missing."""

    def broken(*_: object) -> Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure\nmore")

    monkeypatch.setattr("gpuhealth.burnin.gemm.multiply", broken)
    (outcome,) = _run(_job())
    assert outcome.failure == "a small product in fp32 failed: CUDA error: unspecified launch failure"


def test_the_same_bits_means_every_bit() -> None:
    """-0.0 differs from 0.0 and a NaN equals itself, also where the size is no multiple of eight bytes."""
    for size in (8, 7, 1):
        one = torch.zeros(size, dtype=torch.bfloat16)
        assert same_bits(one, one.clone())
        assert not same_bits(one, -one)
        assert same_bits(one * torch.nan, one * torch.nan)
