"""Captures: readings, kernel log and journal of a node in one file, for checking elsewhere.

A capture is a tar.gz of a manifest and a few JSON files, with one object per line for lists. It is written completely
or not at all, and read without unpacking to disk, because its source is not trusted.
"""

from __future__ import annotations

import gzip
import io
import os
import reprlib
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import msgspec

from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.readings import NodeReadings, decode
from gpuhealth.runtime.files import open_file
from gpuhealth.runtime.text import printable

FORMAT = 2
MAX_KERNEL_LOG_BYTES = 20 << 20
_MAX_MEMBER_BYTES = 64 << 20
_MAX_TOTAL_BYTES = 256 << 20
_MAX_MEMBERS = 64
MAX_ROUNDS = 1000
_MAX_GPUS = 256
_ERROR_CHARACTERS = 200
_FIRST_YEAR, _LAST_YEAR = 2000, 9000  # with room for sums on both sides
_FOLDER = "gpuhealth-capture"

T = TypeVar("T")


class CaptureError(Exception):
    """The capture cannot be written or read; the text is one sentence with the reason."""


class Manifest(msgspec.Struct, frozen=True):
    """Description of a capture."""

    format: int
    node: str
    time: datetime
    boot_id: str
    versions: dict[str, str]
    notes: tuple[str, ...] = ()  # parts that could not be captured, one sentence each


class Capture(msgspec.Struct, frozen=True):
    """The contents of a capture. Absent parts are None and mentioned in `notes`."""

    manifest: Manifest
    rounds: tuple[NodeReadings, ...]
    kernel_log: tuple[KernelRecord, ...] | None = None
    settings: dict[str, Any] | None = None  # active settings of the node
    memory: bytes | None = None  # stored state of the agent's checks, JSON
    journal: tuple[msgspec.Raw, ...] | None = None  # the agent's journal, one JSON object an entry
    notes: tuple[str, ...] = ()  # for the reader: the manifest's notes, and parts missing from the file


# --- writing ----------------------------------------------------------------------------------------------------------


def save(capture: Capture, path: Path, *, overwrite: bool = False) -> int:
    """Writes the capture; returns its size in bytes. The file appears complete or not at all. Raises CaptureError."""
    try:
        if path.exists() and not overwrite:
            raise CaptureError(f"{path} exists already")
        if path.exists() and not path.is_file():  # root would replace a device such as /dev/null by a file
            raise CaptureError(f"cannot write {path}: it is not a regular file")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(capture, file)
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)  # noqa: PTH105 - in line with the other calls of os
        except BaseException:
            os.unlink(temporary)  # noqa: PTH108 - as above
            raise
    except OSError as error:
        raise CaptureError(f"cannot write {path}: {error.strerror}") from None
    return size


def write(capture: Capture, file: IO[bytes]) -> None:
    """Writes the capture to an open file."""
    when = int(capture.manifest.time.timestamp())
    with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name, content in _members(capture):
            member = tarfile.TarInfo(f"{_FOLDER}/{name}")
            member.size, member.mtime, member.mode = len(content), when, 0o644
            archive.addfile(member, io.BytesIO(content))


def newest(records: list[KernelRecord], limit_bytes: int = MAX_KERNEL_LOG_BYTES) -> tuple[KernelRecord, ...]:
    """The newest records whose texts fit within the limit."""
    size = 0
    for place in range(len(records) - 1, -1, -1):
        size += len(records[place].text)
        if size > limit_bytes:
            return tuple(records[place + 1 :])
    return tuple(records)


def _members(capture: Capture) -> Iterator[tuple[str, bytes]]:
    encode = msgspec.json.Encoder()
    yield "manifest.json", msgspec.json.format(encode.encode(capture.manifest))
    yield "readings.jsonl", encode.encode_lines(capture.rounds)
    if capture.kernel_log is not None:
        yield "kernel.jsonl", encode.encode_lines(capture.kernel_log)
    if capture.settings is not None:
        yield "settings.json", msgspec.json.format(encode.encode(capture.settings))
    if capture.memory is not None:
        yield "memory.json", capture.memory
    if capture.journal is not None:
        yield "journal.jsonl", encode.encode_lines(capture.journal)


# --- reading ----------------------------------------------------------------------------------------------------------


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Bounded:
    """A decompressed stream that raises an error beyond the maximum size: a small file can expand to a huge one."""

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self._left = _MAX_TOTAL_BYTES

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise CaptureError(f"more than {_MAX_TOTAL_BYTES >> 20} MiB of content")
        return data


