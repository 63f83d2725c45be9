"""Reads everything about this machine once, next to a running agent and without changing anything."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec

from gpuhealth.agent.state import CHECKS, FINDINGS
from gpuhealth.kernel_log.kmsg import KmsgError, KmsgReader
from gpuhealth.model.causes import Ended
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.model.kernel_event import KernelLogStatus, KernelRecord
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.model.tracker import ChangeKind
from gpuhealth.model.tracker_state import TrackedFinding, TrackerState
from gpuhealth.monitors.judge import Memory, decode_memory
from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
from gpuhealth.monitors.kernel_log.mounted_disks import MountedDisks
from gpuhealth.monitors.monitor import ProbeContext
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.probe import is_waiting
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.monitors.registry import AnyMonitor, enabled
from gpuhealth.monitors.runner import MonitorRunner
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.clock import wall_clock
from gpuhealth.runtime.files import boot_id
from gpuhealth.runtime.journal import Entry, Journal, JournalError

_MAX_ENTRIES = 100_000  # of the journal


class AgentJournal(msgspec.Struct, frozen=True, kw_only=True):
    """Readable content of the journal of this node's agent."""

    checks: bytes | None = None  # the memory of its checks, JSON
    entries: tuple[Entry, ...] | None = None  # None: not read
    active: tuple[TrackedFinding, ...] = ()  # findings that the agent has raised and not cleared
    ended: tuple[Ended, ...] = ()  # findings that have ended by evidence
    problem: str = ""  # why nothing could be read
    absent: bool = False  # there is no journal


def read_journal(settings: Settings, with_entries: bool = False) -> AgentJournal:
    """Read the agent's journal without changing it. Never raises: `problem` has the error."""
    path = settings.journal.path
    try:
        if not path.exists():
            return AgentJournal(problem=f"there is no journal at {path}", absent=True)
        journal = Journal(path, settings.journal.retention, settings.journal.max_entries, read_only=True)
        with contextlib.closing(journal):
            known = _findings(journal.stored(FINDINGS))
            return AgentJournal(
                entries=tuple(journal.entries(limit=_MAX_ENTRIES)) if with_entries else None,
                checks=journal.stored(CHECKS),
                active=tuple(tracked for tracked in known.tracked if tracked.raised),
                ended=tuple(known.ended),
            )
    except JournalError as error:
        return AgentJournal(problem=str(error))
    except OSError as error:
        return AgentJournal(problem=f"cannot read journal {path}: {error.strerror}")


def _findings(state: bytes | None) -> TrackerState:
    try:
        known = msgspec.json.decode(state, type=TrackerState) if state else TrackerState()
    except JSON_ERRORS:
        return TrackerState()
    return known if known.is_sound() else TrackerState()


def ended_in(entries: Iterable[msgspec.Raw]) -> list[Ended]:
    """The findings that have ended according to the journal in a capture. Entries of another form are left out."""
    ended = []
    for line in entries:
        with contextlib.suppress(*JSON_ERRORS):
            entry = msgspec.json.decode(line, type=Entry)
            if entry.kind == ChangeKind.CLEARED and entry.time.tzinfo:
                ended.append(Ended(entry.code, entry.component, entry.time))
    return ended


def load_memory(json: bytes | None) -> Memory:
    """The stored memory of the agent's checks; an empty one where there is none, or it is of another version."""
    if json is None:
        return Memory()
    try:
        return decode_memory(json)
    except JSON_ERRORS:
        return Memory()


def read_machine(
    settings: Settings, rounds: int = 1, interval_seconds: float = 0.0
) -> tuple[list[NodeReadings], list[KernelRecord]]:
    """Read this machine so many times, then the kernel log of this boot.

    A driver that hangs is waited for until it counts as unresponsive, not longer, and then no further round is tried.
    """
    return asyncio.run(_read_machine(settings, rounds, interval_seconds))


async def _read_machine(
    settings: Settings, rounds: int, interval_seconds: float
) -> tuple[list[NodeReadings], list[KernelRecord]]:
    # At most one process is left behind in a driver that hangs: no replacement is started.
    settings = settings.model_copy(update={"nvml": settings.nvml.model_copy(update={"max_extra_processes": 0})})
    runners = [_runner(monitor, settings) for monitor in enabled(settings)]
    readings: list[NodeReadings] = []
    try:
        for number in range(rounds):
            if number:
                await asyncio.sleep(interval_seconds)
            async with _waiting_shown(settings.nvml.critical_after):
                readings.append(await _round(runners, settings))
            nvidia = readings[-1].of(NVIDIA)
            if not isinstance(nvidia, Missing) and is_waiting(nvidia):
                break
    finally:
        for runner in runners:
            runner.close()
    log, records = await _read_kernel_log(settings)
    return [reading.with_readings(KERNEL_LOG, log) for reading in readings], records


def _runner(monitor: AnyMonitor, settings: Settings) -> MonitorRunner:
    context: ProbeContext[Any, Any] = ProbeContext(core=settings, settings=settings, baseline=monitor.baseline())
    runner = MonitorRunner(monitor, monitor.probe(context), settings)
    runner.deadline = max(runner.deadline, settings.nvml.critical_after + 1.0)
    return runner


async def _round(runners: list[MonitorRunner], settings: Settings) -> NodeReadings:
    """One round of all monitors at once; one that fails is a Missing."""
    read = await asyncio.gather(*(runner.read() for runner in runners))
    return NodeReadings(
        node=settings.node_name,
        time=wall_clock(),
        boot_id=boot_id(settings.roots.proc),
        monitors={runner.monitor.name: readings for runner, readings in zip(runners, read, strict=True)},
    )


async def _read_kernel_log(settings: Settings) -> tuple[Reading[KernelLogStatus], list[KernelRecord]]:
    reader = KmsgReader(
        settings.roots.kmsg,
        boot_id(settings.roots.proc),
        None,
        math.inf,
        accept_user_records=settings.kernel_log.accept_user_records,
    )
    records: list[KernelRecord] = []
    try:
        async for batch in reader.available():
            records += batch
    except KmsgError as error:
        return error.missing, records
    finally:
        reader.close()
    gone = ""
    if reader.begins:
        gone = f"kernel log: from {reader.begins:%Y-%m-%d %H:%M:%SZ} on; earlier records of this boot are gone"
    disks = MountedDisks(settings.roots.proc, settings.roots.sys).read()
    return KernelLogStatus("kmsg", reader.records, not_read=gone, disks=disks), records


@contextlib.asynccontextmanager
async def _waiting_shown(limit_seconds: float) -> AsyncIterator[None]:
    """On a terminal, show after two seconds that the command is waiting for the driver; else do nothing."""
    line = ""

    async def show() -> None:
        nonlocal line
        await asyncio.sleep(1.0)
        for waited in range(2, int(limit_seconds) + 2):
            await asyncio.sleep(1.0)
            line = f"waiting for NVML … {waited} s (at most {limit_seconds:.0f} s)"
            sys.stderr.write(f"\r{line}")
            sys.stderr.flush()

    if not sys.stderr.isatty():
        yield
        return
    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()
        if line:
            sys.stderr.write(f"\r{' ' * len(line)}\r")
        sys.stderr.flush()
