"""XIDs and SXids: the driver's reports about a GPU or an NVSwitch, judged together with earlier ones.

The catalogue has the meaning of a single line. Here it is attributed to the GPU with exactly that PCI address, lines of
the same fault count once, cleanup after another fault is distinguished from a fault, and repetition is judged.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import datetime

import msgspec

from gpuhealth.model.codes import CODES, Clears, Code, define
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.context import Check
from gpuhealth.model.finding import Action, Finding, Outcome, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import NOT_SUPPORTED, Missing
from gpuhealth.model.pci import function_zero, slot_of
from gpuhealth.monitors import log_events
from gpuhealth.monitors.log_events import is_admitted
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.nvidia.catalog.xid import CONSEQUENCES, NVLINK, RECOVERY_ACTION
from gpuhealth.monitors.nvidia.checks import gpu as gpu_checks
from gpuhealth.monitors.nvidia.checks import ports, xid_repeats
from gpuhealth.monitors.nvidia.checks.log_events import CODES as DRIVER_LINES
from gpuhealth.monitors.nvidia.checks.log_events import INIT_FAILED
from gpuhealth.monitors.nvidia.context import GpuContext, NvidiaContext, label
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.monitors.nvidia.settings import Xid as XidSettings

COVERAGE = define(
    "xid",
    Severity.WARNING,
    Action.NONE,
    meaning="Represents all XIDs and SXids: whether the driver's reports about its GPUs reach the agent.",
    advice="Let the agent read /dev/kmsg: privileged, or with CAP_SYSLOG and the device mounted.",
    essential=True,
)
_ESCALATING_ACTIONS = (Action.CONTACT_SUPPORT, Action.INSPECT_HARDWARE)
EXPIRE_AFTER_SECONDS = 600.0
"""Default of the setting xid.expire_after."""
_WHILE_RELEASED = ", while the driver was released on request"
_CAUSED_BY_RESETS = frozenset({79})
"""XIDs that a reset on request causes: the GPU is gone for a moment. If it stays away, a reading shows that later."""
_NAMED_CAUSE = re.compile(r"caused by previous Xid (\d+)")


@functools.lru_cache(maxsize=2048)
def _code_for(kind: str, number: int, severity: Severity | None = None, action: Action | None = None) -> Code:
    """The code of an XID or SXid, for a finding of this severity and action.

    A critical fault ends with the reset or the reboot that it requires; a fault without a reading ends when it has not
    recurred for a while (setting xid.expire_after). Without a severity the code is that of the worst case.
    """
    facts = xid.lookup(number) if kind == "xid" else sxid.lookup(number)
    usual, remedy = _usual(facts)
    by_words = isinstance(facts, xid.XidFacts) and (facts.code in NVLINK or facts.code == RECOVERY_ACTION)
    worst = Severity.CRITICAL if by_words or facts.escalates else usual
    critical = (severity or worst) is Severity.CRITICAL
    asked = action or (Action.RESET_GPU if by_words else remedy)
    ends = Clears.RECOVERY if asked is Action.RESET_GPU else Clears.REBOOT
    is_recovery = kind == "xid" and number == RECOVERY_ACTION
    return Code(
        f"{kind}.{number}",
        severity or usual,
        action or remedy,
        meaning=f"{facts.meaning}.",
        advice=facts.advice,
        quarantine=critical and not facts.program,
        drain=critical and not facts.program and asked in (Action.RESET_GPU, Action.REBOOT_NODE),
        clears=ends if critical else Clears.QUIET_PERIOD,
        clear_after=EXPIRE_AFTER_SECONDS,
        asks_for_recovery=is_recovery,
        ends_by_log=is_recovery,
    )


CODES.define_family("xid", functools.partial(_code_for, "xid"), xid.table)
CODES.define_family("sxid", functools.partial(_code_for, "sxid"), sxid.table)


def _usual(facts: xid.XidFacts | sxid.SxidFacts) -> tuple[Severity, Action]:
    """Severity and action by the words that the driver prints with a code, the worst of several."""
    if isinstance(facts, sxid.SxidFacts) and facts.printed:
        return sxid.assess(facts.code, "non-fatal" if facts.printed == "nonfatal" else "fatal")
    return facts.severity, facts.action


class _EventRules:
    """Judges the XID and SXid events of one round or batch, in their order."""

    def __init__(self, context: GpuContext) -> None:
        self._time = context.time
        self.released = context.readings.release is not None
        self._settings = context.settings.xid
        self._history = context.history
        self._gpus = {slot_of(gpu.pci): gpu for gpu in context.gpus if isinstance(gpu.pci, str)}
        bus = context.readings.pci
        self._bus = None if isinstance(bus, Missing) else {slot_of(device.address) for device in bus}

    def outcomes(self, event: KernelEvent) -> Iterator[Outcome]:
        """The outcomes of one event."""
        kind, _, number = event.finding.partition(".")
        if kind not in ("xid", "sxid") or not number.isdecimal():
            return
        when = event.time or self._time
        event = self._placed(event, when.timestamp())
        code, gpu = int(number), self._gpu(event) if kind == "xid" else None
        component = _component(gpu, event)
        if not self._is_known(kind, code, when.timestamp()):
            return
        if kind == "xid" and code == RECOVERY_ACTION:
            yield from self._recovery(event, gpu, when)
            return
        follows = self._follows(event, code, component, when.timestamp()) if kind == "xid" else ""
        if follows:
            event = msgspec.structs.replace(event, severity=Severity.INFO, action=Action.NONE)
        count = self._count(event, component, when.timestamp())
        if count:
            yield self._finding(event, gpu, component, when, count, follows)
            if kind == "xid" and gpu and not follows:
                yield from xid_repeats.repeats(event, code, gpu, when, self._history, self._settings)

    def _placed(self, event: KernelEvent, at: float) -> KernelEvent:
        """The event; without its address if that is of no device that the node is known to have.

        Until the bus has been read, the first few unknown addresses are believed.
        """
        if event.pci is None or event.pci in self._gpus:
            return event
        known = is_admitted(self._history, "pci", event.pci, at) if self._bus is None else event.pci in self._bus
        if known:
            return event
        return msgspec.structs.replace(event, pci=None, meaning=f"{event.meaning} (unknown device {event.pci})")

    def _is_known(self, kind: str, code: int, at: float) -> bool:
        """Whether the code is in the catalogue, or one of the first few that are not."""
        table = xid.table() if kind == "xid" else sxid.table()
        return code in table or is_admitted(self._history, kind, str(code), at)

    def _gpu(self, event: KernelEvent) -> GpuReadings | None:
        """The GPU at the event's PCI address; an unknown one is represented by the address."""
        if event.pci is None:
            return None
        return self._gpus.get(event.pci) or GpuReadings(-1, pci=function_zero(event.pci))

    def _follows(self, event: KernelEvent, code: int, component: Component, at: float) -> str:
        """The XID whose cleanup this one is, in words. Records XIDs that others may follow."""
        key = history_key("xid", _owner(component))
        if self.released and code in _CAUSED_BY_RESETS:
            return _WHILE_RELEASED
        if code not in CONSEQUENCES:
            self._history.record_event(key, at, self._settings.secondary_window, detail=str(code), keep=1)
            return ""
        if self.released:  # operators end the users of the driver first
            return _WHILE_RELEASED
        if named := _NAMED_CAUSE.search(event.line):  # newer drivers name the cause
            return f", a consequence of XID {named[1]}"
        before = self._history.events_within(key, at, self._settings.secondary_window)
        return f", a consequence of XID {before[-1][1]}" if before else ""

    def _count(self, event: KernelEvent, component: Component, at: float) -> int:
        """How often the fault has occurred within the repeat window; 0 for another line of a fault already counted."""
        instance = "" if event.gpu_instance is None else event.gpu_instance
        key = history_key(f"{event.finding}:{event.severity}", _owner(component), instance)
        window = self._settings.repeat_window
        before = self._history.events_within(key, at, window)
        if before and at - before[-1][0] < self._settings.coalesce:
            return 0
        return len(self._history.record_event(key, at, window, keep=self._settings.repeats_critical))

    def _finding(
        self,
        event: KernelEvent,
        gpu: GpuReadings | None,
        component: Component,
        when: datetime,
        count: int,
        follows: str,
    ) -> Finding:
        severity, threshold = event.severity, ""
        kind, _, number = event.finding.partition(".")
        facts = xid.lookup(int(number)) if kind == "xid" else sxid.lookup(int(number))
        repeats = severity is Severity.WARNING and facts.escalates and event.action in _ESCALATING_ACTIONS
        if repeats and count >= self._settings.repeats_critical:
            severity = Severity.CRITICAL
            threshold = f"{self._settings.repeats_critical} in {self._settings.repeat_window:g} s"
        code = self._code(kind, int(number), severity, event.action)
        name = "XID" if kind == "xid" else "SXid"
        place = _label(gpu, event)
        return code.found(
            component,
            f"{place}: {name} {number}: {event.meaning}{follows}{_process(event)}",
            now=when,
            source="kernel log" if event.line else "NVML event",
            reading=f"{name} {number}" + (f", {count} times" if threshold else ""),
            threshold=threshold,
            line=event.line,
        )

    def _code(self, kind: str, number: int, severity: Severity | None = None, action: Action | None = None) -> Code:
        return with_expiry(_code_for(kind, number, severity, action), self._settings)

    def _recovery(self, event: KernelEvent, gpu: GpuReadings | None, when: datetime) -> Iterator[Outcome]:
        """XID 154 reports the value of NVML field 230: a change back to none is the evidence of a recovery."""
        code = self._code("xid", RECOVERY_ACTION)
        wanted = gpu_checks.RECOVERY_ACTION
        component = gpu.component if gpu else NODE
        if event.severity is Severity.INFO:
            yield wanted.clean(component)
            yield code.clean(component)
            return
        place = label(gpu) if gpu else "node"
        # If field 230 is not supported no round could read the end of a recovery: only the XID is raised.
        polled = gpu is not None and gpu.recovery_action != NOT_SUPPORTED
        for raised in (code, wanted) if event.action is not Action.NONE and polled else (code,):
            yield raised.found(
                component,
                f"{place}: XID {RECOVERY_ACTION}: {event.meaning}",
                now=when,
                source="kernel log" if event.line else "NVML event",
                reading=f"XID {RECOVERY_ACTION}",
                line=event.line,
                severity=event.severity,
                action=event.action,
            )


