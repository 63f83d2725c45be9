"""How long each level works on each test. What a level does not name, it does not do."""

from __future__ import annotations

from collections.abc import Collection

from gpuhealth.burnin.registry import TESTS

LEVELS: dict[str, dict[str, float]] = {  # seconds of work; starting the processes comes on top, a few seconds a test
    "quick": {"exact": 12, "repeat": 4, "memory": 10, "bandwidth": 4, "p2p": 4},
    "standard": {
        "exact": 60,
        "repeat": 20,
        "memory": 45,
        "bandwidth": 15,
        "p2p": 15,
        "collectives": 20,
        "soak": 75,
    },
    "long": {
        "exact": 480,
        "repeat": 120,
        "memory": 420,
        "bandwidth": 60,
        "p2p": 60,
        "collectives": 120,
        "soak": 900,
    },
}


def plan(level: str, tests: Collection[str] = (), duration: float | None = None) -> dict[str, float]:
    """Test -> seconds, in the order of the list: the level's tests, or those named; `duration` in all if given.

    A test that is named though the level leaves it out takes the time that the next longer level gives it.
    """
    levels = list(LEVELS)
    names = [name for name in TESTS if (name in tests if tests else name in LEVELS[level])]
    longer = levels[levels.index(level) :]
    seconds = {name: next(LEVELS[each][name] for each in longer if name in LEVELS[each]) for name in names}
    scale = 1.0 if duration is None else duration / sum(seconds.values())
    return {name: each * scale for name, each in seconds.items()}
