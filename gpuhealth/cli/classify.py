"""`gpuhealth classify`: reads kernel-log lines, and prints a JSON object for each line with a known meaning."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, Annotated, cast

import typer

from gpuhealth.cli.output import CommandError

_CHUNK = 1 << 18  # bytes


def command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Log file; -: standard input.")] = "-",
) -> None:
    """Classify kernel-log lines, as JSON lines.

    Prints one object for each line with a known meaning. Reads raw /dev/kmsg records, dmesg, syslog and journalctl
    output in all their formats, also mixed:
    dmesg | gpuhealth classify
    """
    try:
        if file == "-":
            if sys.stdin is None:
                raise CommandError("standard input is closed: name a file, or pipe a log in")
            if sys.stdin.isatty():
                typer.echo("Reading standard input; end it with Ctrl-D.", err=True)
            _classify(sys.stdin.buffer)
        else:
            with open(file, "rb") as log:  # noqa: PTH123 - the name as given
                _classify(log)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None


def _classify(log: IO[bytes]) -> None:
    import msgspec

    from gpuhealth.kernel_log import formats
    from gpuhealth.monitors.registry import kernel_log_parser

    write, encode = sys.stdout.buffer.write, msgspec.json.Encoder().encode
    for found in formats.classify(_lines(log), kernel_log_parser()):
        write(encode(found) + b"\n")


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
