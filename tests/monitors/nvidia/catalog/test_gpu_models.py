"""The table of GPU models."""

from __future__ import annotations

import pytest

from gpuhealth.monitors.nvidia.catalog.gpu_models import GpuModel, gpu_model, models
from gpuhealth.monitors.nvidia.catalog.table import rows

_SOURCED = {"tensor_source": "tensor_tflops_floor", "memory_source": "memory_floor", "host_source": "host_floor"}
_SOURCED |= {"p2p_source": "p2p_floor", "all_reduce_source": "all_reduce_floor"}


def test_every_row_is_read() -> None:
    """Each row of the file is a model of its own, with its own names."""
    assert len(models()) == len(list(rows("gpu_models.csv")))
    names = [name for model in models().values() for name in model.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("model", models().values(), ids=lambda model: model.names[0])
def test_floors_lie_below_the_peaks(model: GpuModel) -> None:
    """No floor asks for more than four fifths of what the hardware can do: a slip of a digit or a unit shows here."""
    lanes = {3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}[
        model.pcie_generation
    ] * model.pcie_lanes  # GB/s, after the line's coding
    pairs = [
        (model.tensor_tflops_floor, model.tensor_tflops),
        (model.memory_floor, model.memory),
        (model.host_floor, lanes),
        (model.p2p_floor, (model.nvlink or 0) / 2),
        (model.all_reduce_floor, model.nvlink),
    ]
    for floor, peak in pairs:
        assert floor is None or (peak is not None and 0 < floor <= 0.8 * peak), (model.names, floor, peak)
    assert (model.all_reduce_floor is None) == (model.all_reduce_ranks is None)


def test_every_floor_has_its_source() -> None:
    """A floor without a source, or a source without a floor, is refused."""
    for row in rows("gpu_models.csv"):
        for source, floor in _SOURCED.items():
            assert bool(row[source]) == bool(row[floor]), (row["names"], floor)


def test_found_by_id_before_name() -> None:
    """The device id wins over the name; the name serves where there is no id; what is unknown stays unknown."""
    by_name = gpu_model("NVIDIA H100 80GB HBM3")
    assert by_name is not None
    assert by_name.tdp_watts == 700
    assert gpu_model("renamed by a cloud", 0x2330) == by_name
    by_id = gpu_model("NVIDIA H100 80GB HBM3", 0x20B2)
    assert by_id is not None
    assert by_id.names[0] == "NVIDIA A100-SXM4-80GB"
    assert gpu_model("NVIDIA H100 80GB HBM3", 0xFFFF) == by_name
    assert gpu_model("Processor") is None
