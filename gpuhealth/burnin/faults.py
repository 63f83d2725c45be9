"""Injects faults on purpose, to prove that the tests detect them: tests call these hooks where hardware can fail.

A hook does nothing unless the job has a fault for it. Bits are really flipped, in the tensor's own storage.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

import torch
from torch import Tensor

from gpuhealth.burnin.device import Device
from gpuhealth.burnin.protocol import Fault, Job

_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element
_CRASHES = ("segfault", "bus_error", "hang", "out_of_memory")


def bits(tensor: Tensor) -> Tensor:
    """A view of the tensor's storage as signed integers of the same width."""
    return tensor.view(_INTEGER[tensor.element_size()])


def flip(tensor: Tensor, indices: Iterable[int], mask: int) -> None:
    """Flip the bits of `mask` in the elements with these row-major indices, in place."""
    width = 8 * tensor.element_size()
    signed = mask - (1 << width) if mask >> (width - 1) else mask
    view = bits(tensor)
    for index in indices:
        view[torch.unravel_index(torch.tensor(index), tensor.shape)] ^= signed


class InjectedFaults:
    """The faults of one job. A test calls each hook with the device on which the operation runs."""

    def __init__(self, job: Job) -> None:
        self._faults = [fault for fault in job.faults if fault.test in ("", job.test)]
        self._seed = job.seed
        self._calls: dict[tuple[int, str], int] = {}

    def at_start(self, device: Device) -> None:
        """Before a test starts on a device: segfault, bus_error, hang, out_of_memory; with `after`, later hooks."""
        self._crash(device)

    def after_load(self, device: Device, *operands: Tensor) -> None:
        """After operands were copied to the device: input_bits, in one of them."""
        for seed, fault in self._due("input_bits", device):
            _flip_some(operands[seed % len(operands)], fault, seed)

    def after_product(self, device: Device, result: Tensor) -> None:
        """After a matrix product: result_bits in its result."""
        for seed, fault in self._due("result_bits", device):
            _flip_some(result, fault, seed)

    def after_write(self, device: Device, buffer: Tensor) -> None:
        """After data was written to memory: memory_bits in the buffer."""
        for seed, fault in self._due("memory_bits", device):
            _flip_some(buffer, fault, seed)

    def after_collective(self, device: Device, result: Tensor) -> None:
        """After a collective operation: wrong_reduction in its result."""
        for seed, fault in self._due("wrong_reduction", device):
            _flip_some(result, fault, seed)

    def before_transfer(self, device: Device) -> None:
        """Before a transfer or a collective: stuck_transfer, which never returns."""
        for _ in self._due("stuck_transfer", device):
            _hang()

    def slowed(self, device: Device, work: Callable[[], object]) -> Callable[[], None]:
        """`work`, made slower by the factor of a `slow` fault; to be timed by `Device.seconds`."""

        def slow() -> None:
            faults = self._due("slow", device)
            start = time.perf_counter()
            work()
            if faults:
                device.synchronize()
                time.sleep(max(fault.factor - 1 for _, fault in faults) * (time.perf_counter() - start))

        return slow

    def _due(self, kind: str, device: Device) -> list[tuple[int, Fault]]:
        """The faults that occur now, each with a constant seed: a bad memory cell is always the same cell."""
        if not self._faults:
            return []
        self._crash(device)
        return self._count_call((kind,), device)

    def _count_call(self, kinds: tuple[str, ...], device: Device) -> list[tuple[int, Fault]]:
        due = []
        for number, fault in enumerate(self._faults):
            if fault.kind in kinds and fault.gpu in ("", device.gpu):
                call = self._calls[number, device.gpu] = self._calls.get((number, device.gpu), 0) + 1
                if call > fault.after and (not fault.times or call <= fault.after + fault.times):
                    due.append((self._seed + number, fault))
        return due

    def _crash(self, device: Device) -> None:
        for _, fault in self._count_call(_CRASHES, device):
            match fault.kind:
                case "segfault":
                    ctypes.string_at(0)
                case "bus_error":
                    _read_beyond_a_file()
                case "hang":
                    _hang()
                case _:
                    torch.empty(1 << 60, dtype=torch.uint8, device=device.torch)


def _flip_some(tensor: Tensor, fault: Fault, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - which bit flips need not be unpredictable
    mask = sum(1 << bit for bit in chance.sample(range(8 * tensor.element_size()), fault.bits))
    flip(tensor, chance.sample(range(tensor.numel()), min(fault.elements, tensor.numel())), mask)


def _read_beyond_a_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        mapped[0]


def _hang() -> NoReturn:
    """Wait in native code for a lock that this thread holds, with the GIL held: no Python signal handler can run."""
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(64)  # zeros are PTHREAD_MUTEX_INITIALIZER in glibc and musl
    while True:
        libc.pthread_mutex_lock(mutex)
