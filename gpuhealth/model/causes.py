"""Why a node is out of service: the findings named in its record on the Node.

The record outlives the agent's memory, so that a lost journal does not return a node to service.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from gpuhealth.model.codes import CODES, Clears
from gpuhealth.model.component import NODE, Component
from gpuhealth.model.finding import Finding
from gpuhealth.model.out_of_service import MEMORY_LOST
from gpuhealth.model.time import ZonedTime

MAX_CAUSES = 64
"""Maximum number of causes in a record, worst first: the size of annotations is limited."""
_NAME_LIMIT = 100  # characters of a code, which another client may have written


class Cause(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finding for which the node is out of service."""

    code: str
    since: ZonedTime  # when it was first seen
    component: Component = NODE
    boot_id: str = ""  # of the boot in which it was last seen; empty if not recorded


class Ended(msgspec.Struct, frozen=True):
    """A finding that has ended by evidence, kept as long as the Node may still name it."""

    code: str
    component: Component
    time: datetime


def codes_of(finding: Finding) -> tuple[str, ...]:
    """The codes for which a finding keeps the node out of service: its own, and those that it stands for."""
    return finding.code, *finding.stands_for


def causes_of(finding: Finding, boot_id: str) -> list[Cause]:
    """The record's entries for a finding. A finding that stands for forgotten faults is recorded as those faults."""
    since = finding.first_seen.replace(microsecond=0)
    codes = finding.stands_for if finding.code == MEMORY_LOST.name else ()
    return [Cause(code, since, finding.component, boot_id) for code in codes or (finding.code,)]


def is_same(cause: Cause, finding: Finding) -> bool:
    """Whether a present finding may be the one in the record."""
    return cause.code in codes_of(finding) and concerns(cause, finding.component)


def concerns(cause: Cause, component: Component) -> bool:
    """Whether a cause may be about this component.

    A cause on the node may be about any component. A MIG device matches its GPU, and the node matches everything that
    is outside GPUs: a forgotten fault is raised on the GPU, else on the node.
    """
    if component.gpu or cause.component.gpu:
        return cause.component == NODE or cause.component.gpu == component.gpu
    return NODE in (cause.component, component) or cause.component == component


def needs_burnin(cause: Cause) -> bool:
    """Whether only a passed burn-in ends the cause, and not even a reboot."""
    if not CODES.exists(cause.code):
        return False
    return CODES.get(cause.code).clears in (Clears.TEST_PASSED, Clears.BURNIN_PASSED)


def drains(finding: Finding) -> bool:
    """Whether one of the forgotten faults for which this finding stands asked for a drain."""
    codes = finding.stands_for if finding.code == MEMORY_LOST.name else ()
    return any(CODES.get(code).drain for code in codes if CODES.exists(code))


def names(causes: list[Cause]) -> tuple[str, ...]:
    """The codes of causes, deduplicated and of bounded length, because another client may have written them."""
    return tuple(dict.fromkeys(cause.code[:_NAME_LIMIT] for cause in causes if cause.code))
