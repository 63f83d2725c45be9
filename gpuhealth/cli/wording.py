"""Words and colours for actions, reasons, states and severities."""

from __future__ import annotations

from datetime import timedelta

from gpuhealth.model.burnin_run import TestStatus
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import MissingReason
from gpuhealth.model.verdict import State

ACTIONS: dict[str, str] = {
    Action.NONE: "no action needed",
    Action.RESTART_WORKLOAD: "restart the program that ran on the GPU",
    Action.RESET_GPU: "drain the node, then reset the GPU",
    Action.REBOOT_NODE: "drain the node, then reboot it",
    Action.INSPECT_HARDWARE: "take the node out of service and have its hardware inspected",
    Action.UPDATE_SOFTWARE: "repair or update the driver and its services",
    Action.CONTACT_SUPPORT: "collect nvidia-bug-report.sh and contact the vendor",
}

MISSING_REASONS: dict[str, str] = {
    MissingReason.NO_HISTORY: "needs an earlier reading to compare with (the agent has one)",
    MissingReason.RELEASED: "the driver was released on request",
    MissingReason.TIMEOUT: "the driver has not answered",
    MissingReason.GPU_LOST: "the GPU is lost",
    MissingReason.RESET_REQUIRED: "the GPU must be reset first",
    MissingReason.NO_PERMISSION: "no permission; try as root",
}
"""Why something could not be read, where the reading itself has no detail."""

STYLE: dict[str, str] = {
    Severity.CRITICAL: "bold red",
    Severity.WARNING: "yellow",
    Severity.INFO: "cyan",
    State.HEALTHY: "green",
    State.DEGRADED: "yellow",
    State.UNHEALTHY: "bold red",
    State.UNKNOWN: "bold magenta",
}

RESULT_STYLE: dict[str, str] = {
    TestStatus.PASSED: "green",
    TestStatus.FAILED: "bold red",
    TestStatus.SKIPPED: "dim",
    TestStatus.STOPPED: "yellow",
}


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun in singular or plural: `1 GPU`, `8 GPUs`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def age(time: timedelta) -> str:
    """How long ago, in one unit, as kubectl prints it: 45s, 5m, 3h, 2d."""
    seconds = max(0, int(time.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
