"""What is looked for: every check of the house in one list, and running them over a round.

To add a check, write its codes and rules in a file of this folder and name its CHECK below.
"""

from __future__ import annotations

from gpuhealth.checks import clocks, driver, ecc, fabric, gpu, inventory, memory, nvlink, pcie, persistence, thermal
from gpuhealth.checks.code import Check, Code
from gpuhealth.checks.history import History
from gpuhealth.config import Settings
from gpuhealth.model import Outcome
from gpuhealth.readings import NodeReadings

EVENT_CHECKS: tuple[Check, ...] = ()
"""Those over `readings.events`, which are judged as soon as the kernel says something."""

CHECKS: tuple[Check, ...] = (
    driver.CHECK,
    gpu.CHECK,
    ecc.CHECK,
    memory.CHECK,
    thermal.CHECK,
    clocks.CHECK,
    pcie.CHECK,
    nvlink.CHECK,
    fabric.CHECK,
    persistence.CHECK,
    *EVENT_CHECKS,
)

_CODES = {code.name: code for check in CHECKS for code in check.codes}


def judge(readings: NodeReadings, settings: Settings, history: History) -> list[Outcome]:
    """Every outcome of a whole round; `history` is taken on by it."""
    outcomes = [outcome for check in CHECKS for outcome in check.run(readings, settings, history)]
    inventory.remember(readings, settings, history)
    return outcomes


def judge_events(readings: NodeReadings, settings: Settings, history: History) -> list[Outcome]:
    """The outcomes of the events of the readings alone."""
    return [outcome for check in EVENT_CHECKS for outcome in check.run(readings, settings, history)]


def code(name: str) -> Code:
    """The code of that name; KeyError for one that does not exist."""
    return _CODES[name]
