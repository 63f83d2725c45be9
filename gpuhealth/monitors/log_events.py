"""Findings from single lines of the kernel log, which have no other evidence than the line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpuhealth.model.codes import Code
from gpuhealth.model.component import NODE, Component, ComponentInfo, Kind
from gpuhealth.model.context import CheckContext
from gpuhealth.model.finding import Clean, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.history import key as history_key
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.pci import function_zero

_ABOUT_NETWORK = ("link", "mlx5")
"""Kinds of event whose PCI address is that of a network adapter."""

MAX_UNKNOWN = 16
"""How many devices, and how many codes, may be findings that the node is not known to have or to raise: a log with
random ones must not fill memory, metrics and journal."""
_REMEMBERED_SECONDS = 86400.0


def judge(
    context: CheckContext[Any, Any, Any], codes: tuple[Code, ...], events: tuple[KernelEvent, ...] | None = None
) -> Iterator[Outcome]:
    """The outcomes of the round's events that have one of these codes; of `events` in their place, if given.

    Of several events about one fault, the worst counts, and of equal ones the last.
    """
    by_name = {code.name: code for code in codes}
    counting: dict[tuple[str, str], KernelEvent] = {}
    for event in context.events if events is None else events:
        if event.finding not in by_name:
            continue
        key = event.finding, event.interface or event.pci or ""
        if event.kind == "link":
            if event.interface or event.severity is not Severity.INFO:  # up again: but which one of several?
                counting[key] = event
        elif key not in counting or event.severity.rank >= counting[key].severity.rank:
            counting[key] = event
    for event in counting.values():
        yield _outcome(by_name[event.finding], event, context)


def is_admitted(history: History, what: str, name: str, at: float) -> bool:
    """Whether an unknown name of a kind (a device, a code) is one of the first MAX_UNKNOWN within a day."""
    key = history_key(f"unknown.{what}", NODE)
    known = history.events_within(key, at, _REMEMBERED_SECONDS)
    if any(name == detail for _, detail in known):
        return True
    if len(known) >= MAX_UNKNOWN:
        return False
    history.record_event(key, at, _REMEMBERED_SECONDS, name, MAX_UNKNOWN)
    return True


def _outcome(code: Code, event: KernelEvent, context: CheckContext[Any, Any, Any]) -> Outcome:
    component, message = NODE, event.meaning
    if event.kind == "link":
        component = _admitted(Component(Kind.NIC, event.interface), event, context) if event.interface else NODE
        if event.severity is Severity.INFO:
            return Clean(code.name, component)
    elif event.pci and event.kind in _ABOUT_NETWORK:
        device = Component(Kind.PCI_DEVICE, event.pci)
        component, message = _admitted(device, event, context), f"{event.pci}: {event.meaning}"
    elif event.pci:
        gpu = context.at(event.pci)
        if gpu is None:
            gpu = ComponentInfo(component=Component(Kind.GPU, function_zero(event.pci)))
            component, message = _admitted(gpu.component, event, context), f"{gpu.label}: {event.meaning}"
        else:
            component, message = gpu.component, f"{gpu.label}: {event.meaning}"
    return code.found(
        component,
        message,
        now=event.time or context.time,
        source="kernel log",
        line=event.line,
        severity=event.severity,
        action=event.action,
    )


def _admitted(component: Component, event: KernelEvent, context: CheckContext[Any, Any, Any]) -> Component:
    """The component, or the node if too many devices that are not known have been named."""
    at = (event.time or context.time).timestamp()
    return component if is_admitted(context.history, component.kind, component.id, at) else NODE
