"""The standard streams: results on standard output, everything else on standard error, even if one is closed or full.

With `--json` only the result may reach standard output. So the result gets a descriptor of its own, and all output of
libraries and child processes to descriptor 1 goes to standard error.
"""

from __future__ import annotations

import io
import os
import sys
from typing import IO, TYPE_CHECKING

from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_IN, _OUT, _ERR = 0, 1, 2
_SIZES = ("COLUMNS", "LINES")
_MAX_DIGITS = 4  # of a terminal's width or height


class OutputError(CommandError):
    """Standard output cannot be written; the text is one sentence with the reason."""


class _ResultFile(io.FileIO):
    """Standard output, with errors as OutputError."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from None


class _ErrorFile(io.FileIO):
    """Standard error, ignoring write errors: there is no reader then, and the command must not behave differently."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _StandardStreams:
    """The standard streams of this process."""

    def __init__(self) -> None:
        self.stdout_closed = False  # when the process started
        self.has_result = False  # a line of JSON was written
        self._results: IO[bytes] | None = None

    def prepare(self, *, as_json: bool) -> None:
        """Make sys.stdout and sys.stderr usable, before anything is written; `as_json` if `write_line` will be used."""
        self.stdout_closed = sys.stdout is None
        for number in (_IN, _OUT, _ERR):
            _occupy(number)  # else a file opened later would become standard output
        for name in _SIZES:  # libraries read them, and fail where int() does
            size = os.environ.get(name, "0")
            if not (size.isascii() and size.isdecimal() and len(size) <= _MAX_DIGITS and int(size)):
                os.environ.pop(name, None)
        encodings = [stream.encoding if stream else "utf-8" for stream in (sys.stdout, sys.stderr)]
        self._results = io.BufferedWriter(_ResultFile(os.dup(_OUT) if as_json else _OUT, "w", closefd=False))
        errors = io.BufferedWriter(_ErrorFile(_ERR, "w", closefd=False))
        sys.stderr = _text(errors, encodings[1], lines=True)
        if as_json:
            os.dup2(_ERR, _OUT)
            sys.stdout = sys.stderr
        else:
            sys.stdout = _text(self._results, encodings[0], lines=os.isatty(_OUT))

    def write_line(self, line: bytes) -> None:
        """Write a line of JSON to the result. Raises OutputError or BrokenPipeError."""
        assert self._results is not None, "call prepare() first"
        self.has_result = True
        self._results.write(line + b"\n")

    def flush(self) -> None:
        """Write all buffered output. Raises OutputError or BrokenPipeError."""
        sys.stdout.flush()
        if self._results is not None:
            self._results.flush()

    def discard(self) -> None:
        """Discard output that cannot be written, else the interpreter would try again when it exits."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, _OUT)
        if self._results is not None:
            os.dup2(null, self._results.fileno())
        os.close(null)


standard = _StandardStreams()


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _text(stream: IO[bytes], encoding: str, *, lines: bool) -> io.TextIOWrapper:
    """A text stream that writes "?" for characters that its encoding lacks, such as "°" in ASCII."""
    return io.TextIOWrapper(stream, encoding=encoding, errors="replace", line_buffering=lines)
