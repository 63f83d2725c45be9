"""From readings to a verdict without the agent: the same checks and rules, but without waiting times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import msgspec

from gpuhealth import monitors as checks
from gpuhealth.cli.output import CommandError, did_you_mean
from gpuhealth.kernel_log.parser import KernelLog
from gpuhealth.model.code import Clears
from gpuhealth.model.finding import NotChecked, Outcome
from gpuhealth.model.history import History
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.tracker import Findings, Quarantine
from gpuhealth.model.verdict import Coverage, NotCovered, State, Verdict
from gpuhealth.monitors.kernel_log import checks as kernel
from gpuhealth.monitors.nvidia.checks.xid import COVERAGE as LOG_COVERAGE
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import Settings

_KERNEL_EVENTS = frozenset(code.name for code in kernel.EVENTS)
_NO_GPU = "There is no NVIDIA GPU and no NVIDIA driver on this machine: nothing was checked."
_LONGEST_SECONDS = 10 * 365 * 86400.0
_ABSENT = "no GPU and no driver on this machine (node)"
_NEVER_LOADED = (MissingReason.NOT_INSTALLED, MissingReason.NOT_LOADED)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict of a single run, and what it was derived from."""

    verdict: Verdict
    readings: NodeReadings  # of the last round
    settings: Settings
    quarantine: Quarantine = Quarantine()  # what the agent would do
    nothing_to_check: str = ""  # one sentence, where the machine has no GPU and no driver


class CodeFilter:
    """The finding codes that `--only` selects: codes, shell patterns, or a subject (`ecc` for `ecc.*`)."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises CommandError for a pattern that matches no code: a misspelt check must not pass."""
        self.patterns = patterns
        known = checks.known_codes()
        events = [code for code in known if _is_event(code)]
        self._selects_events = any(_matches(code, pattern) for code in events for pattern in patterns)
        for pattern in patterns:
            if not any(_matches(code, pattern) for code in known) and not checks.exists(pattern):
                subjects = sorted({code.partition(".")[0] for code in known})
                raise CommandError(
                    f"--only {pattern}: no such finding code{did_you_mean(pattern, [*known, *subjects])}"
                )

    def matches(self, code: str) -> bool:
        """Whether the code is selected; without patterns, all codes are.

        Selecting codes that only the kernel log can raise also selects the check that the log could be read.
        """
        if not self.patterns or (code == LOG_COVERAGE.name and self._selects_events):
            return True
        return any(_matches(code, pattern) for pattern in self.patterns)


def _is_event(code: str) -> bool:
    return code.startswith(("xid.", "sxid.")) or checks.code(code).clears is Clears.EXPIRY or code in _KERNEL_EVENTS


def _matches(code: str, pattern: str) -> bool:
    return fnmatchcase(code, pattern) or code.startswith(f"{pattern}.")


def judge(
    rounds: Sequence[NodeReadings],
    records: Iterable[KernelRecord],
    settings: Settings,
    history: History,
    code_filter: CodeFilter,
    lookback_seconds: float,
) -> RunResult:
    """Run all checks on each round in order, together with the kernel log since the round before.

    The first round also gets the kernel log of the `lookback_seconds` before it.
    """
    last = rounds[-1]
    if reason := _nothing_to_check(last, settings, history):
        return _unknown_result(last, settings, code_filter, reason)
    begin = rounds[0].time - timedelta(seconds=min(lookback_seconds, _LONGEST_SECONDS))
    _forget_since(history, begin)
    tracker = Findings(settings, one_look=True)
    outcomes: list[Outcome] = []
    for readings, events in _with_events(rounds, _events(last, records), begin):
        complete = msgspec.structs.replace(readings, events=events)
        judged = checks.judge(complete, settings, history)
        outcomes = [outcome for outcome in judged if code_filter.matches(outcome.code)]
        tracker.take_round(outcomes, readings.time, readings.boot_id)
    verdict = tracker.verdict(last, history, last.time)
    if code_filter.patterns:
        verdict = _unknown_where_not_checked(verdict, outcomes)
    return RunResult(verdict=verdict, readings=last, settings=settings, quarantine=tracker.quarantine())


