"""Finding codes: what each one means, how it clears, and the one registry of them all.

A module that raises a finding defines its code here with `define`. Every other place that names a code (kernel-log
patterns, settings, dashboards) is checked against the registry by tests/monitors/test_codes.py.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Protocol

import msgspec

from gpuhealth.model.component import NODE, Component
from gpuhealth.model.finding import Action, Clean, Evidence, Finding, NotChecked, Severity
from gpuhealth.model.missing import Missing
from gpuhealth.model.policy import FindingPolicy


class Clears(enum.StrEnum):
    """The evidence that ends a finding."""

    CLEAN_READING = "clean_reading"  # read clean for clear_after seconds
    RECOVERY = "recovery"  # the GPU's recovery action back to none, or a new boot
    REBOOT = "reboot"  # a new boot id
    TEST_PASSED = "test_passed"  # a later run of the test that found it has passed
    BURNIN_PASSED = "burnin_passed"  # a later complete burn-in has passed
    REBOOT_OR_BURNIN = "reboot_or_burnin"  # a new boot id, or a later complete burn-in has passed
    QUIET_PERIOD = "quiet_period"  # an event without a reading: not repeated for clear_after seconds
    LOGGED_END = "logged_end"  # a line of the kernel log reports the end, else as QUIET_PERIOD


class Code(msgspec.Struct, frozen=True):
    """One kind of finding."""

    name: str  # stable, subject.what
    severity: Severity
    action: Action
    meaning: str
    advice: str
    quarantine: bool = False
    drain: bool = False
    cordon: bool = False  # in mode taint, too: pods of the GPU stack repair it, and tolerate a cordon, not our taint
    essential: bool = False  # while it cannot be measured, the component's state is unknown
    raise_after: float = 0.0  # seconds the fault must hold before it is a finding
    clears: Clears = Clears.CLEAN_READING
    clear_after: float = 30.0  # seconds
    asks_for_recovery: bool = False  # the device requests a reset: once this has cleared, it was reset
    ends_by_log: bool = False  # a line of the kernel log ends it at once, regardless of `clears`

    @property
    def clears_when(self) -> str:
        """The clearing rule in words."""
        span = f"{self.clear_after:g} s"
        return {
            Clears.CLEAN_READING: f"read clean for {span}",
            Clears.RECOVERY: "the GPU's recovery action is none, the node has rebooted, or a person restores it",
            Clears.REBOOT: "the node has rebooted, or a person restores the node",
            Clears.TEST_PASSED: "the test has passed in a later burn-in, or the GPU is replaced",
            Clears.BURNIN_PASSED: "a later burn-in has passed, or a person restores the node",
            Clears.REBOOT_OR_BURNIN: "the node has rebooted, a later burn-in has passed, or a person restores the node",
            Clears.QUIET_PERIOD: f"not repeated for {span}",
            Clears.LOGGED_END: f"the kernel log reports its end, or it is not repeated for {span}",
        }[self.clears]

    def found(
        self,
        component: Component,
        message: str,
        *,
        now: datetime,
        source: str,
        reading: object = "",
        threshold: object = "",
        line: str = "",
        severity: Severity | None = None,
        action: Action | None = None,
        stands_for: tuple[str, ...] = (),
    ) -> Finding:
        """A finding of this code on a component, seen at `now`."""
        return Finding(
            code=self.name,
            severity=severity or self.severity,
            component=component,
            message=message,
            action=action or self.action,
            evidence=Evidence(source, str(reading), str(threshold), now, line),
            first_seen=now,
            last_seen=now,
            clears_when=self.clears_when,
            stands_for=stands_for,
        )

    def clean(self, component: Component = NODE) -> Clean:
        """The outcome of a check that found nothing on the component."""
        return Clean(self.name, component)

    def not_checked(self, reason: Missing, component: Component = NODE) -> NotChecked:
        """The outcome of a check that could not read the component."""
        return NotChecked(self.name, component, reason)


class Rule(msgspec.Struct, frozen=True):
    """A code's defaults, with the changes made by the deployment."""

    code: Code
    policy: FindingPolicy

    @property
    def raise_after(self) -> float:
        """Seconds that the fault must hold before it is a finding."""
        return self.code.raise_after if self.policy.raise_after is None else self.policy.raise_after

    @property
    def clear_after(self) -> float:
        """Seconds without the fault after which the finding may clear."""
        return self.code.clear_after if self.policy.clear_after is None else self.policy.clear_after

    def quarantines(self, finding: Finding) -> bool:
        """Whether the finding takes the node out of service.

        Critical findings of a quarantining code do, and findings of any severity if the policy requires it.
        """
        if self.policy.quarantine is not None:
            return self.policy.quarantine
        return self.code.quarantine and finding.severity is Severity.CRITICAL

    def drains(self, finding: Finding) -> bool:
        """Whether the node's pods should be evicted for the finding."""
        drain = self.code.drain if self.policy.drain is None else self.policy.drain
        return drain and self.quarantines(finding)

    @property
    def cordons(self) -> bool:
        """Whether a node that is out of service for this is cordoned and not tainted, in mode taint, too."""
        return self.code.cordon if self.policy.cordon is None else self.policy.cordon


