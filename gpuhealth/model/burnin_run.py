"""Results of burn-ins, as `gpuhealth burnin` writes them and the agent reads them."""

from __future__ import annotations

import enum

import msgspec

from gpuhealth.model.time import ZonedTime


class TestStatus(enum.StrEnum):
    """How one burn-in test of one GPU ended."""

    __test__ = False  # no test of pytest's

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  # this device has no such thing, or the run does not ask for it; the message says which
    STOPPED = "stopped"  # told to stop before it could say anything

    @property
    def is_conclusive(self) -> bool:
        """Whether anything follows from it for the GPU."""
        return self in (TestStatus.PASSED, TestStatus.FAILED)


class Span(msgspec.Struct, frozen=True):
    """What a quantity was during a test."""

    min: float
    mean: float
    max: float


class Miscompare(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value that is not what it must be, and how it behaved when the same was done again."""

    what: str  # of what: "bf16 1024x1024x1024 seed 7", "pattern 0xaa"
    index: int  # of the first wrong element, or its byte offset in memory
    wrong: int  # how many elements were
    xor: str = ""  # the bits that differ, in hex; empty where the right value is not known
    got: str = ""  # bits in hex
    expected: str = ""
    kind: str = ""  # transient, repeatable, data_dependent, hot_only
    repeats: str = ""  # how often it came back: "3 of 5 hot, 0 of 5 after rest"
    temperature_celsius: float | None = None


class TestResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one burn-in test says of one GPU."""

    __test__ = False

    test: str  # exact, repeat, memory, bandwidth, p2p, collectives, soak
    gpu: str  # uuid; the name of the device where it is no GPU
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
    software: dict[str, str] = {}  # torch, cuda, driver: digests are comparable within the same only
    models: dict[str, str] = {}  # gpu -> model as NVML names it
    notes: tuple[str, ...] = ()  # what limits the run's word: no telemetry, faults put in on purpose

    def gpu_status(self, gpu: str) -> TestStatus:
        """How the run ended for one of its GPUs: another one's failure is not this one's."""
        ended = {result.status for result in self.results if result.gpu == gpu}
        if TestStatus.FAILED in ended:
            return TestStatus.FAILED
        if self.status is TestStatus.STOPPED or TestStatus.STOPPED in ended:
            return TestStatus.STOPPED
        return TestStatus.PASSED if TestStatus.PASSED in ended else TestStatus.SKIPPED

    def passed_on(self, gpu: str) -> bool:
        """Whether it was completed on the GPU, and nothing was wrong."""
        return self.gpu_status(gpu) is TestStatus.PASSED
