"""/dev/kmsg: the device itself where this machine has one, a pipe or a file in its place for the rest."""

import asyncio
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from gpuhealth.kernel_log.kmsg import KmsgError, KmsgReader, Position
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.model.missing import MissingReason

DEVICE = Path("/dev/kmsg")
BOOT = "boot-1"
P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def write(text: str, level: int = 7) -> None:
    """A record in the real kernel log. A new handle for each: the kernel limits the rate of every single one."""
    handle = os.open(DEVICE, os.O_WRONLY)
    try:
        os.write(handle, f"<{level}>{text}\n".encode())
    finally:
        os.close(handle)


def _why_no_device() -> str:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK))
    except OSError as error:
        return f"{DEVICE} cannot be used here: {error.strerror}"
    return ""


device = pytest.mark.skipif(bool(_why_no_device()), reason=_why_no_device() or "never")


async def read_until(reader: KmsgReader, enough: Callable[[list[KernelRecord]], bool]) -> list[KernelRecord]:
    """Records of the reader until there are enough."""
    seen: list[KernelRecord] = []
    async with asyncio.timeout(180):
        async for batch in reader:
            seen += batch
            if enough(seen):
                return seen
    raise AssertionError("a reader never ends by itself")


def ends_with(text: str) -> Callable[[list[KernelRecord]], bool]:
    """Whether a record with this text has come."""
    return lambda seen: any(record.text == text for record in seen)


@pytest.fixture
def mark() -> str:
    """Words that no other test writes."""
    return f"gpuhealth-test-{uuid.uuid4().hex}"


class Log:
    """A file in the device's place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: list[str] = []
        path.touch()

    def add(self, sequence: int, text: str, priority: int = 3, age: float = 0.0) -> None:
        """Appends a record to the log."""
        stamp = int((time.monotonic() - age) * 1e6)
        with self.path.open("a") as file:
            file.write(f"{priority},{sequence},{stamp},-;{text}\n SUBSYSTEM=pci\n")

    async def read(
        self, after: Position | None, lookback: float = 60.0, *, accept_user_records: bool = False
    ) -> KmsgReader:
        """Reads what there is."""
        reader = KmsgReader(self.path, BOOT, after, lookback, accept_user_records=accept_user_records)
        async for batch in reader:
            self.texts = [record.text for record in batch]
            break
        reader.close()
        return reader


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A kernel log without records."""
    return Log(tmp_path / "kmsg")


# -- the device ----------------------------------------------------------------------------------------------------


@device
@in_loop
async def test_records_of_the_device(mark: str) -> None:
    """What is written to the real log arrives with text, level, sequence and the time of now."""
    reader = KmsgReader(DEVICE, BOOT, None, 60.0, accept_user_records=True)
    write(f"{mark} one", level=3)
    write(f"{mark} two é\nlines", level=6)
    seen = await read_until(reader, ends_with(f"{mark} two é\nlines"))
    reader.close()
    one, two = (record for record in seen if record.text.startswith(mark))
    assert (one.text, one.priority, two.priority) == (f"{mark} one", 3, 6)
    assert two.sequence > one.sequence >= 0
    assert one.time is not None
    assert abs((datetime.now(UTC) - one.time).total_seconds()) < 60
    assert reader.take_lost_records() == 0
    assert reader.position is not None
    assert reader.position.boot_id == BOOT
    assert reader.position.sequence >= seen[-1].sequence  # a daemon may have written behind it
    assert 0 <= reader.lag_seconds < 60


@device
@in_loop
async def test_what_a_program_writes_to_the_device(mark: str) -> None:
    """A program cannot write a record as the kernel: whatever facility it names, the record does not count."""
    reader = KmsgReader(DEVICE, BOOT, None, 60.0)
    control = KmsgReader(DEVICE, BOOT, None, 60.0, accept_user_records=True)
    for priority in (0, 3, 11, 30):
        write(f"{mark} {priority}", level=priority)
    write(f"{mark} last")
    await read_until(control, ends_with(f"{mark} last"))
    texts = [record.text async for batch in reader.available() for record in batch]
    reader.close()
    control.close()
    assert not [text for text in texts if text.startswith(mark)]


