"""`gpuhealth burnin`: runs active tests on this machine's GPUs."""

from __future__ import annotations

import enum
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.oom import prefer_for_oom_kill
from gpuhealth.cli.output import HEALTHY, UNHEALTHY, UNKNOWN, CommandError, did_you_mean
from gpuhealth.cli.streams import standard

if TYPE_CHECKING:
    from gpuhealth.burnin.protocol import Fault
    from gpuhealth.burnin.run import Curves, Plan, Run
    from gpuhealth.burnin.sampling import Sampler
    from gpuhealth.burnin.targets import Target
    from gpuhealth.model.burnin_run import BurninRun
    from gpuhealth.monitors.settings import Settings

MAX_SEED = 2**31 - 1


class Level(enum.StrEnum):
    """How long and how thoroughly to test."""

    QUICK = "quick"
    STANDARD = "standard"
    LONG = "long"


def command(
    level: Annotated[
        Level | None,
        typer.Option(help="quick takes up to 1 min, standard up to 5 min, long at least 30 min."),
    ] = None,
    tests: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Run only these tests, such as exact,memory; default: those of the level."),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICES", help="Devices to test: all, cuda:0,1, or (to try the tests without a GPU) cpu, cpu:0,1."
        ),
    ] = None,
    duration: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Total time for all tests, such as 10m.")
    ] = None,
    as_json: options.Json = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML report with results and curves to FILE.")
    ] = None,
    save: Annotated[
        bool,
        typer.Option(
            "--save", help="Save the result in burnin.results_dir for the agent; implied unless --reason is manual."
        ),
    ] = False,
    reason: Annotated[
        str, typer.Option(metavar="REASON", help="Reason to store in the result: manual, preflight, periodic, return.")
    ] = "manual",
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of the operands; default: a new one for each run."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also test GPUs that other processes use.")] = False,
    config: options.Config = None,
) -> None:
    """Stress-test this machine's GPUs and verify the results.

    Exit code: 0 passed, 2 failed, 3 stopped or could not test.
    """
    import asyncio

    settings = options.load_settings(config)
    chosen = level or settings.burnin.level
    seconds = None if duration is None else options.duration(duration, "--duration")
    plan = _plan(settings, chosen, _names(tests), seconds, reason, seed)
    if report is not None and not report.parent.is_dir():
        raise CommandError(f"--report: there is no directory {report.parent}")
    if reason == "manual":  # in a pod of its own, a test killed by the OOM killer would count as failed
        prefer_for_oom_kill()
    result, curves = asyncio.run(_burnin(settings, plan, devices or settings.burnin.devices, force))
    if report is not None:
        _write_report(report, result, curves)
    unsaved = _save(result, settings.burnin.results_dir) if save or reason != "manual" else ""
    _show(result, as_json)
    if unsaved:
        raise CommandError(unsaved)
    raise typer.Exit(_exit_code(result))


def _names(tests: str | None) -> list[str]:
    """The names in `--tests`. Raises CommandError for an unknown one."""
    from gpuhealth.burnin.registry import TESTS

    names = [name.strip() for name in tests.split(",")] if tests else []
    for name in names:
        if name not in TESTS:
            raise CommandError(
                f"--tests: there is no test {name!r}{did_you_mean(name, list(TESTS))}; tests: {', '.join(TESTS)}"
            )
    return names


def _plan(
    settings: Settings, level: str, names: list[str], seconds: float | None, reason: str, seed: int | None
) -> Plan:
    """The plan, without its targets, which need the driver. Raises CommandError."""
    from gpuhealth.burnin import levels
    from gpuhealth.burnin.run import Plan

    if seconds == 0:
        raise CommandError("--duration: must be longer than 0 s")
    return Plan(
        level=level,
        tests=levels.plan(level, names, seconds),
        targets=(),
        reason=reason,
        seed=secrets.randbelow(MAX_SEED) if seed is None else seed,
        faults=_faults(settings),
    )


def _write_report(file: Path, result: BurninRun, curves: Curves) -> None:
    from gpuhealth.burnin import html_report

    try:
        file.write_text(html_report.render(result, curves), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--report: cannot write {file}: {error.strerror}") from None


def _save(result: BurninRun, folder: Path) -> str:
    """Save the result for the agent; returns a sentence where that failed, else an empty string."""
    from gpuhealth.burnin import results

    try:
        results.save(result, folder)
    except OSError as error:
        return f"cannot save the result in {folder} for the agent: {error.strerror}"
    return ""


def _show(result: BurninRun, as_json: bool) -> None:
    if as_json:
        import msgspec

        standard.write_line(msgspec.json.encode(result))
    else:
        from gpuhealth.cli import burnin_report

        burnin_report.show(result)


def _exit_code(result: BurninRun) -> int:
    from gpuhealth.model.burnin_run import TestStatus

    return {TestStatus.PASSED: HEALTHY, TestStatus.FAILED: UNHEALTHY}.get(result.status, UNKNOWN)


def _faults(settings: Settings) -> tuple[Fault, ...]:
    import msgspec

    from gpuhealth.burnin.protocol import Fault

    try:
        return msgspec.convert(settings.burnin.faults, tuple[Fault, ...])
    except msgspec.ValidationError as error:
        raise CommandError(f"configuration: burnin.faults: {error}") from None


async def _burnin(settings: Settings, plan: Plan, devices: str, force: bool) -> tuple[BurninRun, Curves]:
    import asyncio
    import signal

    import msgspec

    from gpuhealth.burnin.run import Run
    from gpuhealth.burnin.sampling import Sampler
    from gpuhealth.burnin.targets import BurninError
    from gpuhealth.cli import progress

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    run: Run | None = None

    def stop() -> None:
        if run is not None:
            run.stop()
        elif task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    sampler = Sampler(settings)
    try:
        async with sampler.sampling():
            targets = await _targets(sampler, devices, settings.roots.proc, force)
            run = Run(msgspec.structs.replace(plan, targets=targets), settings, sampler)
            async with progress.progress_shown(run):
                result = await run.run()
    except BurninError as error:
        raise CommandError(str(error)) from None
    except asyncio.CancelledError:
        raise CommandError("stopped before the first test started") from None
    return result, run.curves()


async def _targets(sampler: Sampler, devices: str, proc: Path, force: bool) -> tuple[Target, ...]:
    """The devices to test. Raises BurninError where there are none, or other processes use them."""
    from gpuhealth.burnin.run import cuda_devices
    from gpuhealth.burnin.targets import BurninError, needs_cuda, processes_using, targets

    _need_torch()
    cuda = await cuda_devices() if needs_cuda(devices) else ()
    chosen = targets(devices, cuda, sampler.gpus)
    for target in chosen:
        users = processes_using(sampler.gpus[target.gpu], proc) if target.gpu in sampler.gpus else []
        if users and not force:
            raise BurninError(
                f"{target.device} ({target.gpu}) is in use by {', '.join(users)}: stop them, or test anyway with"
                " --force"
            )
    return chosen


def _need_torch() -> None:
    """Raise CommandError where PyTorch is not installed. It is not imported: only the worker processes do that."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise CommandError("the tests need PyTorch, which is not installed: pip install 'gpuhealth[burnin]'")
