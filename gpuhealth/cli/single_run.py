"""From readings to a verdict without the agent: the same checks and rules, but without waiting times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import msgspec

from gpuhealth.cli.output import CommandError, did_you_mean
from gpuhealth.kernel_log.boot_log import BootLog, EarlierFault
from gpuhealth.model.causes import Ended
from gpuhealth.model.codes import CODES, Clears
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.finding import NotChecked, Outcome
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.tracker import FindingTracker, Quarantine
from gpuhealth.model.tracker_state import TrackerState
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
_MOST_NOTES = 20
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
    notes: tuple[str, ...] = ()  # what the verdict does not show, one sentence each
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
    records: Sequence[KernelRecord],
    settings: Settings,
    memory: Memory,
    code_filter: CodeFilter,
    since_seconds: float | None = None,
    ended: Sequence[Ended] = (),
) -> RunResult:
    """Run all checks on each round in order, together with the kernel log since the round before.

    The first round also gets the kernel log of the `since_seconds` before it. Without these it gets that of the setting
    kmsg.lookback, and with kmsg.since_boot also those earlier faults of the boot that only a reset or a reboot ends,
    except for those that are over: by what was read or logged since, or among the faults that the agent has `ended`.
    """
    kmsg = settings.kmsg
    lookback = kmsg.lookback if since_seconds is None else since_seconds
    with_earlier = since_seconds is None and kmsg.since_boot
    if not with_earlier:
        rounds = [_only_since(readings, lookback) for readings in rounds]
    last = rounds[-1]
    node = settings.model_copy(update={"node_name": last.node})
    judging = Judge(node, memory, boot_id=last.boot_id, time=rounds[0].time)
    if reason := _nothing_to_check(last, settings, judging):
        return _unknown_result(last, settings, code_filter, reason)
    begin = rounds[0].time - timedelta(seconds=min(lookback, _LONGEST_SECONDS))
    log_of_boot = _read_log(last, records, begin)
    memory.history.forget_events_since(begin.timestamp())  # they are read again from the kernel log
    tracker = FindingTracker(tracker_rules(settings), TrackerState(ended=list(ended)), one_look=True)
    outcomes: list[Outcome] = []
    notes: tuple[str, ...] = ()
    for number, (readings, events) in enumerate(_with_events(rounds, log_of_boot.recent, begin)):
        outcomes = []
        for monitor in judging.monitors:  # all of them first: a check may use what another monitor has read
            judging.set_readings(monitor, readings.of(monitor), readings.time)
        if number == 0 and with_earlier:
            notes = _apply_earlier(log_of_boot.earlier, judging, tracker, code_filter)
        for monitor in judging.monitors:
            judged = judging.round(monitor, readings.of(monitor), readings.time, events)
            selected = [outcome for outcome in judged if code_filter.matches(outcome.code)]
            tracker.apply_round(monitor.name, selected, judging.facts())
            outcomes += selected
    verdict = tracker.verdict(judging.facts())
    if code_filter.patterns:
        verdict = _unknown_where_not_checked(verdict, outcomes)
    if NVIDIA not in judging.monitors:
        verdict = msgspec.structs.replace(verdict, verdict=State.combined([verdict.verdict, State.UNKNOWN]))
    return RunResult(verdict=verdict, readings=last, settings=settings, quarantine=tracker.quarantine(), notes=notes)


def without_kernel_log(readings: NodeReadings) -> NodeReadings:
    """Mark the kernel log as missing, for a capture without one, even if it could be read at the time."""
    if isinstance(readings.of(KERNEL_LOG), Missing):
        return readings
    return readings.with_readings(KERNEL_LOG, Missing(MissingReason.ERROR, "the capture has no kernel log"))


def _read_log(readings: NodeReadings, records: Sequence[KernelRecord], begin: datetime) -> BootLog:
    nvidia = readings.of(NVIDIA)
    version = "" if isinstance(nvidia, Missing) else nvidia.nvml.driver_version
    log = BootLog(kernel_log_parser(driver_branch(version) if isinstance(version, str) else None), begin)
    log.add(records)
    return log


def _only_since(readings: NodeReadings, lookback_seconds: float) -> NodeReadings:
    """State in the readings that older records of the kernel log were not looked at."""
    status = readings.of(KERNEL_LOG)
    if isinstance(status, Missing):
        return readings
    unread = f"kernel log: only the records of the last {lookback_seconds:g} s count"
    return readings.with_readings(KERNEL_LOG, msgspec.structs.replace(status, not_read=unread))


def _apply_earlier(
    faults: Sequence[EarlierFault], judging: Judge, tracker: FindingTracker, code_filter: CodeFilter
) -> tuple[str, ...]:
    """Raise the earlier faults that are not over; returns a note about each one that is."""
    outcomes, over = judging.judge_earlier(faults, judging.readings.time)
    selected = [outcome for outcome in outcomes if code_filter.matches(outcome.code)]
    tracker.apply_earlier(selected, judging.readings.time, judging.readings.boot_id)
    selected_over = [(event, reason) for event, reason in over if code_filter.matches(event.finding)]
    return tuple(
        f"{event.finding} of {event.time:%Y-%m-%d %H:%M:%SZ}{f' ({event.pci})' if event.pci else ''} is over: {reason}"
        for event, reason in selected_over[-_MOST_NOTES:]
    )


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