@device
@in_loop
async def test_waits_for_the_next_record(mark: str) -> None:
    """A reader that has read all wakes up for a new record."""
    reader = KmsgReader(DEVICE, BOOT, None, 60.0, accept_user_records=True)
    write(f"{mark} one")
    await read_until(reader, ends_with(f"{mark} one"))
    later = asyncio.get_running_loop().call_later(0.05, write, f"{mark} two")
    seen = await read_until(reader, ends_with(f"{mark} two"))
    assert later.when() <= asyncio.get_running_loop().time()
    assert [record.text for record in seen if record.text.startswith(mark)] == [f"{mark} two"]
    reader.close()


@device
@in_loop
async def test_goes_on_behind_what_was_handled(mark: str) -> None:
    """After a restart in the same boot no record comes twice and none is missed."""
    first = KmsgReader(DEVICE, BOOT, None, 60.0, accept_user_records=True)
    write(f"{mark} one")
    await read_until(first, ends_with(f"{mark} one"))
    first.close()
    write(f"{mark} two")
    second = KmsgReader(DEVICE, BOOT, first.position, 0.0, accept_user_records=True)
    seen = await read_until(second, ends_with(f"{mark} two"))
    second.close()
    assert [record.text for record in seen if record.text.startswith(mark)] == [f"{mark} two"]
    assert second.take_lost_records() == 0


@device
@in_loop
async def test_an_overrun_is_counted(mark: str) -> None:
    """Records that the ring overwrites before they are read are counted, once, and the newest still arrive."""
    reader = KmsgReader(DEVICE, BOOT, None, 60.0, accept_user_records=True)
    write(f"{mark} first")
    (*_, last) = await read_until(reader, ends_with(f"{mark} first"))
    filler = "x" * 900
    written = 0
    probe = os.open(DEVICE, os.O_RDONLY | os.O_NONBLOCK)  # sees the first record that the ring still holds
    try:
        oldest = -1
        while oldest <= last.sequence + 5 and written < 20_000:
            for _ in range(50):
                write(f"{mark} {filler}")
            written += 50
            os.lseek(probe, 0, os.SEEK_SET)
            oldest = int(os.read(probe, 16384).split(b",")[1])
    finally:
        os.close(probe)
    if oldest <= last.sequence + 5:
        pytest.skip("the log buffer of this kernel is too large to be filled in a test")
    write(f"{mark} last")
    seen = await read_until(reader, ends_with(f"{mark} last"))
    reader.close()
    # The first record that is left may be a daemon's, which is read past.
    assert 5 <= oldest - last.sequence - 1 <= reader.take_lost_records() <= seen[0].sequence - last.sequence - 1
    assert reader.take_lost_records() == 0


# -- where to begin --------------------------------------------------------------------------------------------------


@in_loop
async def test_the_first_start_looks_back_a_while(log: Log) -> None:
    """With nothing remembered only young records count, and what was before is no loss."""
    log.add(3, "old", age=100.0)
    log.add(7, "young", age=1.0)
    log.add(8, "new")
    reader = await log.read(None)
    assert log.texts == ["young", "new"]
    assert reader.position == Position(BOOT, 8)


@in_loop
async def test_another_boot_is_read_from_its_first_record(log: Log) -> None:
    """A position of another boot says nothing of this one: every record counts, however old."""
    log.add(0, "booting", age=time.monotonic() - 0.1)
    log.add(5, "later", age=1.0)
    reader = await log.read(Position("boot-0", 1000))
    assert log.texts == ["booting", "later"]
    assert reader.take_lost_records() == 4


@in_loop
async def test_records_overwritten_while_nobody_read(log: Log) -> None:
    """A gap behind the remembered position is counted as lost."""
    log.add(15, "one")
    reader = await log.read(Position(BOOT, 10))
    assert (log.texts, reader.take_lost_records()) == (["one"], 4)


