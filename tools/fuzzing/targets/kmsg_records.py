"""Raw bytes as they come from /dev/kmsg, through reader, parser, checks and tracker."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from testing.readings import START, gpu, node

from fuzzing import log_lines, mutate
from fuzzing.target import encoded, require, require_printable
from gpuhealth.kernel_log.kmsg import KmsgReader
from gpuhealth.model.codes import CODES
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.tracker import FindingTracker
from gpuhealth.monitors.judge import Judge, tracker_rules
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.condition import summary

_RECORDS = 96
_MOST_FINDINGS = 2000
_SHM = Path("/dev/shm")
_CANARY = b"NVRM: Xid (PCI:0000:03:00): 79, pid=1, name=x, GPU has fallen off the bus."
_GPU = "GPU-2"


class Target:
    """A case is the bytes of some records; the node has four GPUs."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=_SHM if _SHM.is_dir() else None)
        self._file = Path(self._folder.name) / "kmsg"
        self._pipe = Path(self._folder.name) / "pipe"
        os.mkfifo(self._pipe)
        self._loop = asyncio.new_event_loop()
        self._settings = Settings()
        self._readings = node(*(gpu(index) for index in range(4))).nvidia

    def make(self, chance: random.Random) -> bytes:
        """Records in order, some damaged, with a real fault and with text of users among them."""
        records = []
        sequence, micros = chance.randrange(1000), int(time_since_boot() * 1e6)
        canary, user = chance.randrange(_RECORDS), chance.randrange(_RECORDS)
        for number in range(_RECORDS):
            sequence += 1 if chance.random() < 0.97 else chance.choice((0, 5, 2**40, -1))
            text = (
                _CANARY
                if number == canary
                else log_lines.by_user(chance)
                if number == user
                else log_lines.message(chance)
            )
            priority = (
                b"3" if number in (canary, user) else chance.choice((b"6", b"4", b"3", b"2", b"14", b"30", b"999"))
            )
            if number == canary:
                sequence += 1
            record = b"%b,%d,%d,-;%b\n" % (priority, max(sequence, 0), micros + number, text.replace(b"\n", b"\\x0a"))
            if chance.random() < 0.2:
                record += b" SUBSYSTEM=pci\n DEVICE=+pci:0000:3b:00.0\n"
            if number not in (canary, user) and chance.random() < 0.25:
                record = mutate.mutate_bytes(record, chance, log_lines.WORDS)
                record = record if record.endswith(b"\n") else record + b"\n"
            records.append(record)
        return b"".join(records)

    def check(self, case: bytes) -> int:
        """Every record is handled, the fault is found, users forge none, and nothing shown has control characters."""
        records = self._loop.run_until_complete(self._read(case))
        require(len(records) <= case.count(b"\n") + 1, "more records than lines")
        parser = kernel_log_parser()
        events = []
        for record in records:
            self._check_record(record)
            if event := parser.feed(record):
                events.append(event)
                self._check_event(event)
        verdict, quarantined = self._judged(events)
        if any(_CANARY in line and line.startswith(b"3,") for line in case.split(b"\n")) and _is_canary_read(records):
            require(("xid.79", _GPU) in quarantined, "a fault in the log does not quarantine")
        encoded(verdict, 1 << 22)
        return len(records)

    async def _read(self, case: bytes) -> list[KernelRecord]:
        if len(case) % 8:
            self._file.write_bytes(case)
            return await self._available(KmsgReader(self._file, "boot-1", None, 600.0))
        reader = KmsgReader(self._pipe, "boot-1", None, 600.0)
        reader.open()
        writing = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
        found = []
        try:
            for at in range(0, len(case), 4001):
                os.write(writing, case[at : at + 4001])
                found += await self._available(reader, close=False)
        finally:
            os.close(writing)
            reader.close()
        return found

    async def _available(self, reader: KmsgReader, *, close: bool = True) -> list[KernelRecord]:
        found = []
        last = -1 if reader.position is None else reader.position.sequence
        async for batch in reader.available():
            found += batch
            position = reader.position
            require(position is not None and position.sequence >= last, "the position went back")
            last = position.sequence if position else last
        require(reader.take_lost_records() >= 0, "fewer than no records were lost")
        if close:
            reader.close()
        return found

    def _check_record(self, record: KernelRecord) -> None:
        require(0 <= record.priority <= 7, "a priority is out of range")
        require(record.time is not None and record.time <= datetime.now(UTC), "a record is from the future")

    def _check_event(self, event: KernelEvent) -> None:
        require(CODES.exists(event.finding), f"{event.finding} is no finding code")
        if log_lines.BY_USER.fullmatch(event.line):
            require(event.kind in log_lines.FORGED_KINDS, f"a user has forged {event.finding}: {event.line!a}")

    def _judged(self, events: list[KernelEvent]) -> tuple[object, set[tuple[str, str]]]:
        judge = Judge(self._settings, boot_id="boot-1", time=START)
        judge.set_readings(NVIDIA, self._readings, START)
        tracker = FindingTracker(tracker_rules(self._settings))
        for at in range(0, len(events), 16):
            tracker.apply(judge.judge_events(events[at : at + 16], START), START, "boot-1")
        require(not judge.failures, f"checks failed: {judge.failures}")
        verdict = tracker.verdict(judge.facts())
        require(len(verdict.findings) <= _MOST_FINDINGS, "the findings are not bounded")
        for finding in verdict.findings:
            require_printable(finding.message, f"the message of {finding.code}")
            require_printable(finding.component.id, f"the component of {finding.code}", 200)
        require_printable(summary(verdict).message, "the condition's message")
        return verdict, {(finding.code, finding.component.id) for finding in tracker.quarantine().findings}

    def close(self) -> None:
        """Removes the folder of the files that cases have written."""
        self._loop.close()
        self._folder.cleanup()


def time_since_boot() -> float:
    """By the clock that the records of the kernel log have."""
    return time.monotonic() - 60.0


def _is_canary_read(records: list[KernelRecord]) -> bool:
    return any(record.text.encode() == _CANARY for record in records)
