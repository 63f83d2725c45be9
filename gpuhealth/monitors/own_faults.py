"""Finding codes for faults of the agent itself, possible in every monitor. They never take a node out of service."""

from __future__ import annotations

from gpuhealth.model.codes import define
from gpuhealth.model.finding import Action, Severity

MONITOR_FAILED = define(
    "agent.monitor_failed",
    Severity.WARNING,
    Action.CONTACT_SUPPORT,
    meaning="A part of the agent that reads one subject failed: its process died or could not be started, it raised an"
    " error, or it gave an answer that cannot be read. It is tried again; the other subjects are read meanwhile.",
    advice="Look at the agent's log and memory limit, and for a crash of the process in the kernel log.",
    clear_after=60.0,
)
