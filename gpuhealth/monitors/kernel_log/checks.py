"""Rules on the kernel log: faults reported in its lines, and whether it could be read without gaps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from gpuhealth.model.codes import Code
from gpuhealth.model.component import NODE
from gpuhealth.model.context import Check, CheckContext
from gpuhealth.model.finding import Outcome, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.kernel_event import Disks, KernelEvent, KernelLogStatus
from gpuhealth.model.missing import UNREAD, Missing, MissingReason, Reading
from gpuhealth.monitors import log_events
from gpuhealth.monitors.kernel_log.codes import (
    DISK_READONLY,
    EVENTS,
    IO_ERRORS,
    MEMORY_EDAC,
    MEMORY_RECOVERED,
    NOT_READ,
    OVERRUN,
    UNAVAILABLE,
)
from gpuhealth.monitors.kernel_log.disk_lines import of_volume
from gpuhealth.monitors.kernel_log.memory_lines import failed_page
from gpuhealth.monitors.kernel_log.settings import KernelLogSettings
from gpuhealth.monitors.monitor import NoBaseline

Context: TypeAlias = CheckContext[Reading[KernelLogStatus], KernelLogSettings, NoBaseline]


def judge_events(context: Context) -> Iterator[Outcome]:
    """The findings of kernel-log events, as soon as they arrive."""
    if not context.events:
        return
    disks = UNREAD if isinstance(context.readings, Missing) else context.readings.disks
    pages = _FailedPages(context)
    events = tuple(pages.judged(_of_disk(event, disks)) for event in context.events)
    yield from log_events.judge(context, EVENTS, events)


def _of_disk(event: KernelEvent, disks: Reading[Disks]) -> KernelEvent:
    """The event of a disk of the node; for any other block device, that of a volume, which ends by itself."""
    readonly = event.finding == DISK_READONLY.name
    if not event.disk or disks == UNREAD or event.finding not in (DISK_READONLY.name, IO_ERRORS.name):
        return event  # without a node the line alone counts
    if isinstance(disks, Missing):
        where = f"whether it is a disk of the node is not known: {disks}" if readonly else ""
    elif _is_among(event.disk, disks.of_node):
        if readonly:
            meaning = f"The kernel stopped writing to a filesystem of the node, on {event.disk}, after errors"
            return msgspec.structs.replace(event, severity=Severity.CRITICAL, meaning=meaning)
        where = ""
    elif _is_among(event.disk, disks.of_pods):
        where = "it is mounted as a volume of pods"
    else:
        where = "no filesystem of the node is mounted from it" if readonly else ""
    if not where:
        return event
    volume = of_volume(event.disk, f"{'its filesystem was made read-only' if readonly else 'errors'}; {where}")
    return msgspec.structs.replace(
        event,
        finding=volume.finding.name,
        severity=volume.severity,
        action=volume.action,
        meaning=volume.meaning,
    )


def _is_among(disk: str, names: tuple[str, ...]) -> bool:
    """Whether a disk, or the NVMe controller of a disk, is among the names."""
    if _CONTROLLER.fullmatch(disk):
        return any(name.startswith(f"{disk}n") for name in names)
    return disk in names


_CONTROLLER = re.compile(r"nvme\d{1,6}", re.ASCII)


class _FailedPages:
    """Pages of the host's memory from which the kernel recovered: many within a day are a fault of the memory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings.host_memory
        self._key = history_key(MEMORY_RECOVERED.name, NODE)

    def judged(self, event: KernelEvent) -> KernelEvent:
        """The event, with the severity that it has after the earlier ones."""
        if event.finding not in (MEMORY_RECOVERED.name, MEMORY_EDAC.name) or event.severity is Severity.INFO:
            return event
        page = failed_page(event.line)
        at = (event.time or self._context.time).timestamp()
        history, limit = self._context.history, self._settings
        known = {detail for _, detail in history.events_within(self._key, at, limit.window)}
        if event.finding == MEMORY_EDAC.name:
            # EDAC reports an error that the kernel has already handled for a second time, without saying so on AMD.
            if page is None or str(page) not in known or event.line.startswith("Memory failure"):
                return event
            meaning = "Uncorrectable error in the host's memory, from which the kernel has recovered"
            return _memory_event(event, MEMORY_RECOVERED, meaning)
        if page is not None and str(page) not in known:
            pages = history.record_event(self._key, at, limit.window, str(page), keep=limit.recovered_critical)
            known = {detail for _, detail in pages}
        if len(known) >= limit.recovered_critical:
            meaning = f"{len(known)} pages of the host's memory have failed within {limit.window:g} s"
            return _memory_event(event, MEMORY_EDAC, meaning)
        return event


def _memory_event(event: KernelEvent, code: Code, meaning: str) -> KernelEvent:
    return msgspec.structs.replace(
        event, finding=code.name, severity=code.severity, action=code.action, meaning=meaning
    )


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
