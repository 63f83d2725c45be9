"""The words for what the code has names for: actions, states, severities, clearing rules."""

from __future__ import annotations

from datetime import timedelta

from gpuhealth.model.burnin_run import TestStatus
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import MissingReason
from gpuhealth.model.verdict import State

DO = {
    Action.NONE: "nothing to be done",
    Action.RESTART_WORKLOAD: "restart the program that ran on the GPU",
    Action.RESET_GPU: "drain the node, then reset the GPU",
    Action.REBOOT_NODE: "drain the node, then reboot it",
    Action.INSPECT_HARDWARE: "take the node out of service and have its hardware looked at",
    Action.UPDATE_SOFTWARE: "put driver and services in order",
    Action.CONTACT_SUPPORT: "collect nvidia-bug-report.sh and ask the vendor",
}

UNREAD: dict[str, str] = {
    MissingReason.NO_HISTORY: "needs an earlier look to compare with; the agent has one",
    MissingReason.RELEASED: "the driver was let go on request",
    MissingReason.TIMEOUT: "the driver has not answered",
    MissingReason.GPU_LOST: "the GPU is lost",
    MissingReason.RESET_REQUIRED: "the GPU must be reset first",
    MissingReason.NO_PERMISSION: "no permission; try as root",
}
"""Why something could not be read, where the reading itself does not say more."""

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


def span(seconds: float) -> str:
    """A duration as people say it: 90 s, 10 min, 24 h, 14 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds == size and size > 60):
            return f"{seconds / size:g} {unit}" if seconds % size == 0 else f"{seconds:g} s"
    return f"{seconds:g} s"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 GPU`, `8 GPUs`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def age(time: timedelta) -> str:
    """How long ago, in one unit, as kubectl says it: 45s, 5m, 3h, 2d."""
    seconds = max(0, int(time.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
