"""`gpuhealth check`: every passive check once, on this machine or on a capture of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.output import COULD_NOT, DEGRADED, HEALTHY, UNHEALTHY, CommandError
from gpuhealth.cli.streams import standard

if TYPE_CHECKING:
    from gpuhealth.cli.single_run import Judgement, Selection
    from gpuhealth.monitors.settings import Settings


def command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    expected_gpus: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="How many GPUs there ought to be.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Only these finding codes, such as ecc.uncorrectable, 'ecc.*' or ecc; may repeat."
        ),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge this capture instead of this machine.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How far back the kernel log counts; else kmsg.lookback (10m)."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say also what things mean and what was checked.")
    ] = False,
    config: options.Config = None,
) -> None:
    """Check this machine's GPUs once.

    Exit code: 0 healthy, 1 degraded, 2 unhealthy, 3 unknown or could not check.
    """
    from gpuhealth.cli.single_run import Selection

    selection = Selection(only or [])
    back = None if since is None else options.duration(since, "--since")
    if replay:
        judgement, notes = _replayed(replay, config, expected_gpus, selection, back)
    else:
        judgement, notes = _looked(config, expected_gpus, selection, back)
    if as_json:
        import msgspec

        standard.write_line(msgspec.json.encode(judgement.verdict))
    else:
        from gpuhealth.cli import check_report as report

        report.show(judgement, notes, verbose=verbose, replay_of=str(replay) if replay else "")
    raise typer.Exit(_exit_code(judgement))


def _exit_code(judgement: Judgement) -> int:
    by_state = {"healthy": HEALTHY, "degraded": DEGRADED, "unhealthy": UNHEALTHY, "unknown": COULD_NOT}
    return by_state[judgement.verdict.verdict]


def _looked(
    config: Path | None, expected_gpus: int | None, selection: Selection, back: float | None
) -> tuple[Judgement, list[str]]:
    from gpuhealth.cli import single_run as judging
    from gpuhealth.cli import snapshot as look
    from gpuhealth.monitors.registry import unmatched_patterns

    settings = _expecting(options.load_settings(config), expected_gpus)
    back = settings.kmsg.lookback if back is None else back
    memory = look.remembered(settings)
    rounds, records = look.machine(settings, back)
    # That no agent has run here needs no word; that its journal cannot be read does.
    notes = [memory.problem] if memory.problem and not memory.absent else []
    notes += [f"the settings' findings.{pattern} fits no finding code" for pattern in unmatched_patterns(settings)]
    judgement = judging.judge(rounds, records, settings, look.memory(memory.checks), selection, back)
    seen = {(finding.code, finding.component) for finding in judgement.verdict.findings}
    for tracked in memory.held:
        held = tracked.finding
        current = tracked.boot_id == judgement.readings.boot_id and selection.takes(held.code)
        if current and (held.code, held.component) not in seen:
            notes.append(
                f"the agent still holds {held.code} since {held.first_seen:%Y-%m-%d %H:%M:%SZ}, which one look does"
                f" not show: {held.message}; clears when {held.clears_when}"
            )
    return judgement, notes


def _replayed(
    path: Path, config: Path | None, expected_gpus: int | None, selection: Selection, back: float | None
) -> tuple[Judgement, list[str]]:
    """Judged by the settings that are named, else by those that were in force where the capture was made."""
    from pydantic import ValidationError

    from gpuhealth.agent import capture
    from gpuhealth.cli import single_run as judging
    from gpuhealth.cli import snapshot as look
    from gpuhealth.monitors.settings import Settings

    try:
        taken = capture.load(path)
    except capture.CaptureError as error:
        raise CommandError(str(error)) from None
    notes = list(taken.notes)
    settings = options.load_settings(config)
    if config is None and taken.settings is not None:
        try:
            settings = Settings(**taken.settings)
        except (ValidationError, TypeError):
            notes.append("the settings in the capture are of another version: those of this machine are used")
    settings = _expecting(settings, expected_gpus)
    back = settings.kmsg.lookback if back is None else back
    rounds, records = list(taken.rounds), taken.kernel_log or ()
    if taken.kernel_log is None:
        rounds = [judging.without_kernel_log(readings) for readings in rounds]
    return judging.judge(rounds, records, settings, look.memory(taken.memory), selection, back), notes


def _expecting(settings: Settings, gpus: int | None) -> Settings:
    """The command line wins over file and environment."""
    return settings if gpus is None else settings.model_copy(update={"expected_gpus": gpus})
