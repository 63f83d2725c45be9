"""From readings to a verdict without the agent: the same checks and rules, but without waiting times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import msgspec

from gpuhealth.cli.output import CommandError, did_you_mean
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
_NO_GPU = "There is no NVIDIA GPU and no NVIDIA driver on this machine: nothing was checked."
_LONGEST_SECONDS = 10 * 365 * 86400.0
_ABSENT = "no GPU and no driver on this machine"
_NEVER_LOADED = (MissingReason.NOT_INSTALLED, MissingReason.NOT_LOADED)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict of a single run, and the data from which it was derived."""

    verdict: Verdict
    readings: NodeReadings  # of the last round
    settings: Settings
    quarantine: Quarantine = Quarantine()  # the agent's action for this verdict
    nothing_to_check: str = ""  # one sentence, where the machine has no GPU and no driver


class CodeFilter:
    """The finding codes that `--only` selects: codes, shell patterns, or a subject (`ecc` for `ecc.*`)."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises CommandError for a pattern that matches no code: a misspelt check must not pass."""
        self.patterns = patterns
        known = known_codes()
        events = [code for code in known if _is_event(code)]
        self._selects_events = any(_matches(code, pattern) for code in events for pattern in patterns)
        for pattern in patterns:
            if not any(_matches(code, pattern) for code in known) and not CODES.exists(pattern):
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
    return code.startswith(("xid.", "sxid.")) or CODES.get(code).clears is Clears.QUIET_PERIOD or code in _KERNEL_EVENTS


def _matches(code: str, pattern: str) -> bool:
    return fnmatchcase(code, pattern) or code.startswith(f"{pattern}.")


def judge(
    rounds: Sequence[NodeReadings],
    records: Iterable[KernelRecord],
    settings: Settings,
    memory: Memory,
    code_filter: CodeFilter,
    lookback_seconds: float,
) -> RunResult:
    """Run all checks on each round in order, together with the kernel log since the round before.

    The first round also gets the kernel log of the `lookback_seconds` before it.
    """
    last = rounds[-1]
    node = settings.model_copy(update={"node_name": last.node})
    judging = Judge(node, memory, boot_id=last.boot_id, time=rounds[0].time)
    if reason := _nothing_to_check(last, settings, judging):
        return _unknown_result(last, settings, code_filter, reason)
    begin = rounds[0].time - timedelta(seconds=min(lookback_seconds, _LONGEST_SECONDS))
    memory.history.forget_events_since(begin.timestamp())  # they are read again from the kernel log
    tracker = FindingTracker(tracker_rules(settings), one_look=True)
    outcomes: list[Outcome] = []
    for readings, events in _with_events(rounds, _events(last, records), begin):
        outcomes = []
        for monitor in judging.monitors:  # all of them first: a check may use what another monitor has read
            judging.set_readings(monitor, readings.of(monitor), readings.time)
        for monitor in judging.monitors:
            judged = judging.round(monitor, readings.of(monitor), readings.time, events)
            selected = [outcome for outcome in judged if code_filter.matches(outcome.code)]
            tracker.apply_round(monitor.name, selected, judging.facts())
            outcomes += selected
    verdict = tracker.verdict(judging.facts())
    if code_filter.patterns:
        verdict = _unknown_where_not_checked(verdict, outcomes)
    return RunResult(verdict=verdict, readings=last, settings=settings, quarantine=tracker.quarantine())


def without_kernel_log(readings: NodeReadings) -> NodeReadings:
    """Mark the kernel log as missing, for a capture without one, even if it could be read at the time."""
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


def _nothing_to_check(readings: NodeReadings, settings: Settings, judging: Judge) -> str:
    """A sentence where nothing shows a GPU or a driver and none is expected; else empty."""
    nvidia = readings.of(NVIDIA)
    if isinstance(nvidia, Missing) or NVIDIA not in judging.monitors:
        return ""
    problem, baseline = nvidia.nvml.problem, judging.memory.baseline(NVIDIA)
    if problem is None or problem.reason not in _NEVER_LOADED or settings.expected_gpus is not None or baseline.gpus:
        return ""
    on_bus = [] if isinstance(nvidia.pci, Missing) else [device for device in nvidia.pci if device.is_gpu]
    nodes = [] if isinstance(nvidia.device_nodes, Missing) else nvidia.device_nodes
    return "" if on_bus or nodes else _NO_GPU


def _unknown_result(readings: NodeReadings, settings: Settings, code_filter: CodeFilter, reason: str) -> RunResult:
    codes = [code.name for code in CODES.defined() if code_filter.matches(code.name)]
    missing = tuple(NotCovered(code, NODE, MissingReason.NOT_INSTALLED, _ABSENT) for code in codes)
    verdict = Verdict(node=readings.node, time=readings.time, verdict=State.UNKNOWN, coverage=Coverage((), missing))
    return RunResult(verdict=verdict, readings=readings, settings=settings, nothing_to_check=reason)
