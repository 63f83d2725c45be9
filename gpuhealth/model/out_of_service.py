"""Findings that keep a node out of service for a fault that is over, or of which the agent has no memory.

The tracker raises them; no reading does.
"""

from __future__ import annotations

from gpuhealth.model.codes import Clears, define
from gpuhealth.model.finding import Action, Severity

MEMORY_LOST = define(
    "quarantine.memory_lost",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The Node's record says that gpuhealth took it out of service, and the agent does not remember that the"
    " fault has ended: its journal was deleted, damaged or restored from an older copy. A lost record of a fault"
    " does not show that the fault is gone.",
    advice="Find out what happened to the journal. Reboot the node or run gpuhealth burnin --save on it; gpuhealth"
    " restore or removing the taint returns it untested.",
    quarantine=True,
    clears=Clears.REBOOT_OR_BURNIN,
)
BURNIN_REQUIRED = define(
    "burnin.required",
    Severity.CRITICAL,
    Action.NONE,
    meaning="A fault that took the node out of service has cleared, and the settings require a burn-in before it"
    " returns (test_before_return).",
    advice="Run gpuhealth burnin --save on the node, or wait for the controller to do so. Removing the taint, or"
    " `gpuhealth restore`, returns the node untested.",
    quarantine=True,
    clears=Clears.BURNIN_PASSED,
)
