"""What is looked for: every check of the house in one list, and running them over a round.

To add a check, write its codes and rules in a file of this folder and name its CHECK below.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from gpuhealth.model import lost_memory as quarantine
from gpuhealth.model.code import Check, Code
from gpuhealth.model.finding import Finding, Outcome
from gpuhealth.model.history import History
from gpuhealth.monitors.burnin_results import checks as burnin
from gpuhealth.monitors.fleet_findings import checks as fleet
from gpuhealth.monitors.kernel_log import checks as kernel
from gpuhealth.monitors.nvidia.catalog import sxid as sxid_facts
from gpuhealth.monitors.nvidia.catalog import xid as xid_facts
from gpuhealth.monitors.nvidia.checks import (
    clocks,
    driver,
    ecc,
    fabric,
    gpu,
    inventory,
    nvlink,
    pcie,
    persistence,
    thermal,
    xid,
)
from gpuhealth.monitors.nvidia.checks import gpu_memory as memory
from gpuhealth.monitors.nvidia.checks import own_faults as agent
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import Settings

CHECKS: tuple[Check, ...] = (
    driver.CHECK,
    agent.CHECK,
    gpu.CHECK,
    ecc.CHECK,
    memory.CHECK,
    thermal.CHECK,
    clocks.CHECK,
    pcie.CHECK,
    nvlink.CHECK,
    fabric.CHECK,
    persistence.CHECK,
    burnin.CHECK,
    fleet.CHECK,
    quarantine.CHECK,
    xid.CHECK,
    kernel.CHECK,
)

_CODES = {code.name: code for check in CHECKS for code in check.codes}


def judge(readings: NodeReadings, settings: Settings, history: History) -> list[Outcome]:
    """Every outcome of a whole round; `history` is taken on by it."""
    outcomes = [outcome for check in CHECKS for outcome in check.run(readings, settings, history)]
    inventory.remember(readings, settings, history)
    return outcomes


def judge_events(readings: NodeReadings, settings: Settings, history: History) -> list[Outcome]:
    """What follows from `readings.events` alone, as soon as the kernel says something."""
    return [*xid.judge(readings, settings, history), *kernel.judge(readings, settings, history)]


def code(name: str) -> Code:
    """The code of that name, XIDs and SXids by their number; KeyError for one that does not exist."""
    return _CODES.get(name) or xid.code_for(name)


def known_codes() -> list[str]:
    """Every finding code there is, those of XIDs and SXids by number."""
    numbered = [f"xid.{number}" for number in xid_facts.table()] + [f"sxid.{number}" for number in sxid_facts.table()]
    return list(dict.fromkeys([*_CODES, *numbered]))


def exists(name: str) -> bool:
    """Whether there is a finding code of that name."""
    try:
        code(name)
    except KeyError:
        return False
    return True


def unmatched(settings: Settings) -> list[str]:
    """Codes and patterns for which the settings have a policy and that fit no finding code: misspelt, or of old."""
    policies = [settings.findings, *(pool.findings for pool in settings.pools)]
    patterns = dict.fromkeys(pattern for findings in policies for pattern in findings)
    known = known_codes() if patterns else []
    return [each for each in patterns if not exists(each) and not any(fnmatchcase(name, each) for name in known)]


def code_of(finding: Finding, settings: Settings) -> Code:
    """The code of a finding: of an XID's, what holds for the severity and action that its text gave it."""
    if finding.code in _CODES:
        return _CODES[finding.code]
    return xid.code_for(finding.code, finding.severity, finding.action, settings.xid.expire_after)
