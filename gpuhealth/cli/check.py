"""`gpuhealth check`: runs every passive check once, on this machine or on a capture of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.output import DEGRADED, HEALTHY, UNHEALTHY, UNKNOWN, CommandError
from gpuhealth.cli.streams import standard

if TYPE_CHECKING:
    from gpuhealth.cli.single_run import CodeFilter, RunResult
    from gpuhealth.cli.snapshot import AgentJournal
    from gpuhealth.monitors.settings import Settings


def command(
    as_json: options.Json = False,
    expected_gpus: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Number of GPUs that this machine should have.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Run only the checks for these finding codes, such as ecc.uncorrectable, 'ecc.*' or ecc; repeatable.",
        ),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check this capture instead of this machine.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Judge exactly the last DURATION of the kernel log. Default: the setting kmsg.lookback (10m), and the"
            " whole boot for faults that only a reset or a reboot ends.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print the meaning of findings, and all checks that ran.")
    ] = False,
    config: options.Config = None,
) -> None:
    """Check this machine's GPUs once.

    Exit code: 0 healthy, 1 degraded, 2 unhealthy, 3 unknown or could not check.
    """
    from gpuhealth.cli.single_run import CodeFilter

    code_filter = CodeFilter(only or [])
    since_seconds = None if since is None else options.duration(since, "--since")
    if replay:
        result, notes = _check_capture(replay, config, expected_gpus, code_filter, since_seconds)
    else:
        result, notes = _check_machine(config, expected_gpus, code_filter, since_seconds)
    if as_json:
        import msgspec

        standard.write_line(msgspec.json.encode(msgspec.structs.asdict(result.verdict) | {"notes": notes}))
    else:
        from gpuhealth.cli import check_report

        check_report.show(result, notes, verbose=verbose, replay_of=str(replay) if replay else "")
    raise typer.Exit(_exit_code(result))


def _exit_code(result: RunResult) -> int:
    by_state = {"healthy": HEALTHY, "degraded": DEGRADED, "unhealthy": UNHEALTHY, "unknown": UNKNOWN}
    return by_state[result.verdict.verdict]


def _check_machine(
    config: Path | None, expected_gpus: int | None, code_filter: CodeFilter, since_seconds: float | None
) -> tuple[RunResult, list[str]]:
    from gpuhealth.cli import single_run, snapshot
    from gpuhealth.monitors.registry import unmatched_patterns

    settings = _with_expected_gpus(options.load_settings(config), expected_gpus)
    journal = snapshot.read_journal(settings)
    rounds, records = snapshot.read_machine(settings)
    # No note where no agent has run here; a journal that cannot be read is worth one.
    notes = [journal.problem] if journal.problem and not journal.absent else []
    notes += [f"setting findings.{pattern} matches no finding code" for pattern in unmatched_patterns(settings)]
    notes += _notes_on_settings(settings)
    memory = snapshot.load_memory(journal.checks)
    result = single_run.judge(rounds, records, settings, memory, code_filter, since_seconds, journal.ended)
    return result, [*notes, *result.notes, *_notes_on_active_findings(journal, result, code_filter)]


def _notes_on_settings(settings: Settings) -> list[str]:
    """What the settings hide: findings that are ignored or given another severity, and monitors that do not run."""
    hidden = {
        "findings ignored by settings": [code for code, each in settings.findings.items() if each.ignore],
        "severity of findings set by settings": [code for code, each in settings.findings.items() if each.severity],
        "monitors disabled by settings": [name for name, each in settings.monitors.items() if not each.enabled],
    }
    return [f"{what}: {', '.join(sorted(names))}" for what, names in hidden.items() if names]


def _notes_on_active_findings(journal: AgentJournal, result: RunResult, code_filter: CodeFilter) -> list[str]:
    """Findings of this boot that the agent still holds active, and a single run cannot see."""
    seen = {(finding.code, finding.component) for finding in result.verdict.findings}
    active = [tracked.finding for tracked in journal.active if tracked.boot_id == result.readings.boot_id]
    return [
        f"the agent still reports {finding.code} since {finding.first_seen:%Y-%m-%d %H:%M:%SZ}, which a single run does"
        f" not show: {finding.message}; clears when {finding.clears_when}"
        for finding in active
        if code_filter.matches(finding.code) and (finding.code, finding.component) not in seen
    ]


def _check_capture(
    path: Path, config: Path | None, expected_gpus: int | None, code_filter: CodeFilter, since_seconds: float | None
) -> tuple[RunResult, list[str]]:
    """Use the settings given by `--config`, else those in the capture."""
    from pydantic import ValidationError

    from gpuhealth.agent import capture
    from gpuhealth.cli import single_run, snapshot
    from gpuhealth.monitors.settings import Settings

    try:
        captured = capture.load(path)
    except capture.CaptureError as error:
        raise CommandError(str(error)) from None
    notes = list(captured.notes)
    settings = options.load_settings(config)
    if config is None and captured.settings is not None:
        try:
            settings = Settings(**captured.settings)
            notes.append("judged with the settings of the capture; --config FILE judges with others")
        except (ValidationError, TypeError):
            notes.append("the settings in the capture are of another version; this machine's settings are used instead")
    settings = _with_expected_gpus(settings, expected_gpus)
    notes += _notes_on_settings(settings)
    rounds, records = list(captured.rounds), captured.kernel_log or ()
    if captured.kernel_log is None:
        rounds = [single_run.without_kernel_log(readings) for readings in rounds]
    memory = snapshot.load_memory(captured.memory)
    ended = snapshot.ended_in(captured.journal or ())
    result = single_run.judge(rounds, records, settings, memory, code_filter, since_seconds, ended)
    return result, [*notes, *result.notes]


def _with_expected_gpus(settings: Settings, gpus: int | None) -> Settings:
    """The command line takes precedence over file and environment."""
    return settings if gpus is None else settings.model_copy(update={"expected_gpus": gpus})
