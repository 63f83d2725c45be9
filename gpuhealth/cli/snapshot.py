"""Reads everything about this machine once, next to a running agent and without changing anything."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import msgspec

from gpuhealth.kernel_log.kmsg import KmsgError, KmsgReader
from gpuhealth.model.history import History
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.model.missing import Reading
from gpuhealth.model.tracker_state import Ledger, Tracked
from gpuhealth.monitors.kernel_log.readings import KernelLog
from gpuhealth.monitors.node_probe import NodeProbe, boot_id
from gpuhealth.monitors.nvidia.nvml.full_round import overdue_seconds, read_full_round
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.journal import Entry, Journal, JournalError
from gpuhealth.runtime.settings import Settings

_MAX_ENTRIES = 100_000  # of the journal


class AgentJournal(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal of this node's agent holds, as far as it can be read."""

    history: bytes | None = None  # JSON
    entries: tuple[Entry, ...] | None = None  # None: not read
    active: tuple[Tracked, ...] = ()  # findings that the agent has raised and not cleared
    problem: str = ""  # why nothing could be read
    absent: bool = False  # there is no journal


def read_journal(settings: Settings, with_entries: bool = False) -> AgentJournal:
    """Read the agent's journal without changing it. Never raises: `problem` says what went wrong."""
    path = settings.journal.path
    try:
        if not path.exists():
            return AgentJournal(problem=f"there is no journal at {path}", absent=True)
        journal = Journal(path, settings.journal.retention, settings.journal.max_entries, read_only=True)
        with contextlib.closing(journal):
            return AgentJournal(
                entries=tuple(journal.entries(limit=_MAX_ENTRIES)) if with_entries else None,
                history=journal.recall("history"),
                active=_active(journal.recall("findings")),
            )
    except JournalError as error:
        return AgentJournal(problem=str(error))
    except OSError as error:
        return AgentJournal(problem=f"cannot read journal {path}: {error.strerror}")


def _active(state: bytes | None) -> tuple[Tracked, ...]:
    try:
        known = msgspec.json.decode(state, type=Ledger) if state else Ledger()
    except (msgspec.DecodeError, RecursionError):
        return ()
    return tuple(tracked for tracked in known.tracked if tracked.raised)


def load_history(json: bytes | None) -> History:
    """The stored history of the agent; an empty one where there is none, or it is of another version."""
    if json is None:
        return History()
    try:
        return msgspec.json.decode(json, type=History)
    except (msgspec.DecodeError, RecursionError):
        return History()


def read_machine(
    settings: Settings, lookback_seconds: float, rounds: int = 1, interval_seconds: float = 0.0
) -> tuple[list[NodeReadings], list[KernelRecord]]:
    """Read this machine so many times, then the kernel log of the last `lookback_seconds`.

    A driver that hangs is waited for until it counts as unresponsive, not longer, and then no further round is tried.
    """
    return asyncio.run(_read_machine(settings, lookback_seconds, rounds, interval_seconds))


async def _read_machine(
    settings: Settings, lookback_seconds: float, rounds: int, interval_seconds: float
) -> tuple[list[NodeReadings], list[KernelRecord]]:
    # At most one process is left behind in a driver that hangs: no replacement is started.
    settings = settings.model_copy(update={"nvml": settings.nvml.model_copy(update={"max_extra_processes": 0})})
    deadline = settings.nvml.critical_after
    probe = NodeProbe(settings)
    readings: list[NodeReadings] = []
    try:
        for number in range(rounds):
            if number:
                await asyncio.sleep(interval_seconds)
            async with _waiting_shown(deadline):
                readings.append(await read_full_round(probe.read, lambda node: node.nvml, deadline))
            if overdue_seconds(readings[-1].nvml):
                break
    finally:
        probe.nvml.close()
    log, records = await _read_kernel_log(settings, lookback_seconds)
    return [msgspec.structs.replace(reading, kernel_log=log) for reading in readings], records


async def _read_kernel_log(
    settings: Settings, lookback_seconds: float
) -> tuple[Reading[KernelLog], list[KernelRecord]]:
    reader = KmsgReader(settings.roots.kmsg, boot_id(settings.roots.proc), None, lookback_seconds)
    records: list[KernelRecord] = []
    try:
        async for batch in reader.available():
            records += batch
    except KmsgError as error:
        return error.missing, records
    finally:
        reader.close()
    return KernelLog("kmsg", reader.records), records


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
