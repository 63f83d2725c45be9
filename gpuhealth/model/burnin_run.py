"""Results of burn-ins, as `gpuhealth burnin` writes them and the agent reads them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Literal

import msgspec

from gpuhealth.model.time import ZonedTime


class TestStatus(enum.StrEnum):
    """How one burn-in test of one GPU ended."""

    __test__ = False  # not a pytest test

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  # not supported by this device, or not requested by this run; the message has the reason
    STOPPED = "stopped"  # stopped before it had a result

    @property
    def is_conclusive(self) -> bool:
        """Whether the result is conclusive for the GPU."""
        return self in (TestStatus.PASSED, TestStatus.FAILED)


class Span(msgspec.Struct, frozen=True):
    """Range and mean of a quantity during a test."""

    min: float
    mean: float
    max: float


class Miscompare(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Values that differ from the expected ones, and whether a repeated operation differed again."""

    what: str  # what was compared: "bf16 1024x1024x1024 seed 7", "pattern 0xaa"
    index: int  # position of the first wrong value, counted in `unit`
    unit: Literal["element", "byte"] = "element"  # of a matrix, row by row; or of memory that is compared word by word
    wrong: int  # number of wrong elements, or of wrong 64-bit words
    xor: str = ""  # the bits that differ, in hex; empty if the right value is unknown
    got: str = ""  # bits in hex
    expected: str = ""
    kind: str = ""  # transient, repeatable, data_dependent, hot_only
    repeats: str = ""  # how often it happened again: "3 of 5 hot, 0 of 5 after rest"
    temperature_celsius: float | None = None

    def describe(self, *, details: bool = False) -> str:
        """The difference in words: `pattern 0xaa: 2 wrong 64-bit words, first at byte 0x1000, bits 0x01, repeatable`.

        `details` adds the first wrong value, how often the fault happened again, and the temperature in °C.
        """
        noun, position = "element", f"element {self.index}"
        if self.unit == "byte":
            noun, position = "64-bit word", f"byte {self.index:#x}"
        parts = [f"{self.what}: {self.wrong} wrong {noun}{'' if self.wrong == 1 else 's'}, first at {position}"]
        parts += [f"bits {self.xor}"] if self.xor else []
        parts += [f"got {self.got} instead of {self.expected}"] if details and self.got and self.expected else []
        parts += [self.kind.replace("_", " ")] if self.kind else []
        parts += [self.repeats] if details and self.repeats else []
        if details and self.temperature_celsius is not None:
            parts.append(f"at {self.temperature_celsius:.0f} °C")
        return ", ".join(parts)


def summarize(miscompares: Sequence[Miscompare]) -> str:
    """The first of several miscompares in words, and the number of the others; empty if there are none."""
    if not miscompares:
        return ""
    return miscompares[0].describe() + (f"; and {len(miscompares) - 1} more" if len(miscompares) > 1 else "")


class TestResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of one burn-in test of one GPU."""

    __test__ = False

    test: str  # exact, repeat, memory, bandwidth, p2p, collectives, soak
    gpu: str  # uuid; name of the device if it is not a GPU
    status: TestStatus
    message: str  # one sentence
    started: ZonedTime
    seconds: float
    figures: dict[str, float] = {}  # units in the names: bf16_tflops, h2d_gigabytes_per_second
    miscompares: tuple[Miscompare, ...] = ()
    digests: dict[str, str] = {}  # of repeated products: what was computed -> SHA-256 of the result
    telemetry: dict[str, Span] = {}  # temperature_celsius, power_watts, sm_clock_megahertz …
    evidence: str = ""  # of a crash or a hang: signal, the end of its standard error, the stack


class BurninRun(msgspec.Struct, frozen=True, omit_defaults=True):
    """One run of active tests on one node, as `gpuhealth burnin --json` prints it and the agent reads it."""

    node: str
    boot_id: str
    level: str  # quick, standard, long
    reason: str  # manual, preflight, periodic, return (before a node goes back into service)
    started: ZonedTime
    ended: ZonedTime
    status: TestStatus  # failed when any test failed, stopped when it was not completed, else passed
    results: tuple[TestResult, ...]
    software: dict[str, str] = {}  # torch, cuda, driver: digests are only comparable for equal versions
    models: dict[str, str] = {}  # GPU -> model name from NVML
    notes: tuple[str, ...] = ()  # limits of the result: no telemetry, injected faults

    def gpu_status(self, gpu: str) -> TestStatus:
        """How the run ended for one of its GPUs, regardless of failures on other GPUs."""
        ended = {result.status for result in self.results if result.gpu == gpu}
        if TestStatus.FAILED in ended:
            return TestStatus.FAILED
        if self.status is TestStatus.STOPPED or TestStatus.STOPPED in ended:
            return TestStatus.STOPPED
        return TestStatus.PASSED if TestStatus.PASSED in ended else TestStatus.SKIPPED

    def passed_on(self, gpu: str) -> bool:
        """Whether the run was completed on this GPU without failures."""
        return self.gpu_status(gpu) is TestStatus.PASSED
