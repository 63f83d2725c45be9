"""From readings to a verdict, outside the agent: the same checks and rules, with nothing to wait for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import msgspec

from gpuhealth.cli.output import CommandError, near
from gpuhealth.model.codes import CODES, Clears
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.finding import NotChecked, Outcome
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.tracker import FindingTracker, Quarantine
from gpuhealth.model.verdict import Coverage, NotCovered, State, Verdict
from gpuhealth.monitors.judge import Judge, Memory, tracker_rules
from gpuhealth.monitors.kernel_log.codes import EVENTS
from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
from gpuhealth.monitors.nvidia.checks.log_events import CODES as DRIVER_LINES
from gpuhealth.monitors.nvidia.checks.xid import COVERAGE as LOG_COVERAGE
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.probe import driver_branch
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.monitors.registry import kernel_log_parser, known_codes
from gpuhealth.monitors.settings import Settings

_KERNEL_EVENTS = frozenset(code.name for code in (*EVENTS, *DRIVER_LINES))
_NONE_HERE = "There is no NVIDIA GPU and no NVIDIA driver on this machine: nothing was checked."
_LONGEST_SECONDS = 10 * 365 * 86400.0
_ABSENT = "no GPU and no driver on this machine"
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
        events = [code for code in known_codes() if _is_event(code)]
        self._of_kernel_log = any(_fits(code, pattern) for code in events for pattern in patterns)
        known = known_codes()
        for pattern in patterns:
            if not any(_fits(code, pattern) for code in known) and not CODES.exists(pattern):
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
    return code.startswith(("xid.", "sxid.")) or CODES.get(code).clears is Clears.QUIET_PERIOD or code in _KERNEL_EVENTS


def _fits(code: str, pattern: str) -> bool:
    return fnmatchcase(code, pattern) or code.startswith(f"{pattern}.")


def judge(
    rounds: Sequence[NodeReadings],
    records: Iterable[KernelRecord],
    settings: Settings,
    memory: Memory,
    selection: Selection,
    back_seconds: float,
) -> Judgement:
    """Judges the rounds in order, each with the kernel log up to it; of the log before, the last `back_seconds`."""
    last = rounds[-1]
    node = settings.model_copy(update={"node_name": last.node})
    judging = Judge(node, memory, boot_id=last.boot_id, time=rounds[0].time)
    if reason := _nothing_here(last, settings, judging):
        return _no_judgement(last, settings, selection, reason)
    begin = rounds[0].time - timedelta(seconds=min(back_seconds, _LONGEST_SECONDS))
    memory.history.forget_events_since(begin.timestamp())
    tracker = FindingTracker(tracker_rules(settings), one_look=True)
    outcomes: list[Outcome] = []
    for readings, events in _with_events(rounds, _events(last, records), begin):
        outcomes = []
        for monitor in judging.monitors:  # all of them first: a check may see what another monitor has read
            judging.set_readings(monitor, readings.of(monitor), readings.time)
        for monitor in judging.monitors:
            found = judging.round(monitor, readings.of(monitor), readings.time, events)
            own = [outcome for outcome in found if selection.takes(outcome.code)]
            tracker.apply_round(monitor.name, own, judging.facts())
            outcomes += own
    verdict = tracker.verdict(judging.facts())
    if selection.patterns:
        verdict = _only_what_was_measured(verdict, outcomes)
    return Judgement(verdict, judging.readings, settings, tracker.quarantine())


def without_kernel_log(readings: NodeReadings) -> NodeReadings:
    """The readings of a capture that lacks the log: it was not looked at, however well it could be read then."""
    if isinstance(readings.of(KERNEL_LOG), Missing):
        return readings
    return readings.with_readings(KERNEL_LOG, Missing(MissingReason.ERROR, "the capture has no kernel log"))


def _events(readings: NodeReadings, records: Iterable[KernelRecord]) -> list[KernelEvent]:
    nvidia = readings.of(NVIDIA)
    version = "" if isinstance(nvidia, Missing) else nvidia.nvml.driver_version
    parser = kernel_log_parser(driver_branch(version) if isinstance(version, str) else None)
    return [event for record in records if (event := parser.feed(record))]


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
    """Makes every selected check essential: one that could not be made leaves the verdict unknown.

    Rates need an earlier look, and of the first nobody expects them; alone they leave it unknown all the same.
    """
    missed = [outcome for outcome in outcomes if isinstance(outcome, NotChecked)]
    failed = {outcome.component for outcome in missed if outcome.reason.reason is not MissingReason.NO_HISTORY}
    made = {outcome.component for outcome in outcomes if not isinstance(outcome, NotChecked)}
    unknown = failed | ({outcome.component for outcome in missed} - made)
    if not unknown and outcomes:
        return verdict
    gpus = tuple(
        msgspec.structs.replace(gpu, verdict=State.combined([gpu.verdict, State.UNKNOWN]))
        if Component(Kind.GPU, gpu.uuid) in unknown
        else gpu
        for gpu in verdict.gpus
    )
    components = tuple(
        msgspec.structs.replace(part, verdict=State.combined([part.verdict, State.UNKNOWN]))
        if part.component in unknown
        else part
        for part in verdict.components
    )
    state = State.combined([verdict.verdict, State.UNKNOWN])
    return msgspec.structs.replace(verdict, gpus=gpus, components=components, verdict=state)


def _nothing_here(readings: NodeReadings, settings: Settings, judging: Judge) -> str:
    """Why this machine is none to be judged: nothing shows a GPU or a driver, and nobody expects one."""
    nvidia = readings.of(NVIDIA)
    if isinstance(nvidia, Missing) or NVIDIA not in judging.monitors:
        return ""
    problem, baseline = nvidia.nvml.problem, judging.memory.baseline(NVIDIA)
    if problem is None or problem.reason not in _NEVER_LOADED or settings.expected_gpus or baseline.gpus:
        return ""
    on_bus = [] if isinstance(nvidia.pci, Missing) else [device for device in nvidia.pci if device.is_gpu]
    nodes = [] if isinstance(nvidia.device_nodes, Missing) else nvidia.device_nodes
    return "" if on_bus or nodes else _NONE_HERE


def _no_judgement(readings: NodeReadings, settings: Settings, selection: Selection, reason: str) -> Judgement:
    codes = [code.name for code in CODES.defined() if selection.takes(code.name)]
    missing = tuple(NotCovered(code, NODE, MissingReason.NOT_INSTALLED, _ABSENT) for code in codes)
    verdict = Verdict(node=readings.node, time=readings.time, verdict=State.UNKNOWN, coverage=Coverage((), missing))
    return Judgement(verdict, readings, settings, nothing_here=reason)
