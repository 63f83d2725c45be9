"""The bytes of a log from a file or pipe: plain, compressed, or in UTF-16; other binary files are refused."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_GZIP, _XZ, _BZIP2, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh", b"\x28\xb5\x2f\xfd"
_BINARY = (  # magic bytes at an offset, what it is, and how its text is had
    (0, b"LPKSHHRH", "a journal file", "use journalctl -o short --file=FILE | gpuhealth classify"),
    (257, b"ustar", "a tar archive", "unpack it, or use tar -xOf FILE | gpuhealth classify"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it, or use unzip -p FILE | gpuhealth classify"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (0, b"\x7fELF", "a program or a crash dump", "use dmesg --file or crash to get the log out of it"),
    (0, b"KDUMP   ", "a crash dump", "use makedumpfile --dump-dmesg FILE OUT"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "use lz4 -dc FILE | gpuhealth classify"),
    (0, b"%PDF-", "a PDF document", "copy its text"),
    (0, b"SQLite format 3\x00", "a database", "name a text file"),
)
_PEEK = 512
_CHUNK = 1 << 17
_MOST_LAYERS = 4  # of compression: a bound, since each may hold the next


class UnreadableError(Exception):
    """The data is no text of a log, or damaged; the text says what it is, and how its text is had."""


def text_of(log: IO[bytes]) -> io.BufferedReader:
    """The text in UTF-8 in a log. Raises UnreadableError and OSError, as does reading the result."""
    text = log if isinstance(log, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", log))
    for _ in range(_MOST_LAYERS):
        opened = _decompressed(text, _peek(text))
        if opened is None:
            break
        text = opened
    head = _peek(text)
    for offset, magic, what, remedy in _BINARY:
        if head[offset : offset + len(magic)] == magic:
            raise UnreadableError(f"this is {what}, not the text of a log: {remedy}")
    encoding = _wide_encoding(head)
    return io.BufferedReader(_Recoded(text, encoding)) if encoding else text


def _decompressed(log: io.BufferedReader, head: bytes) -> io.BufferedReader | None:
    """What is compressed in a log that begins with these bytes; None where it is not compressed."""
    if head.startswith(_GZIP):
        return _reader(gzip.GzipFile(fileobj=log), EOFError, zlib.error, gzip.BadGzipFile)
    if head.startswith(_XZ):
        return _reader(lzma.LZMAFile(log), EOFError, lzma.LZMAError)
    if head.startswith(_BZIP2) and head[3:4].isdigit():
        return _reader(bz2.BZ2File(log), EOFError, OSError)
    if head.startswith(_ZSTD):
        return _zstd(log)
    return None


def _peek(log: io.BufferedReader) -> bytes:
    """The first bytes, without taking them; of a pipe what its writer has written so far."""
    return log.peek(_PEEK)[:_PEEK]


def _reader(stream: object, *errors: type[Exception]) -> io.BufferedReader:
    return io.BufferedReader(_Decompressed(cast("io.BufferedReader", stream), errors))


def _zstd(log: io.BufferedReader) -> io.BufferedReader:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise UnreadableError(
            "this is compressed with zstd, and the package backports.zstd is not installed: "
            "use zstd -dc FILE | gpuhealth classify"
        ) from None
    return _reader(zstd.ZstdFile(log), EOFError, zstd.ZstdError)


def _wide_encoding(head: bytes) -> str:
    """utf-16 or utf-32 if the text is encoded so, as Windows writes it; empty for one byte a character."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) and head[4:5]:
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in head[2:64]:
        return "utf-16"
    even, odd = head[0:64:2], head[1:64:2]
    if len(odd) >= 8 and odd.count(0) > len(odd) * 0.8 and even.count(0) == 0:
        return "utf-16-le"
    if len(odd) >= 8 and even.count(0) > len(even) * 0.8 and odd.count(0) == 0:
        return "utf-16-be"
    return ""


class _Decompressed(io.RawIOBase):
    """A stream that a decompressor reads, with its errors as UnreadableError."""

    def __init__(self, stream: io.BufferedReader, errors: tuple[type[Exception], ...]) -> None:
        self._stream = stream
        self._errors = errors

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills the buffer with what can be decompressed at once; 0 at the end."""
        view = memoryview(buffer).cast("B")
        try:
            data = self._stream.read1(len(view))
        except self._errors as error:
            raise UnreadableError(f"its compressed data is damaged or cut ({error})") from None
        view[: len(data)] = data
        return len(data)


class _Recoded(io.RawIOBase):
    """A stream in UTF-8, from one in another encoding."""

    def __init__(self, log: io.BufferedReader, encoding: str) -> None:
        self._log = log
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills the buffer with what has arrived; 0 at the end."""
        while not self._rest:
            chunk = self._log.read1(_CHUNK)
            self._rest = self._decoder.decode(chunk, final=not chunk).encode("utf-8", "replace")
            if not chunk:
                break
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
