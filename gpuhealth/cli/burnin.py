"""`gpuhealth burnin`: active tests on this machine."""

from __future__ import annotations

import enum
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.oom import go_first
from gpuhealth.cli.output import COULD_NOT, HEALTHY, UNHEALTHY, CommandError, near
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
    """How thorough."""

    QUICK = "quick"
    STANDARD = "standard"
    LONG = "long"


def command(
    level: Annotated[
        Level | None,
        typer.Option(help="quick is done within 1 min, standard within 5 min, long takes half an hour and more."),
    ] = None,
    tests: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these, such as exact,memory; else those of the level.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="DEVICES", help="all, cuda:0,1, or cpu and cpu:0,1 to try the tests out.")
    ] = None,
    duration: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long all tests work together, such as 10m.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with results and curves, in HTML.")
    ] = None,
    save: Annotated[
        bool,
        typer.Option(
            "--save", help="Leave the result in burnin.results_dir for the agent; so are all but manual runs."
        ),
    ] = False,
    reason: Annotated[
        str, typer.Option(metavar="WHY", help="Why it is run: manual, preflight, periodic, return.")
    ] = "manual",
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Draws the same operands again; else new ones in each run.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also on GPUs that other processes use.")] = False,
    config: options.Config = None,
) -> None:
    """Make the GPUs of this machine work, and see whether they do it right.

    Exit code: 0 passed, 2 failed, 3 could not test or was stopped.
    """
    import asyncio

    if reason == "manual":  # in a pod of its own a test that is ended for want of memory would be a failed one
        go_first()
    settings = options.load_settings(config)
    chosen = level or settings.burnin.level
    seconds = None if duration is None else options.duration(duration, "--duration")
    plan = _plan(settings, chosen, _names(tests), seconds, reason, seed)
    if report is not None and not report.parent.is_dir():
        raise CommandError(f"--report: there is no folder {report.parent}")
    result, curves = asyncio.run(_burnin(settings, plan, devices or settings.burnin.devices, force))
    if report is not None:
        _write_report(report, result, curves)
    unsaved = _save(result, settings.burnin.results_dir) if save or reason != "manual" else ""
    _show(result, as_json)
    if unsaved:
        raise CommandError(unsaved)
    raise typer.Exit(_exit_code(result))


def _names(tests: str | None) -> list[str]:
    """The tests that are named. Raises CommandError for one that is not known."""
    from gpuhealth.burnin.registry import TESTS

    names = [name.strip() for name in tests.split(",")] if tests else []
    for name in names:
        if name not in TESTS:
            raise CommandError(
                f"--tests: there is no test {name!r}{near(name, list(TESTS))}; known: {', '.join(TESTS)}"
            )
    return names


def _plan(
    settings: Settings, level: str, names: list[str], seconds: float | None, reason: str, seed: int | None
) -> Plan:
    """What to do, on targets that are still to be found. Raises CommandError."""
    from gpuhealth.burnin import levels
    from gpuhealth.burnin.run import Plan

    if seconds == 0:
        raise CommandError("--duration: no time to test in")
    return Plan(
        level=level,
        tests=levels.plan(level, names, seconds),
        targets=(),
        reason=reason,
        seed=secrets.randbelow(MAX_SEED) if seed is None else seed,
        faults=_faults(settings),
    )


def _write_report(file: Path, result: BurninRun, curves: Curves) -> None:
    from gpuhealth.burnin import html_report as page

    try:
        file.write_text(page.page(result, curves), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--report: cannot write {file}: {error.strerror}") from None


def _save(result: BurninRun, folder: Path) -> str:
    """Why the result could not be left for the agent; empty if it is."""
    from gpuhealth.burnin import results

    try:
        results.save(result, folder)
    except OSError as error:
        return f"the result cannot be left in {folder} for the agent: {error.strerror}"
    return ""


def _show(result: BurninRun, as_json: bool) -> None:
    if as_json:
        import msgspec

        standard.write_line(msgspec.json.encode(result))
    else:
        from gpuhealth.cli import burnin_report as tested

        tested.show(result)


def _exit_code(result: BurninRun) -> int:
    from gpuhealth.model.burnin_run import TestStatus

    return {TestStatus.PASSED: HEALTHY, TestStatus.FAILED: UNHEALTHY}.get(result.status, COULD_NOT)


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
            async with progress.shown(run):
                result = await run.run()
    except BurninError as error:
        raise CommandError(str(error)) from None
    except asyncio.CancelledError:
        raise CommandError("stopped before the first test began") from None
    return result, run.curves()


async def _targets(sampler: Sampler, devices: str, proc: Path, force: bool) -> tuple[Target, ...]:
    """The devices to be tested. Raises BurninError where there are none, or others use them."""
    from gpuhealth.burnin import targets as choosing
    from gpuhealth.burnin.run import cuda_devices

    _need_torch()
    shown = await cuda_devices() if choosing.needs_cuda(devices) else ()
    targets = choosing.targets(devices, shown, sampler.gpus)
    for target in targets:
        users = choosing.users(sampler.gpus[target.gpu], proc) if target.gpu in sampler.gpus else []
        if users and not force:
            raise choosing.BurninError(
                f"{target.device} ({target.gpu}) is in use by {', '.join(users)}: stop them, or test all the same with"
                " --force"
            )
    return targets


def _need_torch() -> None:
    """Looked for, not loaded: only the tests' processes do that."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise CommandError("the tests need PyTorch, which is not installed: pip install 'gpuhealth[burnin]'")
