"""Repeat on the processor: the same bits every time, and a digest that says which."""

from __future__ import annotations

import math

import pytest
import torch

from gpuhealth.burnin import repeat
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import Faults
from gpuhealth.burnin.gemm import FORMATS, Format, Shape, multiply
from gpuhealth.burnin.protocol import Fault, GpuOutcome, Job, Progress, Stopped


def _job(*faults: Fault, seconds: float = 0.5, gpus: tuple[str, ...] = ("cpu0",)) -> Job:
    return Job("repeat", ("cpu",) * len(gpus), gpus, seconds, seed=7, small=True, faults=faults)


def _run(job: Job) -> tuple[GpuOutcome, ...]:
    devices = [Device("cpu", gpu, small=True) for gpu in job.gpus]
    said: list[Progress] = []
    return repeat.run(job, devices, said.append, Faults(job))


@pytest.fixture
def one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 only."""
    monkeypatch.setattr(repeat, "FORMATS", [form for form in FORMATS if form.name == "bf16"])


def test_every_format_repeats_itself_and_has_a_digest() -> None:
    """Two devices of the same kind have the same digests."""
    one, other = _run(_job(seconds=1.0, gpus=("cpu0", "cpu1")))
    assert (one.failure, other.failure) == ("", "")
    assert {key.split("/")[0] for key in one.digests} == {form.name for form in FORMATS}
    assert "fp32/96x96x96/seed8" in one.digests
    common = one.digests.keys() & other.digests.keys()
    assert len(common) >= len(FORMATS)
    assert all(one.digests[key] == other.digests[key] for key in common)


@pytest.mark.usefixtures("one_format")
@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_odd_one_is_named_and_the_digest_is_the_others(after: int) -> None:
    """Also when the odd one is the first."""
    (clean,) = _run(_job())
    (outcome,) = _run(_job(Fault("result_bits", after=after, times=1, bits=2), seconds=2.0))
    (found,) = outcome.miscompares
    assert (found.kind, found.wrong, int(found.xor, 16).bit_count()) == ("transient", 1, 2)
    assert outcome.digests["bf16/96x96x96/seed7"] == clean.digests["bf16/96x96x96/seed7"]
    assert "other bits" in outcome.failure


@pytest.mark.usefixtures("one_format")
def test_a_device_that_is_always_wrong_in_the_same_way_has_another_digest() -> None:
    """It repeats itself; only the comparison with others shows it."""
    good, bad = _run(_job(Fault("result_bits", gpu="cpu1"), gpus=("cpu0", "cpu1")))
    assert (good.failure, bad.failure) == ("", "")
    common = good.digests.keys() & bad.digests.keys()
    assert common
    assert all(good.digests[key] != bad.digests[key] for key in common)


@pytest.mark.usefixtures("one_format")
def test_a_stop_keeps_what_was_done() -> None:
    """The outcome is there, of what was done by then."""
    job = _job(Fault("result_bits", after=2), seconds=60)

    def stop(_: Progress) -> None:
        raise Stopped

    (outcome,) = repeat.run(job, [Device("cpu", "cpu0", small=True)], stop, Faults(job))
    assert outcome.figures["products"] >= 2


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_operands_use_the_format_s_range_and_the_result_stays_finite(form: Format) -> None:
    """Exponents go over more than a quarter of the format's range: a product has the sum of two."""
    for seed in range(5):
        left, right = repeat.operands(form, Shape(64, 64, 64), seed)
        result = multiply(form, left, right).to(torch.float64)
        assert bool(result.isfinite().all())
        if left.dtype.is_floating_point:
            info = torch.finfo(left.dtype)
            used = left.to(torch.float64).abs()
            span = math.log2(used.max()) - math.log2(used[used > 0].min())
            assert span > (math.log2(info.max) - math.log2(info.tiny)) / 4
