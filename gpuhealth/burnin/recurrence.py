"""How a wrong result behaves when the same is done again: at once, with other operands, after a rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpuhealth.burnin.device import Device

_HOT, _OTHER, _RESTED = 5, 3, 3


class Recurrence(NamedTuple):
    """What `Miscompare` tells of it."""

    kind: str
    repeats: str


def recurrence(
    device: Device, again: Callable[[], bool], other: Callable[[], bool], alive: Callable[[], None]
) -> Recurrence:
    """Classifies a wrong result. `again` repeats it, `other` does so with other operands; both say if it is wrong.

    transient: never seen again. hot_only: seen again at once, not after a rest. data_dependent: always with these
    operands, never with others. repeatable: all else, also what comes and goes. `alive` is called in between.
    """
    hot = _count(_HOT, again, alive)
    others = _count(_OTHER, other, alive)
    rested = 0
    for _ in range(_RESTED):
        for _ in range(4):
            device.rest(0.02 if device.small else 0.5)
            alive()
        rested += again()
    repeats = f"{hot} of {_HOT} hot, {others} of {_OTHER} with other operands, {rested} of {_RESTED} after rest"
    if not (hot or others or rested):
        return Recurrence("transient", repeats)
    if hot and not rested:
        return Recurrence("hot_only", repeats)
    if hot == _HOT and rested == _RESTED and not others:
        return Recurrence("data_dependent", repeats)
    return Recurrence("repeatable", repeats)


def _count(times: int, wrong: Callable[[], bool], alive: Callable[[], None]) -> int:
    count = 0
    for _ in range(times):
        count += wrong()
        alive()
    return count
