"""The duties of the leading controller: one module each, and one line in DUTIES."""

from __future__ import annotations

from gpuhealth.controller.duties.agent_liveness import AgentLiveness
from gpuhealth.controller.duties.budget_status import BudgetStatusWriter
from gpuhealth.controller.duties.burnin_scheduler import BurninScheduler
from gpuhealth.controller.duties.drain_controller import DrainController
from gpuhealth.controller.duties.orphaned_slots import OrphanedSlotCollector
from gpuhealth.controller.duties.outlier_publisher import OutlierPublisher
from gpuhealth.controller.duties.reserved_slots import SlotReserver
from gpuhealth.controller.duty import Duty

DUTIES: tuple[type[Duty], ...] = (
    DrainController,
    BudgetStatusWriter,
    SlotReserver,
    OrphanedSlotCollector,
    BurninScheduler,
    AgentLiveness,
    OutlierPublisher,
)
"""Every duty. Each runs on its own task while this process leads; the order does not matter."""
