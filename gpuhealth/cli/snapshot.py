"""One look at a machine: everything read once, beside the agent and without changing anything."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from gpuhealth.agent.state import CHECKS, FINDINGS
from gpuhealth.kernel_log.kmsg import KmsgError, KmsgReader
from gpuhealth.model.kernel_event import KernelLogStatus, KernelRecord
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.model.tracker_state import TrackedFinding, TrackerState
from gpuhealth.monitors.judge import Memory, decode_memory
from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
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

_JOURNAL_ENTRIES = 100_000


class Remembered(msgspec.Struct, frozen=True):
    """What the agent of this node has remembered, as far as it can be read."""

    checks: bytes | None = None  # the memory of its checks, JSON
    entries: tuple[Entry, ...] | None = None
    held: tuple[TrackedFinding, ...] = ()  # findings that the agent has raised and nothing has cleared
    problem: str = ""  # why there is nothing
    absent: bool = False  # there is no journal at all


def remembered(settings: Settings, with_entries: bool = False) -> Remembered:
    """Reads the agent's journal and leaves it as it is."""
    path = settings.journal.path
    try:
        if not path.exists():
            return Remembered(problem=f"there is no journal at {path}", absent=True)
        journal = Journal(path, settings.journal.retention, settings.journal.max_entries, read_only=True)
        with contextlib.closing(journal):
            entries = tuple(journal.entries(limit=_JOURNAL_ENTRIES)) if with_entries else None
            return Remembered(journal.stored(CHECKS), entries, _held(journal.stored(FINDINGS)))
    except JournalError as error:
        return Remembered(problem=str(error))
    except OSError as error:
        return Remembered(problem=f"cannot read journal {path}: {error.strerror}")


def _held(ledger: bytes | None) -> tuple[TrackedFinding, ...]:
    try:
        known = msgspec.json.decode(ledger, type=TrackerState) if ledger else TrackerState()
    except (msgspec.DecodeError, RecursionError):
        return ()
    return tuple(tracked for tracked in known.tracked if tracked.raised)


def memory(stored: bytes | None) -> Memory:
    """The memory to judge with, for this look alone; one of another version counts as none."""
    if stored is None:
        return Memory()
    try:
        return decode_memory(stored)
    except (msgspec.DecodeError, RecursionError):
        return Memory()


async def _kernel_log(settings: Settings, back_seconds: float) -> tuple[Reading[KernelLogStatus], list[KernelRecord]]:
    reader = KmsgReader(settings.roots.kmsg, boot_id(settings.roots.proc), None, back_seconds)
    records: list[KernelRecord] = []
    try:
        async for batch in reader.available():
            records += batch
    except KmsgError as error:
        return error.missing, records
    finally:
        reader.close()
    return KernelLogStatus("kmsg", reader.records), records


def machine(
    settings: Settings, back_seconds: float, rounds: int = 1, interval: float = 0.0
) -> tuple[list[NodeReadings], list[KernelRecord]]:
    """Reads this machine so many times, then the kernel log of the last so many seconds.

    A driver that hangs is waited for until it counts as hung, never longer, and no further round is tried.
    """
    return asyncio.run(_machine(settings, back_seconds, rounds, interval))


async def _machine(
    settings: Settings, back_seconds: float, rounds: int, interval: float
) -> tuple[list[NodeReadings], list[KernelRecord]]:
    # A look leaves at most one process behind in a driver that hangs: no replacement is started beside it.
    alone = settings.model_copy(update={"nvml": settings.nvml.model_copy(update={"max_extra_processes": 0})})
    runners = [_runner(monitor, alone) for monitor in enabled(alone)]
    taken: list[NodeReadings] = []
    try:
        for number in range(rounds):
            if number:
                await asyncio.sleep(interval)
            async with _waiting_shown(settings.nvml.critical_after):
                taken.append(await _round(runners, settings))
            readings = taken[-1].of(NVIDIA)
            if not isinstance(readings, Missing) and is_waiting(readings):
                break
    finally:
        for runner in runners:
            runner.close()
    log, records = await _kernel_log(settings, back_seconds)
    return [readings.with_readings(KERNEL_LOG, log) for readings in taken], records


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


@contextlib.asynccontextmanager
async def _waiting_shown(limit: float) -> AsyncIterator[None]:
    """Tells the one who sits at the terminal that it is the driver that takes so long."""

    told = ""

    async def show() -> None:
        nonlocal told
        await asyncio.sleep(1.0)
        for waited in range(2, int(limit) + 2):
            await asyncio.sleep(1.0)
            told = f"waiting for NVML … {waited} s (at most {limit:.0f} s)"
            sys.stderr.write(f"\r{told}")
            sys.stderr.flush()

    if not sys.stderr.isatty():
        yield
        return
    shown = asyncio.create_task(show())
    try:
        yield
    finally:
        shown.cancel()
        if told:
            sys.stderr.write(f"\r{' ' * len(told)}\r")
        sys.stderr.flush()