def without_kernel_log(readings: NodeReadings) -> NodeReadings:
    """Mark the kernel log as missing, for a capture without one, even if it could be read at the time."""
    if isinstance(readings.kernel_log, Missing):
        return readings
    absent = Missing(MissingReason.ERROR, "the capture has no kernel log")
    return msgspec.structs.replace(readings, kernel_log=absent)


def _forget_since(history: History, begin: datetime) -> None:
    """Drop stored events from `begin` on: they are read again from the kernel log and must not count twice."""
    start = begin.timestamp()
    history.marks = {key: [mark for mark in marks if mark[0] < start] for key, marks in history.marks.items()}


def _events(readings: NodeReadings, records: Iterable[KernelRecord]) -> list[KernelEvent]:
    version = "" if isinstance(readings.nvml, Missing) else readings.nvml.driver_version
    branch = version.partition(".")[0] if isinstance(version, str) else ""
    log = KernelLog(int(branch) if branch.isdecimal() else None)
    return [event for record in records if (event := log.feed(record))]


def _with_events(
    rounds: Sequence[NodeReadings], events: list[KernelEvent], after: datetime
) -> Iterable[tuple[NodeReadings, tuple[KernelEvent, ...]]]:
    """Each round with the events since the round before; the first with those since `after`."""
    for number, readings in enumerate(rounds, 1):
        until = readings.time if number < len(rounds) else None  # the last also gets what was logged while it was read
        # An event without a time cannot be assigned to a round: it goes to the first, so that it is not lost.
        yield (
            readings,
            tuple(
                event
                for event in events
                if (
                    number == 1 if event.time is None else event.time > after and (until is None or event.time <= until)
                )
            ),
        )
        after = readings.time


def _unknown_where_not_checked(verdict: Verdict, outcomes: list[Outcome]) -> Verdict:
    """With `--only`, every selected check is essential: a component where one could not run is unknown.

    Rates need an earlier reading, which a single run does not have; they make a component unknown only where no other
    selected check ran on it.
    """
    skipped = [outcome for outcome in outcomes if isinstance(outcome, NotChecked)]
    failed = {outcome.component for outcome in skipped if outcome.reason.reason is not MissingReason.NO_HISTORY}
    checked = {outcome.component for outcome in outcomes if not isinstance(outcome, NotChecked)}
    unknown = failed | ({outcome.component for outcome in skipped} - checked)
    if not unknown and outcomes:
        return verdict
    gpus = tuple(
        msgspec.structs.replace(gpu, verdict=State.combined([gpu.verdict, State.UNKNOWN]))
        if gpu.uuid in unknown
        else gpu
        for gpu in verdict.gpus
    )
    return msgspec.structs.replace(verdict, gpus=gpus, verdict=State.combined([verdict.verdict, State.UNKNOWN]))


def _nothing_to_check(readings: NodeReadings, settings: Settings, history: History) -> str:
    """A sentence where nothing shows a GPU or a driver and none is expected; else empty."""
    nvml = readings.nvml
    problem = nvml if isinstance(nvml, Missing) else nvml.problem
    if problem is None or problem.reason not in _NEVER_LOADED or settings.expected_gpus or history.baseline.gpus:
        return ""
    on_bus = [] if isinstance(readings.pci, Missing) else [device for device in readings.pci if device.is_gpu]
    nodes = [] if isinstance(readings.device_nodes, Missing) else readings.device_nodes
    return "" if on_bus or nodes else _NO_GPU


def _unknown_result(readings: NodeReadings, settings: Settings, code_filter: CodeFilter, reason: str) -> RunResult:
    codes = [code.name for check in checks.CHECKS for code in check.codes if code_filter.matches(code.name)]
    coverage = Coverage((), tuple(NotCovered(code, _ABSENT) for code in dict.fromkeys(codes)))
    verdict = Verdict(readings.node, readings.time, State.UNKNOWN, (), (), coverage)
    return RunResult(verdict=verdict, readings=readings, settings=settings, nothing_to_check=reason)
