"""From readings to a verdict, outside the agent: the same checks and rules, with nothing to wait for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import msgspec

from gpuhealth import monitors as checks
from gpuhealth.cli.output import CommandError, near
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
_NONE_HERE = "There is no NVIDIA GPU and no NVIDIA driver on this machine: nothing was checked."
_LONGEST_SECONDS = 10 * 365 * 86400.0
_ABSENT = "no GPU and no driver on this machine (node)"
_NEVER_LOADED = (MissingReason.NOT_INSTALLED, MissingReason.NOT_LOADED)


class Judgement(msgspec.Struct, frozen=True):
    """What one look amounts to."""

    verdict: Verdict
    readings: NodeReadings  # of the last round
    settings: Settings
    quarantine: Quarantine = Quarantine()
    nothing_here: str = ""  # why there is nothing to judge


class Selection:
    """The finding codes that were asked for: codes, shell patterns, or a subject (`ecc` is `ecc.*`)."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises CommandError for a pattern that fits no code: a check that is misspelt must not pass."""
        self.patterns = patterns
        events = [code for code in checks.known_codes() if _is_event(code)]
        self._of_kernel_log = any(_fits(code, pattern) for code in events for pattern in patterns)
        known = checks.known_codes()
        for pattern in patterns:
            if not any(_fits(code, pattern) for code in known) and not checks.exists(pattern):
                subjects = sorted({code.partition(".")[0] for code in known})
                raise CommandError(f"--only {pattern}: no such finding code{near(pattern, [*known, *subjects])}")

    def takes(self, code: str) -> bool:
        """Whether the code was asked for; without patterns, all are.

        Who asks for what only the kernel log tells also asks whether the log could be read.
        """
        if not self.patterns or (code == LOG_COVERAGE.name and self._of_kernel_log):
            return True
        return any(_fits(code, pattern) for pattern in self.patterns)


def _is_event(code: str) -> bool:
    return code.startswith(("xid.", "sxid.")) or checks.code(code).clears is Clears.EXPIRY or code in _KERNEL_EVENTS


def _fits(code: str, pattern: str) -> bool:
    return fnmatchcase(code, pattern) or code.startswith(f"{pattern}.")


def judge(
    rounds: Sequence[NodeReadings],
    records: Iterable[KernelRecord],
    settings: Settings,
    history: History,
    selection: Selection,
    back_seconds: float,
) -> Judgement:
    """Judges the rounds in order, each with the kernel log up to it; of the log before, the last `back_seconds`."""
    last = rounds[-1]
    if reason := _nothing_here(last, settings, history):
        return _no_judgement(last, settings, selection, reason)
    begin = rounds[0].time - timedelta(seconds=min(back_seconds, _LONGEST_SECONDS))
    _forget_since(history, begin)
    findings = Findings(settings, one_look=True)
    outcomes: list[Outcome] = []
    for readings, events in _with_events(rounds, _events(last, records), begin):
        seen = msgspec.structs.replace(readings, events=events)
        outcomes = [each for each in checks.judge(seen, settings, history) if selection.takes(each.code)]
        findings.take_round(outcomes, readings.time, readings.boot_id)
    verdict = findings.verdict(last, history, last.time)
    if selection.patterns:
        verdict = _only_what_was_measured(verdict, outcomes)
    return Judgement(verdict, last, settings, findings.quarantine())


def without_kernel_log(readings: NodeReadings) -> NodeReadings:
    """The readings of a capture that lacks the log: it was not looked at, however well it could be read then."""
    if isinstance(readings.kernel_log, Missing):
        return readings
    absent = Missing(MissingReason.ERROR, "the capture has no kernel log")
    return msgspec.structs.replace(readings, kernel_log=absent)


def _forget_since(history: History, begin: datetime) -> None:
    """Events from then on are read again from the kernel log, and none counts twice."""
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
    for number, readings in enumerate(rounds, 1):
        until = readings.time if number < len(rounds) else None  # the last takes what came while it was read, too
        # An event without a time cannot be placed; it is seen with the first round and not lost.
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


def _only_what_was_measured(verdict: Verdict, outcomes: list[Outcome]) -> Verdict:
    """Of a few checks each is essential: one that could not be made leaves the verdict unknown.

    Rates need an earlier look, and of the first nobody expects them; alone they leave it unknown all the same.
    """
    unmade = [each for each in outcomes if isinstance(each, NotChecked)]
    failed = {each.component for each in unmade if each.reason.reason is not MissingReason.NO_HISTORY}
    made = {each.component for each in outcomes if not isinstance(each, NotChecked)}
    unknown = failed | ({each.component for each in unmade} - made)
    if not unknown and outcomes:
        return verdict
    gpus = tuple(
        msgspec.structs.replace(gpu, verdict=State.combined([gpu.verdict, State.UNKNOWN]))
        if gpu.uuid in unknown
        else gpu
        for gpu in verdict.gpus
    )
    return msgspec.structs.replace(verdict, gpus=gpus, verdict=State.combined([verdict.verdict, State.UNKNOWN]))


def _nothing_here(readings: NodeReadings, settings: Settings, history: History) -> str:
    """Why this machine is none to be judged: nothing shows a GPU or a driver, and nobody expects one."""
    nvml = readings.nvml
    problem = nvml if isinstance(nvml, Missing) else nvml.problem
    if problem is None or problem.reason not in _NEVER_LOADED or settings.expected_gpus or history.baseline.gpus:
        return ""
    on_bus = [] if isinstance(readings.pci, Missing) else [device for device in readings.pci if device.is_gpu]
    nodes = [] if isinstance(readings.device_nodes, Missing) else readings.device_nodes
    return "" if on_bus or nodes else _NONE_HERE


def _no_judgement(readings: NodeReadings, settings: Settings, selection: Selection, reason: str) -> Judgement:
    codes = [code.name for check in checks.CHECKS for code in check.codes if selection.takes(code.name)]
    coverage = Coverage((), tuple(NotCovered(code, _ABSENT) for code in dict.fromkeys(codes)))
    verdict = Verdict(readings.node, readings.time, State.UNKNOWN, (), (), coverage)
    return Judgement(verdict, readings, settings, nothing_here=reason)
