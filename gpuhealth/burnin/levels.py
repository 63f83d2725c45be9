"""How long a run works on each test."""

from __future__ import annotations

from collections.abc import Collection

from gpuhealth.burnin.registry import LEVELS, TESTS


def plan(level: str, tests: Collection[str] = (), duration: float | None = None) -> dict[str, float]:
    """Seconds of work by test, in the order of the registry: for the tests of the level, or only for those named.

    A named test that the level leaves out gets the time of the next longer level that has it. With `duration`, all
    times are scaled so that they add up to so many seconds.
    """
    longer = LEVELS[LEVELS.index(level) :]
    seconds = {
        name: next(test.seconds[other] for other in longer if other in test.seconds)
        for name, test in TESTS.items()
        if (name in tests if tests else level in test.seconds)
    }
    scale = 1.0 if duration is None else duration / sum(seconds.values())
    return {name: value * scale for name, value in seconds.items()}
