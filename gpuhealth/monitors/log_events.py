"""Findings from single lines of the kernel log, which have no other evidence than the line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpuhealth.model.codes import Code
from gpuhealth.model.component import NODE, Component, ComponentInfo, Kind
from gpuhealth.model.context import CheckContext
from gpuhealth.model.finding import Clean, Outcome, Severity
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.pci import function_zero

_ABOUT_NETWORK = ("link", "mlx5")
"""Kinds of event whose PCI address is that of a network adapter."""


def judge(context: CheckContext[Any, Any, Any], codes: tuple[Code, ...]) -> Iterator[Outcome]:
    """The outcomes of the round's events that have one of these codes.

    Of several events about one fault, the worst counts, and of equal ones the last.
    """
    by_name = {code.name: code for code in codes}
    counting: dict[tuple[str, str], KernelEvent] = {}
    for event in context.events:
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


def _outcome(code: Code, event: KernelEvent, context: CheckContext[Any, Any, Any]) -> Outcome:
    component, message = NODE, event.meaning
    if event.kind == "link":
        component = Component(Kind.NIC, event.interface) if event.interface else NODE
        if event.severity is Severity.INFO:
            return Clean(code.name, component)
    elif event.pci and event.kind in _ABOUT_NETWORK:
        component, message = Component(Kind.PCI_DEVICE, event.pci), f"{event.pci}: {event.meaning}"
    elif event.pci:
        gpu = context.at(event.pci) or ComponentInfo(component=Component(Kind.GPU, function_zero(event.pci)))
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
