"""GPU models: the published figures of each, and the minimum that a sound GPU delivers."""

from __future__ import annotations

import functools

import msgspec

from gpuhealth.monitors.nvidia.catalog.table import rows


class GpuModel(msgspec.Struct, frozen=True):
    """One model. None: no public figure is known. The data file derives every floor and has its source."""

    device_id: int  # PCI device id, with NVIDIA's vendor id
    names: tuple[str, ...]  # as returned by nvmlDeviceGetName
    tensor_dtype: str  # bf16; fp16 if the tensor cores have no bf16
    tensor_tflops: float
    tensor_tflops_floor: float | None
    memory: float  # this and all below without a unit in its name: GB/s, 10^9 bytes a second
    memory_floor: float | None
    tdp_watts: float
    pcie_generation: int
    pcie_lanes: int
    host_floor: float | None  # to and from pinned host memory, one way, in a slot with all lanes of this generation
    nvlink: float | None  # all links, both ways
    nvlink_links: int | None
    p2p_floor: float | None  # to a peer, one way
    all_reduce_floor: float | None  # bus bandwidth as NCCL's tests define it …
    all_reduce_ranks: int | None  # … with this many GPUs in the node


@functools.cache
def models() -> dict[int, GpuModel]:
    """All known models by PCI device id."""
    return {model.device_id: model for model in map(_model, rows("gpu_models.csv"))}


def gpu_model(name: str, device_id: int | None = None) -> GpuModel | None:
    """The model for a PCI id or an NVML name; None if the GPU is not in the table.

    The id goes first: it is that of the silicon, whereas board partners and cloud drivers change names.
    """
    if device_id in models():
        return models()[device_id]
    return next((model for model in models().values() if name in model.names), None)


def _model(row: dict[str, str]) -> GpuModel:
    cells: dict[str, object] = {key: text or None for key, text in row.items() if not key.endswith("_source")}
    cells |= {"device_id": int(row["device_id"], 16), "names": row["names"].split("|")}
    return msgspec.convert(cells, GpuModel, strict=False)
