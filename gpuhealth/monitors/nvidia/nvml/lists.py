"""Lists of NVML whose length the driver gives. Runs in the child process only.

pynvml makes room for as many items as the driver says, and copies each: a length of two billion would end the process.
"""

from __future__ import annotations

import functools
from ctypes import CDLL, POINTER, Structure, byref, c_uint, c_ulonglong
from typing import Any

import pynvml

from gpuhealth.monitors.nvidia.nvml import abi, value
from gpuhealth.monitors.nvidia.readings import GpuProcess

_LIBRARY = "libnvidia-ml.so.1"
_USUAL_PROCESSES = 64
_MOST_PROCESSES = 4096
_UNKNOWN_MEMORY = (1 << 64) - 1  # the driver hides it


class _ProcessInfo(Structure):
    """nvmlProcessInfo_t, the same in versions 2 and 3."""

    _fields_ = (
        ("pid", c_uint),
        ("used_memory", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    )


@functools.cache
def _function(*names: str) -> Any:
    """The first of these functions that the library has. Raises NVMLError if it has none."""
    library = CDLL(_LIBRARY)
    for name in names:
        if found := getattr(library, name, None):
            return found
    raise pynvml.NVMLError(abi.FUNCTION_NOT_FOUND)


def running_processes(function: str, handle: Any) -> tuple[GpuProcess, ...]:
    """The processes that a function lists. Raises NVMLError, or UnexpectedAnswerError for a list that cannot be."""
    call = _function(f"{function}_v3", f"{function}_v2")
    room = _USUAL_PROCESSES
    while True:
        count, processes = c_uint(room), (_ProcessInfo * room)()
        code = call(handle, byref(count), processes)
        if code not in (0, abi.INSUFFICIENT_SIZE):
            raise pynvml.NVMLError(code)
        if count.value > (room if code == 0 else _MOST_PROCESSES):
            raise value.refuse(count.value, "a number of processes")
        if code == 0:
            return tuple(_process(each) for each in processes[: count.value])
        if room > _MOST_PROCESSES:
            raise pynvml.NVMLError(code)
        room = 2 * max(room, count.value)


def _process(info: _ProcessInfo) -> GpuProcess:
    used = None if info.used_memory == _UNKNOWN_MEMORY else value.size(info.used_memory)
    return GpuProcess(value.pid(info.pid), used)


def retired_pages(handle: Any, cause: int) -> int:
    """The number of memory pages retired for a cause. Raises NVMLError, or UnexpectedAnswerError."""
    count = c_uint(0)
    code = _function("nvmlDeviceGetRetiredPages")(handle, cause, byref(count), POINTER(c_ulonglong)())
    if code not in (0, abi.INSUFFICIENT_SIZE):
        raise pynvml.NVMLError(code)
    return value.pages(count.value)
