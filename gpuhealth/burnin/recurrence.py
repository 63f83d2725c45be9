"""Classifies a wrong result by repeating it: at once, with other operands, and after the device was idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpuhealth.burnin.device import Device

_HOT, _OTHER, _AFTER_IDLE = 5, 3, 3  # repetitions
_IDLE_STEPS = 4  # before each repetition after idle time; `step` is called in between
_IDLE_SECONDS = 0.5
_SMALL_IDLE_SECONDS = 0.02


class Recurrence(NamedTuple):
    """The fields `kind` and `repeats` of a `Miscompare`."""

    kind: str
    repeats: str


def recurrence(
    device: Device, repeat: Callable[[], bool], with_other_operands: Callable[[], bool], step: Callable[[], None]
) -> Recurrence:
    """Repeat an operation that gave a wrong result; both callables return whether the new result is wrong.

    transient: never wrong again. hot_only: wrong again at once, right after idle time. data_dependent: always wrong
    with these operands, never with others. repeatable: everything else, also what comes and goes. `step` is called
    between repetitions; it may raise StopRequested.
    """
    hot = _count_wrong(_HOT, repeat, step)
    others = _count_wrong(_OTHER, with_other_operands, step)
    after_idle = 0
    for _ in range(_AFTER_IDLE):
        for _ in range(_IDLE_STEPS):
            device.idle(_SMALL_IDLE_SECONDS if device.small else _IDLE_SECONDS)
            step()
        after_idle += repeat()
    repeats = f"{hot} of {_HOT} hot, {others} of {_OTHER} with other operands, {after_idle} of {_AFTER_IDLE} after idle"
    if not (hot or others or after_idle):
        return Recurrence("transient", repeats)
    if hot and not after_idle:
        return Recurrence("hot_only", repeats)
    if hot == _HOT and after_idle == _AFTER_IDLE and not others:
        return Recurrence("data_dependent", repeats)
    return Recurrence("repeatable", repeats)


def _count_wrong(times: int, is_wrong: Callable[[], bool], step: Callable[[], None]) -> int:
    count = 0
    for _ in range(times):
        count += is_wrong()
        step()
    return count
