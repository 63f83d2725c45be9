"""A device that is tested: the one place where the processor and CUDA differ."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor


class Device:
    """One torch device with its clock and its sizes. `small`: sizes that a processor does in a blink."""

    def __init__(self, name: str, gpu: str, *, small: bool = False, memory_bytes: int | None = None) -> None:
        """`name` as torch names it, `gpu` as results name it, `memory_bytes` at most to be used."""
        self.torch = torch.device(name)
        self.gpu = gpu
        self.small = small
        self._memory_bytes = memory_bytes

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU; the processor stands in for one in tests."""
        return self.torch.type == "cuda"

    def synchronize(self) -> None:
        """Waits until what was queued is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the device takes for `work`: by its own events on CUDA, by the wall on a processor."""
        if self.is_cuda:
            with torch.cuda.device(self.torch):
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                began.record()
                work()
                ended.record()
                ended.synchronize()
            return float(began.elapsed_time(ended)) / 1e3
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def free_bytes(self) -> int:
        """How much memory a test may take."""
        free = torch.cuda.mem_get_info(self.torch)[0] if self.is_cuda else 1 << 30
        return free if self._memory_bytes is None else min(free, self._memory_bytes)

    def rest(self, seconds: float) -> None:
        """Leaves the device idle, so that it cools and its clocks and voltage settle."""
        self.synchronize()
        time.sleep(seconds)


def compute_the_same_every_time() -> None:
    """Settings under which the same product on the same device has the same bits; to be called before CUDA is used.

    cuBLAS is deterministic only with a workspace of fixed size (its documentation, "Results reproducibility"). Sums
    stay in the accumulator's width, and are never kept in fp16 or bf16 between parts of a split k.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs a pass
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    torch.set_num_threads(torch.get_num_threads())  # fixes what OpenMP would choose anew for each product


def integer_product(matrix: Tensor, vector: Tensor) -> Tensor:
    """An integer matrix times an int64 vector, modulo 2^64."""
    if matrix.is_cuda:  # which has no integer product
        return (matrix * vector).sum(1)
    step = max(1, (1 << 15) // matrix.shape[1])  # what stays in the cache while it is widened
    return torch.cat([block.to(torch.int64) @ vector for block in torch.split(matrix, step)])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that the device has no memory left; the processor has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
