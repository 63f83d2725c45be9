"""Device memory: nearly all that is free is written with patterns and read back, and every word is compared.

Patterns find different faults: each word's own address finds address lines that are stuck or short-circuited, moving
inversions (as of memtest86) cells that disturb their neighbours, walking bits data lines, random words the rest.
All of the memory is written before any of it is read, so that no cache answers in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.device import Device, is_out_of_memory
from gpuhealth.burnin.faults import Faults
from gpuhealth.burnin.protocol import GpuOutcome, Job, Say, Stopped
from gpuhealth.burnin.test_timer import Pace
from gpuhealth.model.burnin_run import Miscompare

_WANTED_SHARE = 0.95  # of what is free; the rest is for comparing
_LEAST_SHARE = 0.90
_CHUNK_BYTES = 256 << 20
_CHUNKS_AT_LEAST = 64  # a chunk's expected words and their comparison must fit into the rest
_LISTED = 8  # misses that are looked into and listed; all are counted
_AGAIN = 3


class Pattern(NamedTuple):
    """What the memory is filled with."""

    name: str
    words: Callable[[int, int], Tensor | int]  # (index of the first word, number of words) -> the words, or one for all


def run(job: Job, devices: Sequence[Device], say: Say, faults: Faults) -> tuple[GpuOutcome, ...]:
    """At least one round of all patterns on each device, one device after another."""
    return tuple(_MemoryTest(job, device, say, faults, job.seconds / len(devices)).outcome() for device in devices)


class _MemoryTest:
    def __init__(self, job: Job, device: Device, say: Say, faults: Faults, seconds: float) -> None:
        self._device = device
        self._faults = faults
        self._seed = job.seed
        self._pace = Pace(seconds, device.gpu, say)
        self._chunks: list[Tensor] = []
        self._firsts: list[int] = []  # index of each chunk's first word
        self._misses: list[Miscompare] = []
        self._wrong = 0
        self._rounds = 0

    def outcome(self) -> GpuOutcome:
        free = self._device.free_bytes()
        tested = self._allocate(free)
        try:
            while not (self._rounds and self._pace.over):
                self._round()
                self._rounds += 1
        except Stopped:
            pass
        finally:
            self._chunks.clear()
        share = tested / free
        return GpuOutcome(
            self._device.gpu,
            failure=self._failure(tested, free),
            figures={
                "tested_gigabytes": tested / 1e9,
                "tested_percent": 100 * share,
                "rounds": self._rounds,
                "wrong_words": self._wrong,
            },
            miscompares=tuple(self._misses),
        )

    def _failure(self, tested: int, free: int) -> str:
        if self._wrong:
            return words.in_words(msgspec.structs.replace(self._misses[0], wrong=self._wrong))
        if tested < _LEAST_SHARE * free:
            return (
                f"only {tested / 1e6:.0f} MB of {free / 1e6:.0f} MB of free memory could be allocated"
                f" where {100 * _LEAST_SHARE:.0f} % must be tested"
            )
        return ""

    def _allocate(self, free: int) -> int:
        """As much of the wanted share as the device gives; returns the bytes."""
        wanted = int(_WANTED_SHARE * free)
        chunk = min(_CHUNK_BYTES, free // _CHUNKS_AT_LEAST)
        smallest = chunk // 16
        room = torch.empty(2 * chunk, dtype=torch.uint8, device=self._device.torch)  # for comparing, given back
        total = 0
        while chunk >= smallest and wanted - total >= words.BYTES:
            count = min(chunk, wanted - total) // words.BYTES
            try:
                block = torch.empty(count, dtype=torch.int64, device=self._device.torch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                chunk //= 2  # what is left lies in smaller pieces
                continue
            self._chunks.append(block)
            self._firsts.append(total // words.BYTES)
            total += count * words.BYTES
        del room
        return total

    def _round(self) -> None:
        for pattern in (self._address(), self._random(), self._walking("one", 0), self._walking("zero", -1)):
            self._fill(pattern)
            for number in range(len(self._chunks)):
                self._compare(number, pattern)
        for byte in (0x00, 0xAA):
            self._moving_inversions(_solid(byte), _solid(byte ^ 0xFF))

    def _moving_inversions(self, pattern: Pattern, inverse: Pattern) -> None:
        """Upwards, then downwards: each chunk is compared and at once inverted, between neighbours that are not yet."""
        numbers = range(len(self._chunks))
        self._fill(pattern)
        for number in numbers:
            self._compare(number, pattern)
            self._put(number, inverse)
        for number in reversed(numbers):
            self._compare(number, inverse)
            self._put(number, pattern)
        for number in numbers:
            self._compare(number, pattern)

    def _fill(self, pattern: Pattern) -> None:
        for number in range(len(self._chunks)):
            self._put(number, pattern)
            self._pace.step()

    def _put(self, number: int, pattern: Pattern) -> None:
        chunk, value = self._chunks[number], self._words(number, pattern)
        if isinstance(value, int):
            chunk.fill_(value)
        else:
            chunk.copy_(value)
        self._faults.memory(self._device, chunk)

    def _words(self, number: int, pattern: Pattern) -> Tensor | int:
        return pattern.words(self._firsts[number], self._chunks[number].numel())

    def _compare(self, number: int, pattern: Pattern) -> None:
        miss = self._miss(number, pattern)
        if miss is not None:
            self._wrong += miss.wrong
            if len(self._misses) < _LISTED:
                self._misses.append(self._looked_into(miss, number, pattern))
        self._pace.step()

    def _miss(self, number: int, pattern: Pattern) -> Miscompare | None:
        offset = self._firsts[number] * words.BYTES
        return words.miscompare(pattern.name, self._chunks[number], self._words(number, pattern), offset)

    def _looked_into(self, miss: Miscompare, number: int, pattern: Pattern) -> Miscompare:
        """The miss with its kind: read again, then written again, then with solid bits in its place."""
        read = sum(self._miss(number, pattern) is not None for _ in range(_AGAIN))
        written = sum(self._misses_when_written(number, pattern) for _ in range(_AGAIN))
        if not written:
            kind = "transient"  # a wrong read, or a bit that was flipped once
        elif any(self._misses_when_written(number, _solid(byte)) for byte in (0x00, 0xFF)):
            kind = "repeatable"
        else:
            kind = "data_dependent"
        self._put(number, pattern)
        repeats = f"{read} of {_AGAIN} when read again, {written} of {_AGAIN} when written again"
        return msgspec.structs.replace(miss, kind=kind, repeats=repeats)

    def _misses_when_written(self, number: int, pattern: Pattern) -> bool:
        self._put(number, pattern)
        return self._miss(number, pattern) is not None

    def _address(self) -> Pattern:
        """Each word holds its byte offset."""
        device = self._device.torch

        def offsets(first: int, count: int) -> Tensor:
            return torch.arange(first, first + count, dtype=torch.int64, device=device).mul_(words.BYTES)

        return Pattern("own address", offsets)

    def _random(self) -> Pattern:
        """Random words, made anew for the comparison: they stand in no memory but that under test."""
        device, seed = self._device.torch, self._seed + self._rounds

        def drawn(first: int, count: int) -> Tensor:
            generator = torch.Generator(device).manual_seed(hash((seed, first)) & 0x7FFF_FFFF_FFFF_FFFF)
            block = torch.empty(count, dtype=torch.int64, device=device)
            return block.random_(-(1 << 63), None, generator=generator)

        return Pattern(f"random seed {seed}", drawn)

    def _walking(self, bit: str, background: int) -> Pattern:
        """One bit that differs, in each word at the next place; every round it stands one place further."""
        device, shift = self._device.torch, self._rounds % 64
        places = torch.tensor(
            [words.signed(1 << (shift + word) % 64) ^ background for word in range(64)], device=device
        )

        def walk(first: int, count: int) -> Tensor:
            return places.roll(-first % -64).repeat(count // 64 + 1)[:count]

        return Pattern(f"walking {bit} from bit {shift}", walk)


def _solid(byte: int) -> Pattern:
    return Pattern(f"{byte:#04x}", lambda _first, _count: words.signed(int.from_bytes(bytes([byte] * words.BYTES))))
