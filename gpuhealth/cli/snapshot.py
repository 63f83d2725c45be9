"""One look at a machine: everything read once, beside the agent and without changing anything."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import msgspec

from gpuhealth.kernel_log.kmsg import KmsgError, KmsgReader
from gpuhealth.model.history import History
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.model.tracker_state import Ledger, Tracked
from gpuhealth.monitors.kernel_log.readings import KernelLog
from gpuhealth.monitors.node_probe import NodeProbe, boot_id
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.journal import Entry, Journal, JournalError
from gpuhealth.runtime.settings import Settings

_JOURNAL_ENTRIES = 100_000


class Remembered(msgspec.Struct, frozen=True):
    """What the agent of this node has remembered, as far as it can be read."""

    history: bytes | None = None  # JSON
    entries: tuple[Entry, ...] | None = None
    held: tuple[Tracked, ...] = ()  # findings that the agent has raised and nothing has cleared
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
            return Remembered(journal.recall("history"), entries, _held(journal.recall("findings")))
    except JournalError as error:
        return Remembered(problem=str(error))
    except OSError as error:
        return Remembered(problem=f"cannot read journal {path}: {error.strerror}")


def _held(ledger: bytes | None) -> tuple[Tracked, ...]:
    try:
        known = msgspec.json.decode(ledger, type=Ledger) if ledger else Ledger()
    except (msgspec.DecodeError, RecursionError):
        return ()
    return tuple(tracked for tracked in known.tracked if tracked.raised)


def history(remembered_json: bytes | None) -> History:
    """The memory to judge with, for this look alone; one of another version is none."""
    if remembered_json is None:
        return History()
    try:
        return msgspec.json.decode(remembered_json, type=History)
    except (msgspec.DecodeError, RecursionError):
        return History()


async def _kernel_log(settings: Settings, back_seconds: float) -> tuple[Reading[KernelLog], list[KernelRecord]]:
    reader = KmsgReader(settings.roots.kmsg, boot_id(settings.roots.proc), None, back_seconds)
    records: list[KernelRecord] = []
    try:
        async for batch in reader.available():
            records += batch
    except KmsgError as error:
        return error.missing, records
    finally:
        reader.close()
    return KernelLog("kmsg", reader.records), records


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
    probe = NodeProbe(alone)
    taken: list[NodeReadings] = []
    try:
        for number in range(rounds):
            if number:
                await asyncio.sleep(interval)
            async with _waiting_shown(settings.nvml.critical_after):
                taken.append(await _round(probe, settings.nvml.critical_after))
            if _waited_for(taken[-1]):
                break
    finally:
        probe.nvml.close()
    log, records = await _kernel_log(settings, back_seconds)
    return [msgspec.structs.replace(readings, kernel_log=log) for readings in taken], records


async def _round(probe: NodeProbe, patience: float) -> NodeReadings:
    while True:  # a read returns early when a deadline is crossed
        readings = await probe.read(patience)
        if not 0 < _waited_for(readings) < patience:
            return readings


def _waited_for(readings: NodeReadings) -> float:
    """For how many seconds the driver has owed its answer; 0 when it has answered, or is known to give none."""
    nvml = readings.nvml
    return 0.0 if isinstance(nvml, Missing) or nvml.answered else nvml.waiting_seconds


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
