"""A node that is out of service for a fault that its agent does not remember: lost memory is no evidence."""

from __future__ import annotations

from gpuhealth.model.code import Check, Clears, Code
from gpuhealth.model.finding import Action, Severity

MEMORY_LOST = Code(
    "quarantine.memory_lost",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The Node's record says that gpuhealth took it out of service, and the agent does not remember that the"
    " fault has ended: its journal was deleted, damaged or restored from an older copy. That nobody remembers a fault"
    " does not show that it is gone.",
    advice="Find out what became of the journal. Reboot the node or run gpuhealth burnin --save on it; gpuhealth"
    " restore or removing the taint returns it untested.",
    quarantine=True,
    clears=Clears.PROVEN,
)

CHECK = Check((MEMORY_LOST,), lambda _readings, _settings, _history: ())  # raised from the Node's record: verdict
