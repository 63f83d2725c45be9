"""Input of a monitor's checks for one round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Generic, TypeAlias, TypeVar

import msgspec

from gpuhealth.model.codes import Code
from gpuhealth.model.component import Component, ComponentInfo, Kind
from gpuhealth.model.finding import Finding, Outcome
from gpuhealth.model.history import History
from gpuhealth.model.kernel_event import KernelEvent, KernelLogStatus
from gpuhealth.model.missing import UNREAD, Missing, Reading
from gpuhealth.model.pci import PciSlot

ReadingsT = TypeVar("ReadingsT")
SettingsT = TypeVar("SettingsT")
BaselineT = TypeVar("BaselineT")
ContextT = TypeVar("ContextT", contravariant=True)

RuleResult: TypeAlias = Finding | Missing | None
"""Result of a rule: a finding, the missing reading that prevented a result, or None for clean."""


class CheckContext(msgspec.Struct, Generic[ReadingsT, SettingsT, BaselineT], kw_only=True, dict=True):
    """One round of one monitor: its readings and settings, its stored state, and the components of the node."""

    node: str
    time: datetime
    boot_id: str
    readings: ReadingsT
    settings: SettingsT
    baseline: BaselineT  # the monitor's stored state of the node; its checks may change it
    history: History
    components: tuple[ComponentInfo, ...] = ()  # of all monitors, as far as known
    kernel_log: Reading[KernelLogStatus] = UNREAD
    events: tuple[KernelEvent, ...] = ()  # of the kernel log, since the last round

    @property
    def now(self) -> float:
        """When the readings were taken, in seconds since the epoch."""
        return self.time.timestamp()

    @property
    def gpus(self) -> tuple[ComponentInfo, ...]:
        """The GPUs of the node, present or remembered."""
        return tuple(info for info in self.components if info.component.kind is Kind.GPU)

    def at(self, slot: PciSlot | None) -> ComponentInfo | None:
        """The GPU in a PCI slot; None if there is no known one."""
        return next((info for info in self.gpus if info.is_in(slot)), None)


class Check(msgspec.Struct, Generic[ContextT], frozen=True):
    """Finding codes, and the pure function that checks a round for them."""

    codes: tuple[Code, ...]
    run: Callable[[ContextT], Iterable[Outcome]]


def outcome_of(code: Code, component: Component, result: RuleResult) -> Iterable[Outcome]:
    """The outcomes for the result of a rule. An unsupported reading needs no check and has no outcome."""
    if result is None:
        return [code.clean(component)]
    if isinstance(result, Finding):
        return [result]
    return [] if result.is_unsupported else [code.not_checked(result, component)]
