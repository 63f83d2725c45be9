"""What a node remembers of its GPUs."""

from __future__ import annotations

from typing import Any

from testing.readings import LOST, gpu, gpus, judged, node, nvml, pci, uuid

from gpuhealth.model.component import NODE
from gpuhealth.model.history import History
from gpuhealth.monitors.nvidia.checks.inventory import MISSING_CHECK, remember
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvLink
from gpuhealth.monitors.settings import Settings


def after(history: History, *listed: GpuReadings, answered: bool = True, **settings: Any) -> History:
    """The memory after a round."""
    remember(node(*listed, nvml=nvml(*listed, answered=answered)), Settings(**settings), history)
    return history


def test_learns() -> None:
    """The first round teaches which GPUs there are, which links are up, and that ECC is on."""
    baseline = after(History(), gpu(0)).baseline
    assert baseline.gpus == {uuid(0): pci(0)}
    assert baseline.models == {uuid(0): "NVIDIA H100 80GB HBM3"}
    assert baseline.active_links == {uuid(0): [0, 1, 2, 3]}
    assert baseline.ecc == {uuid(0): True}


def test_keeps_what_is_lost() -> None:
    """A GPU that is lost, or listed no more, is remembered as it was."""
    history = after(History(), *gpus(3))
    after(history, gpu(0), gpu(1, error=LOST))
    assert set(history.baseline.gpus) == {uuid(0), uuid(1), uuid(2)}


def test_only_grows() -> None:
    """A link that went down and ECC that was turned off do not change what is remembered."""
    history = after(History(), gpu(0))
    after(history, gpu(0, nvlinks=(NvLink(0, 0), NvLink(1, 1)), ecc_enabled=False))
    assert history.baseline.active_links == {uuid(0): [0, 1, 2, 3]}
    assert history.baseline.ecc == {uuid(0): True}


def test_replacement() -> None:
    """Another GPU in the same place takes the place of the one that was there."""
    history = after(History(), gpu(0))
    after(history, gpu(0, uuid="GPU-new"))
    assert history.baseline.gpus == {"GPU-new": pci(0)}
    assert set(history.baseline.models) == {"GPU-new"}


def test_taken_out_on_purpose() -> None:
    """When exactly the expected GPUs are there, the others are forgotten; not in a round that is not complete."""
    history = after(History(), *gpus(4))
    after(history, *gpus(3), answered=False, expected_gpus=3)
    assert len(history.baseline.gpus) == 4
    after(history, *gpus(3), expected_gpus=3)
    assert set(history.baseline.gpus) == {uuid(0), uuid(1), uuid(2)}


def test_remembers_one_that_never_told_its_name() -> None:
    """A GPU that was lost whenever we looked is missed once NVML lists it no more, until expected_gpus says better."""
    nameless = gpu(1, uuid=LOST, pci=LOST, error=LOST)
    history = after(History(), gpu(0), nameless)
    assert "2 GPUs expected" in judged(MISSING_CHECK, node(gpu(0)), history).finding("gpu.missing", NODE).message
    after(history, gpu(0), expected_gpus=1)
    assert judged(MISSING_CHECK, node(gpu(0)), history).findings == []
