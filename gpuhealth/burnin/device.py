"""The device under test: the one module that distinguishes a processor from a CUDA device."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class Device:
    """One torch device: time measurement, free memory, and whether to use small problem sizes."""

    def __init__(self, name: str, gpu: str, *, small: bool = False, memory_bytes: int | None = None) -> None:
        """`name` as torch names it, `gpu` as results name it; `memory_bytes` limits the memory that a test may use."""
        self.torch = torch.device(name)
        self.gpu = gpu
        self.small = small
        self._memory_bytes = memory_bytes

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU, not a processor in place of one."""
        return self.torch.type == "cuda"

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that the device takes for `work`: measured by CUDA events, or by the clock on a processor."""
        if self.is_cuda:
            with torch.cuda.device(self.torch):
                start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start_event.record()
                work()
                end_event.record()
                end_event.synchronize()
            return float(start_event.elapsed_time(end_event)) / 1e3
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def free_bytes(self) -> int:
        """Bytes of memory that a test may allocate."""
        free = torch.cuda.mem_get_info(self.torch)[0] if self.is_cuda else 1 << 30
        return free if self._memory_bytes is None else min(free, self._memory_bytes)

    def idle(self, seconds: float) -> None:
        """Leave the device idle, so that it cools and its clocks and voltage settle."""
        self.synchronize()
        time.sleep(seconds)


def enable_deterministic_mode() -> None:
    """Set torch up so that repeating a product on one device gives the same bits; call it before CUDA is initialized.

    cuBLAS is deterministic only with a workspace of fixed size (its documentation, "Results reproducibility"). Sums
    stay in the accumulator's width, and are never kept in fp16 or bf16 between parts of a split k.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # Without it torch asks for the name of the user, and fails for one without an entry in /etc/passwd.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "torchinductor")))
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs a pass over the memory
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    torch.set_num_threads(torch.get_num_threads())  # else OpenMP may choose another number for each product


def integer_product(matrix: Tensor, vector: Tensor) -> Tensor:
    """The product of an integer matrix and an int64 vector, modulo 2^64."""
    if matrix.is_cuda:  # CUDA has no integer matrix product
        return (matrix * vector).sum(1)
    step = max(1, (1 << 15) // matrix.shape[1])  # rows that stay in the cache while they are widened
    return torch.cat([block.to(torch.int64) @ vector for block in torch.split(matrix, step)])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised an error for lack of device memory; on a processor, recognised by the error text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
