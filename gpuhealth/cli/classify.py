"""`gpuhealth classify`: reads kernel-log lines, and prints a JSON object for each line with a known meaning."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, Annotated, cast

import typer

from gpuhealth.cli.output import CommandError
from gpuhealth.runtime.text import printable

_CHUNK = 1 << 18  # bytes
_SHOWN = 120  # characters of a line that was not understood


def command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Log file; -: standard input.")] = "-",
) -> None:
    """Classify kernel-log lines, as JSON lines.

    Prints one object for each line with a known meaning. Reads raw /dev/kmsg records, dmesg, syslog, journalctl and the
    logs of shippers and viewers in all their formats, also mixed, quoted or compressed:
    dmesg | gpuhealth classify

    Exit code: 0 when the whole log was read, whatever it holds; 3 when it could not be read, or when a line with an XID
    or SXid was not understood, which standard error then says.
    """
    try:
        if file == "-":
            if sys.stdin is None:
                raise CommandError("standard input is closed: name a file, or pipe a log in")
            if sys.stdin.isatty():
                typer.echo("Reading standard input; end it with Ctrl-D.", err=True)
            _classify(sys.stdin.buffer, "standard input")
        else:
            with open(file, "rb") as log:  # noqa: PTH123 - the name as given
                _classify(log, file)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror or error}") from None


def _classify(log: IO[bytes], name: str) -> None:
    """Print what is found in the log. Raises CommandError where it was not read to the end, or not understood."""
    import msgspec

    from gpuhealth.kernel_log.files import UnreadableError, text_of
    from gpuhealth.kernel_log.formats import KernelLogText
    from gpuhealth.monitors.registry import kernel_log_parser

    write, encode = sys.stdout.buffer.write, msgspec.json.Encoder().encode
    text = KernelLogText(kernel_log_parser())
    try:
        for found in text.events(_lines(text_of(log))):
            write(encode(found.described()) + b"\n")
    except UnreadableError as error:
        raise CommandError(f"cannot read {printable(name)}: {error}") from None
    if text.unread:
        number, line = text.first_unread
        shortened = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
        lines = "1 line" if text.unread == 1 else f"{text.unread} lines"
        raise CommandError(
            f"{lines} with an XID or SXid could not be understood; the first is line {number}: {printable(shortened)}"
        )


def _lines(log: IO[bytes]) -> Iterator[bytes]:
    """The lines of a log as they arrive. Results so far are written before waiting for more input."""
    parts: list[bytes] = []
    while chunk := cast("bytes", log.read1(_CHUNK)):  # type: ignore[attr-defined]
        head, newline, rest = chunk.rpartition(b"\n")
        if newline:
            yield from (b"".join(parts) + head).split(b"\n")
            parts = [rest] if rest else []
        else:
            parts.append(rest)
        sys.stdout.flush()
    if parts:
        yield b"".join(parts)
