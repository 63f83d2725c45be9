"""What a node remembers of its GPUs."""

from __future__ import annotations

from typing import Any

from testing.readings import LOST, gpu, gpus, judged, node, nvml, pci, uuid

from gpuhealth.model.component import NODE
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.checks import gpu as subject
from gpuhealth.monitors.nvidia.monitor import MONITOR
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvLink
from gpuhealth.monitors.settings import Settings


def after(memory: Memory, *listed: GpuReadings, answered: bool = True, **settings: Any) -> Baseline:
    """What is remembered of the GPUs after a round."""
    looked = node(*listed, nvml=nvml(*listed, answered=answered))
    Judge(Settings(**settings), memory, time=looked.time).round(MONITOR, looked.nvidia, looked.time)
    baseline: Baseline = memory.baseline(MONITOR)
    return baseline


def test_learns() -> None:
    """The first round teaches which GPUs there are, which links are up, and that ECC is on."""
    baseline = after(Memory(), gpu(0))
    assert baseline.gpus == {uuid(0): pci(0)}
    assert baseline.models == {uuid(0): "NVIDIA H100 80GB HBM3"}
    assert baseline.active_links == {uuid(0): [0, 1, 2, 3]}
    assert baseline.ecc == {uuid(0): True}


def test_keeps_what_is_lost() -> None:
    """A GPU that is lost, or listed no more, is remembered as it was."""
    memory = Memory()
    after(memory, *gpus(3))
    assert set(after(memory, gpu(0), gpu(1, error=LOST)).gpus) == {uuid(0), uuid(1), uuid(2)}


def test_only_grows() -> None:
    """A link that went down and ECC that was turned off do not change what is remembered."""
    memory = Memory()
    after(memory, gpu(0))
    baseline = after(memory, gpu(0, nvlinks=(NvLink(0, 0), NvLink(1, 1)), ecc_enabled=False))
    assert baseline.active_links == {uuid(0): [0, 1, 2, 3]}
    assert baseline.ecc == {uuid(0): True}


def test_replacement() -> None:
    """Another GPU in the same place takes the place of the one that was there."""
    memory = Memory()
    after(memory, gpu(0))
    baseline = after(memory, gpu(0, uuid="GPU-new"))
    assert baseline.gpus == {"GPU-new": pci(0)}
    assert set(baseline.models) == {"GPU-new"}


def test_taken_out_on_purpose() -> None:
    """When exactly the expected GPUs are there, the others are forgotten; not in a round that is not complete."""
    memory = Memory()
    after(memory, *gpus(4))
    assert len(after(memory, *gpus(3), answered=False, expected_gpus=3).gpus) == 4
    assert set(after(memory, *gpus(3), expected_gpus=3).gpus) == {uuid(0), uuid(1), uuid(2)}


def test_remembers_one_that_never_told_its_name() -> None:
    """A GPU that was lost whenever we looked is missed once NVML lists it no more, until expected_gpus says better."""
    memory, nameless = Memory(), gpu(1, uuid=LOST, pci=LOST, error=LOST)
    after(memory, gpu(0), nameless)
    assert "2 GPUs expected" in judged(subject.CHECK, node(gpu(0)), memory).finding("gpu.missing", NODE).message
    after(memory, gpu(0), expected_gpus=1)
    again = judged(subject.CHECK, node(gpu(0)), memory)
    assert again.findings == []
    assert again.is_clean("gpu.missing", NODE)
