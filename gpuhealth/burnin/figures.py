"""Names, units and text form of the figures that tests measure; pass rules and reports look figures up by these names.

A figure's name ends with its unit, such as `memory_copy_gigabytes_per_second`.
"""

from __future__ import annotations

MEMORY_COPY = "memory_copy_gigabytes_per_second"
"""Device memory to device memory; each byte counts twice, since it is read and written."""
MEMORY_READ = "memory_read_gigabytes_per_second"
MEMORY_WRITE = "memory_write_gigabytes_per_second"
HOST_TO_DEVICE = "host_to_device_gigabytes_per_second"
"""From pinned host memory; each byte counts once, here and below."""
DEVICE_TO_HOST = "device_to_host_gigabytes_per_second"
P2P = "p2p_gigabytes_per_second"
"""From one GPU to the others, one way: the upper median of the pairs, which one bad peer does not lower."""
ALL_REDUCE = "all_reduce_bus_gigabytes_per_second"
"""Bus bandwidth as defined by NCCL's tests; also for the two below."""
ALL_GATHER = "all_gather_bus_gigabytes_per_second"
REDUCE_SCATTER = "reduce_scatter_bus_gigabytes_per_second"
RANKS = "ranks"
TFLOPS = "_tflops"
"""Ending of the throughput of matrix products; the number format precedes it: bf16_tflops."""

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


def pair_figure(peer: str) -> str:
    """The name of the figure for copies to one other GPU."""
    return f"to_{peer}_gigabytes_per_second"


def is_pair_figure(figure: str) -> bool:
    """Whether a figure is about one pair of GPUs."""
    return figure.startswith("to_")


def name_and_unit(figure: str) -> tuple[str, str]:
    """Split a figure's name into words and unit: `memory copy` and `GB/s`. Counts have no unit."""
    for ending, unit in _UNITS.items():
        if figure.endswith(ending):
            return figure.removesuffix(ending).replace("_", " "), unit
    return figure.replace("_", " "), ""


def format_value(value: float) -> str:
    """Four significant digits of a measurement, all digits of a count."""
    return f"{value:.4g}" if value % 1 else f"{value:.0f}"


def format_figure(figure: str, value: float) -> str:
    """Name, value and unit for people: `memory copy 2801 GB/s`."""
    name, unit = name_and_unit(figure)
    return f"{name} {format_value(value)} {unit}".rstrip()
