"""Repeat on the processor: the same bits every time, and a digest that says which."""

from __future__ import annotations

import math

import pytest
import torch

from gpuhealth.burnin import repeat
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.gemm import FORMATS, GemmFormat, GemmShape, multiply
from gpuhealth.burnin.protocol import DeviceResult, Fault, Job, Progress, StopRequested


def _job(*faults: Fault, seconds: float = 0.5, gpus: tuple[str, ...] = ("cpu0",)) -> Job:
    return Job(
        test="repeat",
        devices=("cpu",) * len(gpus),
        gpus=gpus,
        seconds=seconds,
        seed=7,
        small=True,
        faults=faults,
    )


def _run(job: Job) -> tuple[DeviceResult, ...]:
    devices = [Device("cpu", gpu, small=True) for gpu in job.gpus]
    messages: list[Progress] = []
    return repeat.run(job, devices, messages.append, InjectedFaults(job))


@pytest.fixture
def one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the format bf16 only."""
    monkeypatch.setattr(repeat, "FORMATS", [fmt for fmt in FORMATS if fmt.name == "bf16"])


def test_every_format_repeats_itself_and_has_a_digest() -> None:
    """Two devices of the same kind have the same digests in every format."""
    one, other = _run(_job(seconds=1.0, gpus=("cpu0", "cpu1")))
    assert (one.failure, other.failure) == ("", "")
    assert {key.split("/")[0] for key in one.digests} == {fmt.name for fmt in FORMATS}
    assert "fp32/96x96x96/seed8" in one.digests
    common = one.digests.keys() & other.digests.keys()
    assert len(common) >= len(FORMATS)
    assert all(one.digests[key] == other.digests[key] for key in common)


@pytest.mark.usefixtures("one_format")
@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_odd_one_is_named_and_the_digest_is_the_others(after: int) -> None:
    """The wrong product is identified, also if it is the first, and the digest is that of the others."""
    (clean,) = _run(_job())
    (outcome,) = _run(_job(Fault(kind="result_bits", after=after, times=1, bits=2), seconds=2.0))
    (found,) = outcome.miscompares
    assert (found.kind, found.wrong, int(found.xor, 16).bit_count()) == ("transient", 1, 2)
    assert outcome.digests["bf16/96x96x96/seed7"] == clean.digests["bf16/96x96x96/seed7"]
    assert "different results" in outcome.failure


@pytest.mark.usefixtures("one_format")
def test_a_device_that_is_always_wrong_in_the_same_way_has_another_digest() -> None:
    """A device with a constant fault repeats itself, and only the comparison of digests shows it."""
    good, bad = _run(_job(Fault(kind="result_bits", gpu="cpu1"), gpus=("cpu0", "cpu1")))
    assert (good.failure, bad.failure) == ("", "")
    common = good.digests.keys() & bad.digests.keys()
    assert common
    assert all(good.digests[key] != bad.digests[key] for key in common)


@pytest.mark.usefixtures("one_format")
def test_a_stop_keeps_what_was_done() -> None:
    """After a stop, the result covers the products so far."""
    job = _job(Fault(kind="result_bits", after=2), seconds=60)

    def stop(progress: Progress) -> None:
        if progress.rates["products"] >= 2:
            raise StopRequested

    (outcome,) = repeat.run(job, [Device("cpu", "cpu0", small=True)], stop, InjectedFaults(job))
    assert outcome.figures["products"] >= 2


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_operands_use_the_format_s_range_and_the_result_stays_finite(fmt: GemmFormat) -> None:
    """Exponents span more than a quarter of the format's range; a product has the sum of two exponents."""
    for seed in range(5):
        left, right = repeat.draw_operands(fmt, GemmShape(64, 64, 64), seed)
        result = multiply(fmt, left, right).to(torch.float64)
        assert bool(result.isfinite().all())
        if left.dtype.is_floating_point:
            info = torch.finfo(left.dtype)
            used = left.to(torch.float64).abs()
            span = math.log2(used.max()) - math.log2(used[used > 0].min())
            assert span > (math.log2(info.max) - math.log2(info.tiny)) / 4
