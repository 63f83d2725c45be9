"""Tests device memory: writes patterns to nearly all that is free, reads them back and compares every word.

Each pattern finds other faults. Each word's own address: address lines that are stuck or shorted. Moving inversions (as
in memtest86): cells that disturb their neighbours. Walking bits: data lines. Random words: the rest. All of the memory
is written before any of it is read, so that no cache can answer for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.device import Device, is_out_of_memory
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.protocol import DeviceResult, Job, OnProgress, StopRequested
from gpuhealth.burnin.test_timer import TestTimer
from gpuhealth.model.burnin_run import Miscompare

_WANTED_SHARE = 0.95  # of the free memory; the rest is for comparing
_REQUIRED_SHARE = 0.90
_CHUNK_BYTES = 256 << 20
_MIN_CHUNKS = 64  # a chunk's expected words and their comparison must fit into the rest
_MAX_LISTED = 8  # miscompares that are classified and listed; all are counted
_REPEATS = 3


class Pattern(NamedTuple):
    """The data with which memory is filled."""

    name: str
    words: Callable[[int, int], Tensor | int]  # (index of the first word, number of words) -> the words, or one for all


def run(
    job: Job, devices: Sequence[Device], on_progress: OnProgress, faults: InjectedFaults
) -> tuple[DeviceResult, ...]:
    """Run at least one round of all patterns on each device, one device after another."""
    seconds = job.seconds / len(devices)
    return tuple(_MemoryTest(job, device, on_progress, faults, seconds).result() for device in devices)


class _MemoryTest:
    def __init__(
        self, job: Job, device: Device, on_progress: OnProgress, faults: InjectedFaults, seconds: float
    ) -> None:
        self._device = device
        self._faults = faults
        self._seed = job.seed
        self._timer = TestTimer(seconds, device.gpu, on_progress)
        self._chunks: list[Tensor] = []
        self._offsets: list[int] = []  # index of each chunk's first word
        self._miscompares: list[Miscompare] = []
        self._wrong = 0
        self._rounds = 0

    def result(self) -> DeviceResult:
        free = self._device.free_bytes()
        tested = self._allocate(free)
        try:
            while not (self._rounds and self._timer.expired):
                self._round()
                self._rounds += 1
        except StopRequested:
            pass
        finally:
            self._chunks.clear()
        return DeviceResult(
            gpu=self._device.gpu,
            failure=self._failure(tested, free),
            figures={
                "tested_gigabytes": tested / 1e9,
                "tested_percent": 100 * tested / free,
                "rounds": self._rounds,
                "wrong_words": self._wrong,
            },
            miscompares=tuple(self._miscompares),
        )

    def _failure(self, tested: int, free: int) -> str:
        if self._wrong:
            return msgspec.structs.replace(self._miscompares[0], wrong=self._wrong).describe()
        if tested < _REQUIRED_SHARE * free:
            return (
                f"only {tested / 1e6:.0f} MB of {free / 1e6:.0f} MB free memory could be allocated,"
                f" {100 * _REQUIRED_SHARE:.0f} % must be tested"
            )
        return ""

    def _allocate(self, free: int) -> int:
        """Allocate as much of the wanted share as the device gives; returns the bytes."""
        wanted = int(_WANTED_SHARE * free)
        chunk = min(_CHUNK_BYTES, free // _MIN_CHUNKS)
        smallest = chunk // 16
        reserve = torch.empty(2 * chunk, dtype=torch.uint8, device=self._device.torch)  # for comparing; freed below
        total = 0
        while chunk >= smallest and wanted - total >= words.BYTES:
            count = min(chunk, wanted - total) // words.BYTES
            try:
                block = torch.empty(count, dtype=torch.int64, device=self._device.torch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                chunk //= 2  # the free memory that remains is in smaller pieces
                continue
            self._chunks.append(block)
            self._offsets.append(total // words.BYTES)
            total += count * words.BYTES
        del reserve
        return total

    def _round(self) -> None:
        for pattern in (self._address(), self._random(), self._walking("one", 0), self._walking("zero", -1)):
            self._fill(pattern)
            for number in range(len(self._chunks)):
                self._check(number, pattern)
        for byte in (0x00, 0xAA):
            self._moving_inversions(_solid(byte), _solid(byte ^ 0xFF))

    def _moving_inversions(self, pattern: Pattern, inverse: Pattern) -> None:
        """Upwards, then downwards: compare each chunk and invert it at once, next to chunks not yet inverted."""
        numbers = range(len(self._chunks))
        self._fill(pattern)
        for number in numbers:
            self._check(number, pattern)
            self._write(number, inverse)
        for number in reversed(numbers):
            self._check(number, inverse)
            self._write(number, pattern)
        for number in numbers:
            self._check(number, pattern)

    def _fill(self, pattern: Pattern) -> None:
        for number in range(len(self._chunks)):
            self._write(number, pattern)
            self._timer.step()

    def _write(self, number: int, pattern: Pattern) -> None:
        chunk, value = self._chunks[number], self._words(number, pattern)
        if isinstance(value, int):
            chunk.fill_(value)
        else:
            chunk.copy_(value)
        self._faults.after_write(self._device, chunk)

    def _words(self, number: int, pattern: Pattern) -> Tensor | int:
        return pattern.words(self._offsets[number], self._chunks[number].numel())

    def _check(self, number: int, pattern: Pattern) -> None:
        miss = self._compare(number, pattern)
        if miss is not None:
            self._wrong += miss.wrong
            if len(self._miscompares) < _MAX_LISTED:
                self._miscompares.append(self._classify(miss, number, pattern))
        self._timer.step()

    def _compare(self, number: int, pattern: Pattern) -> Miscompare | None:
        offset = self._offsets[number] * words.BYTES
        return words.compare_words(pattern.name, self._chunks[number], self._words(number, pattern), offset)

    def _classify(self, miss: Miscompare, number: int, pattern: Pattern) -> Miscompare:
        """Add `kind` and `repeats`: read again, then write again, then write solid bits instead."""
        read = sum(self._compare(number, pattern) is not None for _ in range(_REPEATS))
        written = sum(self._is_wrong_when_written(number, pattern) for _ in range(_REPEATS))
        if not written:
            kind = "transient"  # a wrong read, or a bit that flipped once
        elif any(self._is_wrong_when_written(number, _solid(byte)) for byte in (0x00, 0xFF)):
            kind = "repeatable"
        else:
            kind = "data_dependent"
        self._write(number, pattern)
        repeats = f"{read} of {_REPEATS} when read again, {written} of {_REPEATS} when written again"
        return msgspec.structs.replace(miss, kind=kind, repeats=repeats)

    def _is_wrong_when_written(self, number: int, pattern: Pattern) -> bool:
        self._write(number, pattern)
        return self._compare(number, pattern) is not None

    def _address(self) -> Pattern:
        """Each word holds its own byte offset."""
        device = self._device.torch

        def offsets(first: int, count: int) -> Tensor:
            return torch.arange(first, first + count, dtype=torch.int64, device=device).mul_(words.BYTES)

        return Pattern("own address", offsets)

    def _random(self) -> Pattern:
        """Random words, generated again for the comparison: only the memory under test holds them."""
        device, seed = self._device.torch, self._seed + self._rounds

        def random_words(first: int, count: int) -> Tensor:
            generator = torch.Generator(device).manual_seed(hash((seed, first)) & 0x7FFF_FFFF_FFFF_FFFF)
            block = torch.empty(count, dtype=torch.int64, device=device)
            return block.random_(-(1 << 63), None, generator=generator)

        return Pattern(f"random seed {seed}", random_words)

    def _walking(self, bit: str, background: int) -> Pattern:
        """One differing bit, one position further in each next word; each round starts one position further."""
        device, shift = self._device.torch, self._rounds % 64
        cycle = torch.tensor([words.signed(1 << (shift + word) % 64) ^ background for word in range(64)], device=device)

        def walk(first: int, count: int) -> Tensor:
            return cycle.roll(-first % -64).repeat(count // 64 + 1)[:count]

        return Pattern(f"walking {bit} from bit {shift}", walk)


def _solid(byte: int) -> Pattern:
    return Pattern(f"{byte:#04x}", lambda _first, _count: words.signed(int.from_bytes(bytes([byte] * words.BYTES))))
