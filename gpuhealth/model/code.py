"""What a finding code is: its defaults, how it clears, what it means. Checks make their outcomes from it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from datetime import datetime

import msgspec

from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, Clean, Evidence, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import FindingPolicy, Settings


class Clears(enum.StrEnum):
    """The evidence that ends a finding."""

    REREAD = "reread"  # read clean for clear_after seconds
    RECOVERY = "recovery"  # the GPU's recovery action back to none, or a new boot
    REBOOT = "reboot"  # a new boot id
    PASSED = "passed"  # the test that found it has passed since
    TESTED = "tested"  # a whole burn-in has passed since
    PROVEN = "proven"  # a new boot id, or a whole burn-in has passed since
    EXPIRY = "expiry"  # an event that leaves nothing to read again: not repeated for clear_after seconds
    LOGGED = "logged"  # a line of the kernel log reports the end; or as EXPIRY


class Code(msgspec.Struct, frozen=True):
    """One kind of finding."""

    name: str
    severity: Severity
    action: Action
    meaning: str
    advice: str
    quarantine: bool = False
    drain: bool = False
    essential: bool = False  # while it cannot be measured, the component's state is unknown
    raise_after: float = 0.0  # seconds the fault must hold before it is a finding
    clears: Clears = Clears.REREAD
    clear_after: float = 30.0  # seconds

    @property
    def clears_when(self) -> str:
        """The clearing rule in words."""
        span = f"{self.clear_after:g} s"
        return {
            Clears.REREAD: f"read clean for {span}",
            Clears.RECOVERY: "the GPU's recovery action is back to none, the node has rebooted, or a person says so",
            Clears.REBOOT: "the node has rebooted, or a person says so",
            Clears.PASSED: "the test has passed in a later burn-in, or the GPU is replaced",
            Clears.TESTED: "a later burn-in has passed, or a person says so",
            Clears.PROVEN: "the node has rebooted, a later burn-in has passed, or a person says so",
            Clears.EXPIRY: f"not repeated for {span}",
            Clears.LOGGED: f"the kernel log reports its end, or it is not repeated for {span}",
        }[self.clears]

    def found(
        self,
        gpu: GpuReadings | None,
        message: str,
        *,
        now: datetime,
        source: str,
        reading: object = "",
        threshold: object = "",
        line: str = "",
        severity: Severity | None = None,
        action: Action | None = None,
        component: str | None = None,
        mig_instance: str = "",
    ) -> Finding:
        """A finding of this code on a GPU, or on the node where `gpu` is None."""
        named = gpu.component if gpu else ""
        return Finding(
            code=self.name,
            severity=severity or self.severity,
            component=component or named or NODE,
            message=message,
            action=action or self.action,
            evidence=Evidence(source, str(reading), str(threshold), now, line),
            first_seen=now,
            last_seen=now,
            clears_when=self.clears_when,
            gpu=named,
            mig_instance=mig_instance,
        )

    def clean(self, gpu: GpuReadings | None) -> Clean:
        """This code was looked for and not there."""
        return Clean(self.name, gpu.component if gpu else NODE)

    def not_checked(self, gpu: GpuReadings | None, reason: Missing) -> NotChecked:
        """This code could not be looked for."""
        return NotChecked(self.name, gpu.component if gpu else NODE, reason)


class Rule(msgspec.Struct, frozen=True):
    """A code's defaults with what the deployment changes of them."""

    code: Code
    policy: FindingPolicy

    @property
    def raise_after(self) -> float:
        """Seconds."""
        return self.code.raise_after if self.policy.raise_after is None else self.policy.raise_after

    @property
    def clear_after(self) -> float:
        """Seconds."""
        return self.code.clear_after if self.policy.clear_after is None else self.policy.clear_after

    def quarantines(self, finding: Finding) -> bool:
        """Critical findings of a quarantining code; any severity where the deployment says so outright."""
        if self.policy.quarantine is not None:
            return self.policy.quarantine
        return self.code.quarantine and finding.severity is Severity.CRITICAL

    def drains(self, finding: Finding) -> bool:
        """Whether the node's pods should be moved for it."""
        drain = self.code.drain if self.policy.drain is None else self.policy.drain
        return drain and self.quarantines(finding)


class Check(msgspec.Struct, frozen=True):
    """A subject's codes and the pure function that looks for them."""

    codes: tuple[Code, ...]
    run: Callable[[NodeReadings, Settings, History], Iterable[Outcome]]