def load(path: Path) -> Capture:
    """Reads a capture; absent parts are mentioned in `notes`. Raises CaptureError for an invalid or unsafe file."""
    try:
        with open_file(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
            members = _read_members(_Bounded(unpacked))
    except CaptureError as error:
        raise CaptureError(f"{path} is no capture that can be used: {error}") from None
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise CaptureError(f"{path} is no capture, or is damaged: {error}") from None
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {error.strerror}") from None
    try:
        return _decoded(members)
    except CaptureError as error:
        raise CaptureError(f"{path} is no capture that can be used: {error}") from None


def _read_members(file: _Bounded) -> dict[str, bytes]:
    """The regular files of the archive, in memory; links, devices and unexpected names are ignored."""
    members: dict[str, bytes] = {}
    # A stream reads forward only: nothing in the archive can redirect the reader.
    with tarfile.open(fileobj=file, mode="r|") as archive:  # type: ignore[call-overload]
        for count, member in enumerate(archive):
            if count >= _MAX_MEMBERS:
                raise CaptureError(f"more than {_MAX_MEMBERS} members")
            folder, _, name = member.name.partition("/")
            if not member.isreg() or folder != _FOLDER or name in members:
                continue
            if member.size > _MAX_MEMBER_BYTES:
                raise CaptureError(f"{name} is larger than {_MAX_MEMBER_BYTES >> 20} MiB")
            content = archive.extractfile(member)
            assert content is not None, "regular files have content"
            members[name] = content.read()
    return members


def _decoded(members: dict[str, bytes]) -> Capture:
    if "manifest.json" not in members:
        raise CaptureError("it has no manifest")
    head = _json(members, "manifest.json", dict[str, Any])
    version = head.get("format")
    if version != FORMAT:
        raise CaptureError(f"its format is {reprlib.repr(version)}, and this gpuhealth reads format {FORMAT}")
    manifest = _json(members, "manifest.json", Manifest)
    if "readings.jsonl" not in members:
        raise CaptureError("it has no readings")
    rounds = tuple(_lines(members, "readings.jsonl", decode))
    if not rounds:
        raise CaptureError("it has no readings")
    if len(rounds) > MAX_ROUNDS:
        raise CaptureError(f"it has more than {MAX_ROUNDS} rounds")
    if any(_gpus(readings) > _MAX_GPUS for readings in rounds):
        raise CaptureError(f"it has more GPUs than a node can have, {_MAX_GPUS}")
    kernel_log = (
        tuple(_lines(members, "kernel.jsonl", msgspec.json.Decoder(KernelRecord).decode))
        if "kernel.jsonl" in members
        else None
    )
    times = [readings.time for readings in rounds] + [record.time for record in kernel_log or () if record.time]
    if not all(time.tzinfo and _FIRST_YEAR <= time.year <= _LAST_YEAR for time in times):
        raise CaptureError("it has times without a time zone, or of another age")
    absent = {
        "kernel.jsonl": "the capture has no kernel log",
        "settings.json": "the capture has no settings: those of this machine are used",
        "memory.json": "the capture has no memory of earlier rounds: a GPU that was gone already is not missed",
    }
    notes = [sentence for name, sentence in absent.items() if name not in members]
    return Capture(
        manifest=manifest,
        rounds=rounds,
        kernel_log=kernel_log,
        settings=_json(members, "settings.json", dict[str, Any]) if "settings.json" in members else None,
        memory=members.get("memory.json"),
        journal=tuple(_lines(members, "journal.jsonl", msgspec.json.Decoder(msgspec.Raw).decode))
        if "journal.jsonl" in members
        else None,
        notes=(*manifest.notes, *notes),
    )


def _gpus(readings: NodeReadings) -> int:
    nvidia = readings.of(NVIDIA)
    return 0 if isinstance(nvidia, Missing) else len(nvidia.nvml.gpus)


def _json(members: dict[str, bytes], name: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(members[name], type=kind)
    except JSON_ERRORS as error:
        raise CaptureError(f"{name} cannot be read: {_shown(error)}") from None


def _shown(error: Exception) -> str:
    """The text of an error, which may quote the file."""
    return printable(str(error)[:_ERROR_CHARACTERS])


def _lines(members: dict[str, bytes], name: str, decode_line: Callable[[bytes], T]) -> list[T]:
    lines = []
    for number, line in enumerate(members[name].split(b"\n"), 1):
        if line.strip():
            try:
                lines.append(decode_line(line))
            except JSON_ERRORS as error:
                raise CaptureError(f"line {number} of {name} cannot be read: {_shown(error)}") from None
    return lines
