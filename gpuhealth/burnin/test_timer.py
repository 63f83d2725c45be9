"""How far a test is by its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from gpuhealth.burnin.protocol import Progress, Say

_SAY_SECONDS = 0.25


class Pace:
    """The time that a test has on one device, and the word to the parent after each step."""

    def __init__(self, seconds: float, gpu: str, say: Say) -> None:
        self._seconds = seconds
        self._gpu = gpu
        self._say = say
        self._began = time.monotonic()

    @property
    def done(self) -> float:
        """From 0 to 1."""
        return min(1.0, (time.monotonic() - self._began) / self._seconds) if self._seconds > 0 else 1.0

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.done >= 1.0

    def step(self, doing: str = "", rates: dict[str, float] | None = None) -> None:
        """Tells the parent. Raises Stopped when it wants the test to end."""
        self._say(Progress(self._gpu, self.done, dict(rates or {}), doing))


class CommonPace:
    """The time that a test has on all devices together, and the word to the parent, no oftener than anyone reads it."""

    def __init__(self, seconds: float, figures: Mapping[str, Callable[[], dict[str, float]]], say: Say) -> None:
        """`figures` of each GPU, as they are when they are told."""
        self._seconds = seconds
        self._figures = figures
        self._say = say
        self._began = self._said = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def step(self) -> None:
        """Tells the parent how far all are. Raises Stopped when it wants the test to end."""
        if time.monotonic() - self._said >= _SAY_SECONDS:
            self._said = time.monotonic()
            done = min(1.0, self.elapsed / self._seconds)
            for gpu, figures in self._figures.items():
                self._say(Progress(gpu, done, figures()))