_NUMBER = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
"""Number of a code in a family; other spellings of the same number are not valid."""


class NumberedCodes(Protocol):
    """The codes of a family, such as xid.N, created on demand."""

    def __call__(self, number: int, severity: Severity | None = None, action: Action | None = None) -> Code:
        """The code with a number, for a finding of this severity and action."""


class Registry:
    """All finding codes: those defined one by one, and the numbered ones of families."""

    def __init__(self) -> None:
        self._codes: dict[str, Code] = {}
        self._families: dict[str, tuple[NumberedCodes, Callable[[], Iterable[int]]]] = {}

    def define(self, code: Code) -> Code:
        """Registers a code. Raises ValueError if the name is taken."""
        if code.name in self._codes:
            raise ValueError(f"finding code {code.name} is defined twice")
        self._codes[code.name] = code
        return code

    def define_family(self, prefix: str, make: NumberedCodes, numbers: Callable[[], Iterable[int]]) -> None:
        """Registers the codes `prefix.N`; `numbers` are the documented ones. Raises ValueError if taken."""
        if prefix in self._families:
            raise ValueError(f"the family of finding codes {prefix} is defined twice")
        self._families[prefix] = (make, numbers)

    def get(self, name: str, severity: Severity | None = None, action: Action | None = None) -> Code:
        """The code of that name. Raises KeyError if there is none.

        Codes of a family depend on severity and action of the finding; without these, the worst case is returned.
        """
        if code := self._codes.get(name):
            return code
        prefix, _, number = name.partition(".")
        if prefix not in self._families or not _NUMBER.fullmatch(number):
            raise KeyError(name)
        return self._families[prefix][0](int(number), severity, action)

    def exists(self, name: str) -> bool:
        """Whether there is a code of that name."""
        try:
            self.get(name)
        except KeyError:
            return False
        return True

    def of(self, finding: Finding) -> Code:
        """The code of a finding. Raises KeyError for a finding of another version whose code does not exist here."""
        return self.get(finding.code, finding.severity, finding.action)

    def names(self) -> list[str]:
        """Every code; those of families for their documented numbers."""
        numbered = (f"{prefix}.{number}" for prefix, (_, known) in self._families.items() for number in known())
        return list(dict.fromkeys([*self._codes, *numbered]))

    def defined(self) -> tuple[Code, ...]:
        """Individually defined codes, in the order of their definition."""
        return tuple(self._codes.values())


CODES = Registry()
"""The codes of all monitors; complete once `gpuhealth.monitors` is imported."""


def define(
    name: str,
    severity: Severity,
    action: Action,
    *,
    meaning: str,
    advice: str,
    quarantine: bool = False,
    drain: bool = False,
    cordon: bool = False,
    essential: bool = False,
    raise_after: float = 0.0,
    clears: Clears = Clears.CLEAN_READING,
    clear_after: float = 30.0,
    asks_for_recovery: bool = False,
) -> Code:
    """Defines and registers a finding code; the arguments are the fields of Code. Raises ValueError if it exists."""
    return CODES.define(
        Code(
            name,
            severity,
            action,
            meaning,
            advice,
            quarantine=quarantine,
            drain=drain,
            cordon=cordon,
            essential=essential,
            raise_after=raise_after,
            clears=clears,
            clear_after=clear_after,
            asks_for_recovery=asks_for_recovery,
        )
    )
