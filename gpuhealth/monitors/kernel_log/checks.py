"""Rules on the kernel log: faults reported in its lines, and whether it could be read without gaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from gpuhealth.model.component import NODE
from gpuhealth.model.context import Check, CheckContext
from gpuhealth.model.finding import Outcome
from gpuhealth.model.kernel_event import KernelLogStatus
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors import log_events
from gpuhealth.monitors.kernel_log.codes import EVENTS, NOT_READ, OVERRUN, UNAVAILABLE
from gpuhealth.monitors.kernel_log.settings import KernelLogSettings
from gpuhealth.monitors.monitor import NoBaseline

Context: TypeAlias = CheckContext[Reading[KernelLogStatus], KernelLogSettings, NoBaseline]


def judge_events(context: Context) -> Iterator[Outcome]:
    """The findings of kernel-log events, as soon as they arrive."""
    yield from log_events.judge(context, EVENTS)


def _completeness(context: Context) -> Iterator[Outcome]:
    log = context.readings
    if isinstance(log, Missing):
        yield OVERRUN.not_checked(log)
        yield NOT_READ.not_checked(log)
        yield UNAVAILABLE.not_checked(log)
    elif log.source == "nvml":
        unread = Missing(MissingReason.ERROR, "the kernel log is not read")
        yield OVERRUN.not_checked(unread)
        yield NOT_READ.not_checked(unread)
        yield UNAVAILABLE.found(
            NODE, "the kernel log cannot be read: XIDs come from NVML alone", now=context.time, source="/dev/kmsg"
        )
    else:
        yield UNAVAILABLE.clean()
        if log.not_read:
            yield NOT_READ.not_checked(Missing(MissingReason.NO_HISTORY, log.not_read))
        else:
            yield NOT_READ.clean()
        if log.lost_records:
            yield OVERRUN.found(
                NODE,
                f"{log.lost_records} records of the kernel log were overwritten before they could be read",
                now=context.time,
                source="/dev/kmsg",
                reading=log.lost_records,
                threshold=0,
            )
        else:
            yield OVERRUN.clean()


CHECKS = (Check((OVERRUN, UNAVAILABLE, NOT_READ), _completeness), Check(EVENTS, judge_events))
