"""The names of figures that pass rules look at: the tests write them, the parent reads them."""

from __future__ import annotations

MEMORY_COPY = "memory_copy_gigabytes_per_second"
"""Device memory to device memory; each byte counts twice, since it is read and written."""
MEMORY_READ = "memory_read_gigabytes_per_second"
MEMORY_WRITE = "memory_write_gigabytes_per_second"
HOST_TO_DEVICE = "host_to_device_gigabytes_per_second"
"""From pinned host memory; each byte counts once, here and below."""
DEVICE_TO_HOST = "device_to_host_gigabytes_per_second"
P2P = "p2p_gigabytes_per_second"
"""To the other GPUs, one way: the upper median of the pairs, which one bad peer does not pull down."""
ALL_REDUCE = "all_reduce_bus_gigabytes_per_second"
"""Bus bandwidth as NCCL's tests define it, and so are the two below."""
ALL_GATHER = "all_gather_bus_gigabytes_per_second"
REDUCE_SCATTER = "reduce_scatter_bus_gigabytes_per_second"
RANKS = "ranks"
TFLOPS = "_tflops"
"""How the names of throughputs of products end; the dtype stands before it: bf16_tflops."""

_UNITS = {
    "_gigabytes_per_second": "GB/s",
    TFLOPS: "TFLOPS",
    "_gigabytes": "GB",
    "_percent": "%",
    "_seconds": "s",
    "_celsius": "°C",
    "_watts": "W",
    "_megahertz": "MHz",
}


def pair(peer: str) -> str:
    """The figure of the copies to one other GPU, as results name it."""
    return f"to_{peer}_gigabytes_per_second"


def is_pair(figure: str) -> bool:
    """Whether a figure is of one pair of GPUs."""
    return figure.startswith("to_")


def quantity(figure: str) -> tuple[str, str]:
    """What a figure's name says, and its unit: `memory copy`, `GB/s`."""
    for ending, unit in _UNITS.items():
        if figure.endswith(ending):
            return figure.removesuffix(ending).replace("_", " "), unit
    return figure.replace("_", " "), ""


def digits(value: float) -> str:
    """Four digits of what was measured, all of what was counted."""
    return f"{value:.4g}" if value % 1 else f"{value:.0f}"


def in_words(figure: str, value: float) -> str:
    """A figure as people say it: `memory copy 2801 GB/s`."""
    name, unit = quantity(figure)
    return f"{name} {digits(value)} {unit}".rstrip()