def _process(event: KernelEvent) -> str:
    if event.pid is None and event.process is None:
        return ""
    return f" (process {event.process or 'unknown'}{f', pid {event.pid}' if event.pid is not None else ''})"


def _component(gpu: GpuReadings | None, event: KernelEvent) -> Component:
    """The MIG device named by the event, if exactly one; else the GPU, the NVSwitch or the node."""
    if gpu is None:
        return Component(Kind.NVSWITCH, event.pci) if event.pci else NODE
    if event.gpu_instance is None:
        return gpu.component
    named = [
        device.uuid
        for device in gpu.mig_devices
        if device.gpu_instance == event.gpu_instance and event.compute_instance in (None, device.compute_instance)
    ]
    return Component(Kind.MIG, named[0], gpu.id) if len(named) == 1 else gpu.component


def _owner(component: Component) -> Component:
    """The GPU of a MIG device; any other component unchanged."""
    return Component(Kind.GPU, component.parent) if component.kind is Kind.MIG else component


def _label(gpu: GpuReadings | None, event: KernelEvent) -> str:
    if gpu:
        return label(gpu)
    return f"NVSwitch {event.pci}" if event.pci and event.kind == "sxid" else event.pci or "node"


def with_expiry(code: Code, settings: XidSettings) -> Code:
    """The code with the expiry from the settings, after which it ends if not repeated."""
    if settings.expire_after == code.clear_after:
        return code
    return msgspec.structs.replace(code, clear_after=settings.expire_after)


def judge_events(round_context: NvidiaContext) -> Iterator[Outcome]:
    """The findings of XID and SXid events, and of other lines of the driver, as soon as they arrive."""
    if not round_context.events:
        return
    context = GpuContext(round_context)
    rules = _EventRules(context)
    for event in round_context.events:
        yield from rules.outcomes(event)
    events = tuple(ports.placed(event, context) for event in round_context.events)
    if rules.released:
        events = tuple(_while_released(event) for event in events)
    yield from log_events.judge(round_context, DRIVER_LINES, events)


def _while_released(event: KernelEvent) -> KernelEvent:
    """The event without the severity of a failed start of a GPU, which others work on; the next failure counts."""
    if event.finding != INIT_FAILED.name:
        return event
    meaning = event.meaning + _WHILE_RELEASED
    return msgspec.structs.replace(event, severity=Severity.INFO, action=Action.NONE, meaning=meaning)


def _run(round_context: NvidiaContext) -> Iterator[Outcome]:
    log = round_context.kernel_log
    yield COVERAGE.not_checked(log) if isinstance(log, Missing) else COVERAGE.clean()
    yield from judge_events(round_context)


CHECK = Check((COVERAGE, *xid_repeats.CODES, *DRIVER_LINES), _run)
