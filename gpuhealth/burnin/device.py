"""A device that is tested: the one place where the processor and CUDA differ."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


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
