"""Timers of tests: how much of a test's time has passed, and when to send progress to the parent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from gpuhealth.burnin.protocol import OnProgress, Progress

_PROGRESS_SECONDS = 0.25  # between two progress messages, at reading speed


class TestTimer:
    """The time that a test has on one device. Used by the test's own thread in the worker process."""

    __test__ = False  # not a test class for pytest

    def __init__(self, seconds: float, gpu: str, on_progress: OnProgress) -> None:
        self._seconds = seconds
        self._gpu = gpu
        self._on_progress = on_progress
        self._started = time.monotonic()

    @property
    def fraction(self) -> float:
        """The share of the time that has passed, from 0 to 1."""
        return min(1.0, (time.monotonic() - self._started) / self._seconds) if self._seconds > 0 else 1.0

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return self.fraction >= 1.0

    def step(self, activity: str = "", rates: dict[str, float] | None = None) -> None:
        """Send progress to the parent. Raises StopRequested when the parent requests a stop."""
        self._on_progress(Progress(self._gpu, self.fraction, dict(rates or {}), activity))


class SharedTestTimer:
    """The time that a test has on several devices together. Progress is sent for all of them at once."""

    __test__ = False  # not a test class for pytest

    def __init__(
        self, seconds: float, figures: Mapping[str, Callable[[], dict[str, float]]], on_progress: OnProgress
    ) -> None:
        """`figures`: for each GPU, a function that returns its measurements so far."""
        self._seconds = seconds
        self._figures = figures
        self._on_progress = on_progress
        self._started = self._last_sent = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the timer was created."""
        return time.monotonic() - self._started

    def step(self) -> None:
        """Send progress of all devices to the parent. Raises StopRequested when the parent requests a stop."""
        if time.monotonic() - self._last_sent >= _PROGRESS_SECONDS:
            self._last_sent = time.monotonic()
            fraction = min(1.0, self.elapsed / self._seconds)
            for gpu, figures in self._figures.items():
                self._on_progress(Progress(gpu, fraction, figures()))