@in_loop
async def test_what_was_handled_is_skipped(log: Log) -> None:
    """Records up to the remembered one do not come again."""
    for sequence in range(5):
        log.add(sequence, f"record {sequence}", age=1000.0)
    await log.read(Position(BOOT, 2))
    assert log.texts == ["record 3", "record 4"]


# -- what counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [False, True])
@in_loop
async def test_only_what_the_kernel_wrote(log: Log, accept: bool) -> None:
    """Only records of the kernel count, and with the setting those that a program has written to the device."""
    log.add(0, "of a daemon", priority=30)
    log.add(1, "of a writer", priority=11)
    with log.path.open("a") as file:
        file.write("garbage\n;;\n-1,2,3;x\n")
    log.add(2, "of the \\x0akernel", priority=3)
    reader = await log.read(None, accept_user_records=accept)
    assert log.texts == (["of a writer"] if accept else []) + ["of the \nkernel"]
    assert (reader.records, reader.take_lost_records()) == (3, 0)


@in_loop
async def test_lag_is_the_age_of_the_newest_record(log: Log) -> None:
    """A record that is read late shows as lag."""
    log.add(0, "late", age=30.0)
    assert 30.0 <= (await log.read(None)).lag_seconds < 50.0


@in_loop
async def test_no_log_to_open(tmp_path: Path) -> None:
    """What cannot be opened is said once, with the reason, so that another source can be used."""
    reader = KmsgReader(tmp_path / "absent", BOOT, None, 0.0)
    missing = reader.open()
    assert missing is not None
    assert missing.reason is MissingReason.NOT_INSTALLED
    with pytest.raises(KmsgError, match="absent"):
        await read_until(reader, bool)


@in_loop
async def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable log is distinguished from a missing one."""

    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    missing = KmsgReader(tmp_path / "kmsg", BOOT, None, 0.0).open()
    assert missing is not None
    assert missing.reason is MissingReason.NO_PERMISSION


# -- bursts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, Callable[[bytes], None]]]:
    """A pipe in the device's place, and what writes to it without holding up the loop."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR)  # so that neither end is ever without a partner
    threads: list[threading.Thread] = []

    def send(data: bytes) -> None:
        def run() -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(keep, view) :]

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()

    yield path, send
    for thread in threads:
        thread.join(10)
    os.close(keep)


@in_loop
async def test_a_burst_does_not_keep_others_waiting(pipe: tuple[Path, Callable[[bytes], None]]) -> None:
    """While 100,000 records come in, others get their turn between bounded batches, and none is lost."""
    path, send = pipe
    stamp = int(time.monotonic() * 1e6)
    line = "NVRM: Xid (PCI:0000:3b:00): 45, pid=1, name=x, Ch"
    send(b"".join(f"3,{number},{stamp},-;{line}\n".encode() for number in range(100_000)))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    reader = KmsgReader(path, BOOT, None, 3600.0)
    count, batches = 0, 0
    async with asyncio.timeout(300):
        async for batch in reader:
            count, batches = count + len(batch), batches + 1
            assert len(batch) <= 256 * 512  # 256 reads; a pipe's read holds several records, the device's one
            if count == 100_000:
                break
    task.cancel()
    reader.close()
    assert reader.take_lost_records() == 0
    assert turns >= batches - 1 > 0  # one between any two batches


@in_loop
async def test_half_a_record_waits_for_the_rest(pipe: tuple[Path, Callable[[bytes], None]]) -> None:
    """A record that comes in two parts is one."""
    path, send = pipe
    stamp = int(time.monotonic() * 1e6)
    reader = KmsgReader(path, BOOT, None, 3600.0)
    send(f"3,0,{stamp},-;one\n3,1,{stamp},-;tw".encode())
    assert [record.text for record in await read_until(reader, ends_with("one"))] == ["one"]
    send(b"o\n")
    assert [record.text for record in await read_until(reader, ends_with("two"))] == ["two"]
    reader.close()
