"""The standard streams: results on standard output, everything else on standard error, whatever state they are in.

With `--json` nothing but the result may reach standard output, whoever writes: so the result has a descriptor of its
own, and what a library or a child process writes to descriptor 1 goes to standard error.
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
_MOST_DIGITS = 4  # of a terminal's width or height


class OutputError(CommandError):
    """Standard output cannot be written; the text is one sentence."""


class _Results(io.FileIO):
    """Where results go."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from None


class _Remarks(io.FileIO):
    """Standard error. Where it cannot be written nobody reads it, and that must not change what the command does."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _Standard:
    """The streams of this process."""

    def __init__(self) -> None:
        self.absent = False  # standard output was closed when the process began
        self.written = False  # at least a line of JSON
        self._results: IO[bytes] | None = None

    def prepare(self, *, as_json: bool) -> None:
        """Makes sys.stdout and sys.stderr usable, before anything is written; `as_json` is for `write_line`."""
        self.absent = sys.stdout is None
        for number in (_IN, _OUT, _ERR):
            _occupy(number)  # or a file that is opened later would become standard output
        for name in _SIZES:  # libraries read them, and fail on what is no number to int()
            size = os.environ.get(name, "0")
            if not (size.isascii() and size.isdecimal() and len(size) <= _MOST_DIGITS and int(size)):
                os.environ.pop(name, None)
        encodings = [stream.encoding if stream else "utf-8" for stream in (sys.stdout, sys.stderr)]
        self._results = io.BufferedWriter(_Results(os.dup(_OUT) if as_json else _OUT, "w", closefd=False))
        remarks = io.BufferedWriter(_Remarks(_ERR, "w", closefd=False))
        sys.stderr = _text(remarks, encodings[1], lines=True)
        if as_json:
            os.dup2(_ERR, _OUT)
            sys.stdout = sys.stderr
        else:
            sys.stdout = _text(self._results, encodings[0], lines=os.isatty(_OUT))

    def write_line(self, line: bytes) -> None:
        """A line of the result, in JSON."""
        assert self._results is not None, "prepare() comes first"
        self.written = True
        self._results.write(line + b"\n")

    def flush(self) -> None:
        """Writes what is waiting. Raises OutputError or BrokenPipeError."""
        sys.stdout.flush()
        if self._results is not None:
            self._results.flush()

    def discard(self) -> None:
        """Gives up what cannot be written, or the interpreter would try once more when it ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _OUT)
        if self._results is not None:
            os.dup2(nowhere, self._results.fileno())
        os.close(nowhere)


standard = _Standard()


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _text(stream: IO[bytes], encoding: str, *, lines: bool) -> io.TextIOWrapper:
    """A text stream that writes what its encoding lacks, such as "°" in ASCII, as "?"."""
    return io.TextIOWrapper(stream, encoding=encoding, errors="replace", line_buffering=lines)
