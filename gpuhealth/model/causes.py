"""Why a node is out of service: the findings that its record on the Node names, so that nobody has to remember them."""

from __future__ import annotations

from datetime import datetime

import msgspec

from gpuhealth import monitors as checks
from gpuhealth.model.code import Clears
from gpuhealth.model.finding import Finding
from gpuhealth.model.lost_memory import MEMORY_LOST
from gpuhealth.model.time import ZonedTime
from gpuhealth.monitors.burnin_results.checks import REQUIRED

MOST = 64
"""Causes in a record at the most. An annotation has its limits; a node with more of them has its worst in it."""
_NAME_LIMIT = 100  # characters of a code that somebody else may have written


class Cause(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finding for which the node is out of service."""

    code: str
    since: ZonedTime  # when it was first seen
    gpu: str = ""  # uuid; empty for a fault of the node, and where it was not written down
    boot_id: str = ""  # of the boot in which it was last seen; empty where it was not written down


class Ended(msgspec.Struct, frozen=True):
    """A finding that is over by evidence, for as long as the Node may still name it."""

    code: str
    gpu: str
    time: datetime


def named(finding: Finding) -> tuple[str, ...]:
    """The codes for which a finding stands: its own, and those in whose place it keeps the node out of service."""
    others = {REQUIRED.name: finding.evidence.source, MEMORY_LOST.name: finding.evidence.reading}.get(finding.code, "")
    return finding.code, *(code for code in others.split(", ") if code)


def of(finding: Finding, boot_id: str) -> list[Cause]:
    """What the record says of a finding. One that stands for forgotten ones is written down as those."""
    since = finding.first_seen.replace(microsecond=0)
    codes = named(finding)[1:] if finding.code == MEMORY_LOST.name else ()
    return [Cause(code, since, finding.gpu, boot_id) for code in codes or (finding.code,)]


def is_same(cause: Cause, finding: Finding) -> bool:
    """Whether a finding of now may be what the record means."""
    return cause.code in named(finding) and cause.gpu in ("", finding.gpu)


def needs_test(cause: Cause) -> bool:
    """Whether only a burn-in that passes ends it: not even a reboot."""
    return checks.exists(cause.code) and checks.code(cause.code).clears in (Clears.PASSED, Clears.TESTED)


def drains(finding: Finding) -> bool:
    """Whether one of the forgotten findings for which this one stands asked for a drain."""
    codes = named(finding)[1:] if finding.code == MEMORY_LOST.name else ()
    return any(checks.code(code).drain for code in codes if checks.exists(code))


def joined(found: list[Cause]) -> str:
    """Their codes, for people and for `named`. A comma in one that somebody has made up must not make two."""
    names = (cause.code.replace(",", " ")[:_NAME_LIMIT] for cause in found)
    return ", ".join(dict.fromkeys(name for name in names if name))
