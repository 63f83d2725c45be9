"""`gpuhealth capture`: stores readings of this machine in one file, for `check --replay` on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from gpuhealth.agent.capture import Capture
    from gpuhealth.monitors.settings import Settings

_MAX_ROUNDS = 1000  # also the most that `check --replay` accepts


def command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="tar.gz file to write.")],
    rounds: Annotated[
        int, typer.Option(min=1, max=_MAX_ROUNDS, metavar="N", help="Number of times to read the machine.")
    ] = 1,
    interval: Annotated[str, typer.Option(metavar="DURATION", help="Time between two rounds.")] = "10s",
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE if it exists.")] = False,
    config: options.Config = None,
) -> None:
    """Store readings of this machine in one file.

    The file also holds kernel log, settings and agent journal. To check it on any machine:
    gpuhealth check --replay FILE
    """
    pause = options.duration(interval, "--interval")
    settings = options.load_settings(config)
    if output.exists() and not force:
        raise CommandError(f"{output} already exists; --force overwrites it")
    if not output.parent.is_dir():
        raise CommandError(f"cannot write {output}: there is no folder {output.parent}")

    from gpuhealth.agent import capture

    content = _capture(settings, rounds, pause)
    try:
        size = capture.save(content, output, overwrite=force)
    except capture.CaptureError as error:
        raise CommandError(str(error)) from None
    from gpuhealth.cli.wording import counted

    lines = counted(len(content.kernel_log or ()), "kernel-log record")
    typer.echo(f"Wrote {output}: {counted(len(content.rounds), 'round')}, {lines}, {max(1, size >> 10)} KiB.")
    for note in content.manifest.notes:
        typer.echo(f"note: {note}")


def _capture(settings: Settings, rounds: int, pause: float) -> Capture:
    import platform

    import msgspec

    from gpuhealth import __version__
    from gpuhealth.agent import capture
    from gpuhealth.cli import snapshot
    from gpuhealth.model.missing import Missing
    from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
    from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA

    journal = snapshot.read_journal(settings, with_entries=True)
    readings, records = snapshot.read_machine(settings, rounds, pause)
    last = readings[-1]
    log = last.of(KERNEL_LOG)
    notes = [f"the kernel log could not be read: {log}"] if isinstance(log, Missing) else []
    notes += [f"agent journal not included: {journal.problem}"] if journal.problem else []
    if len(readings) < rounds:
        notes.append(f"the driver stopped answering in round {len(readings)} of {rounds}")
    versions = {"gpuhealth": __version__, "python": platform.python_version(), "kernel": platform.release()}
    nvidia = last.of(NVIDIA)
    if not isinstance(nvidia, Missing) and isinstance(nvidia.nvml.driver_version, str):
        versions["driver"] = nvidia.nvml.driver_version
    encode = msgspec.json.encode
    return capture.Capture(
        manifest=capture.Manifest(capture.FORMAT, last.node, last.time, last.boot_id, versions, tuple(notes)),
        rounds=tuple(readings),
        kernel_log=None if isinstance(log, Missing) else capture.newest(records),
        settings=settings.model_dump(mode="json"),
        memory=journal.checks,
        journal=None if journal.entries is None else tuple(msgspec.Raw(encode(entry)) for entry in journal.entries),
    )
