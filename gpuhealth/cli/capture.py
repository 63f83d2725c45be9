"""`gpuhealth capture`: what this machine tells of itself, in one file, to be judged elsewhere by `check --replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuhealth.cli import options
from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from gpuhealth.agent.capture import Capture

_ALL = float("inf")  # of the kernel log: what is left of this boot


def command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The tar.gz to write.")],
    rounds: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Read so many times.")] = 1,
    interval: Annotated[str, typer.Option(metavar="DURATION", help="Time between two rounds.")] = "10s",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
    config: options.Config = None,
) -> None:
    """Write readings, kernel log, settings and journal into one file.

    It can be judged anywhere: gpuhealth check --replay FILE
    """
    pause = options.duration(interval, "--interval")
    settings = options.load_settings(config)
    if output.exists() and not force:
        raise CommandError(f"{output} exists already; --force replaces it")
    if not output.parent.is_dir():
        raise CommandError(f"cannot write {output}: there is no folder {output.parent}")

    from gpuhealth.agent import capture

    taken = _taken(settings, rounds, pause)
    try:
        size = capture.save(taken, output, overwrite=force)
    except capture.CaptureError as error:
        raise CommandError(str(error)) from None
    from gpuhealth.cli.wording import counted

    lines = counted(len(taken.kernel_log or ()), "kernel-log record")
    typer.echo(f"Wrote {output}: {counted(len(taken.rounds), 'round')}, {lines}, {max(1, size >> 10)} KiB.")
    for note in taken.manifest.notes:
        typer.echo(f"note: {note}")


def _taken(settings: Any, rounds: int, pause: float) -> Capture:
    import platform

    import msgspec

    from gpuhealth import __version__
    from gpuhealth.agent import capture
    from gpuhealth.cli import snapshot as look
    from gpuhealth.model.missing import Missing
    from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
    from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA

    memory = look.remembered(settings, with_entries=True)
    readings, records = look.machine(settings, _ALL, rounds, pause)
    last = readings[-1]
    log = last.of(KERNEL_LOG)
    notes = [f"the kernel log could not be read: {log}"] if isinstance(log, Missing) else []
    notes += [f"of the agent's journal nothing is here: {memory.problem}"] if memory.problem else []
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
        memory=memory.checks,
        journal=None if memory.entries is None else tuple(msgspec.Raw(encode(entry)) for entry in memory.entries),
    )
