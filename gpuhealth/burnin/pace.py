"""How far a test is by its time."""

from __future__ import annotations

import time

from gpuhealth.burnin.jobs import Progress, Say


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
