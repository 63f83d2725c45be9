"""XIDs: meaning of the driver's error codes, and the resulting severity and action."""

from __future__ import annotations

import functools

import msgspec

from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.nvidia.catalog import nvlink_xid as nvlink
from gpuhealth.monitors.nvidia.catalog import policy, recovery
from gpuhealth.monitors.nvidia.catalog.policy import Policy
from gpuhealth.monitors.nvidia.catalog.table import rows

FELL_OFF_THE_BUS = 79
RECOVERY_ACTION = 154
CONSEQUENCES = frozenset({43, 45})
"""Codes that the driver raises while cleaning up after another one."""
NVLINK = frozenset({74, *range(144, 151)})
"""Codes whose hex words determine the severity."""
BY_TEXT = NVLINK | {RECOVERY_ACTION}


class XidFacts(msgspec.Struct, frozen=True):
    """Catalogue entry of one XID."""

    code: int
    mnemonic: str
    bucket: str
    next_step: str  # NVIDIA's bucket for later investigation
    causes: tuple[str, ...]
    used: bool  # false: according to the catalogue not raised on data-center GPUs
    meaning: str
    source: str

    @property
    def policy(self) -> Policy:
        """The policy if the line has no further information."""
        return policy.of_bucket(self.bucket, used=self.used)

    @property
    def severity(self) -> Severity:
        """The severity if the line has no further information."""
        return self.policy.severity

    @property
    def action(self) -> Action:
        """The action if the line has no further information."""
        return self.policy.action

    @property
    def advice(self) -> str:
        """The remedy in words."""
        return self.policy.advice

    @property
    def program(self) -> bool:
        """Whether a program can cause it, so that it never takes a node out of service by itself."""
        return "app" in self.causes or self.policy.action is Action.RESTART_WORKLOAD

    @property
    def escalates(self) -> bool:
        """Whether this code, if a warning that requires more than a restart, becomes critical when it repeats."""
        return self.policy.escalates


@functools.cache
def table() -> dict[int, XidFacts]:
    """All known XIDs by code."""
    return {
        int(row["code"]): XidFacts(
            code=int(row["code"]),
            mnemonic=row["mnemonic"],
            bucket=row["bucket"],
            next_step=row["next"],
            causes=tuple(row["causes"].split()),
            used=row["used"] == "yes",
            meaning=row["meaning"],
            source=row["source"],
        )
        for row in rows("xid.csv")
    }


def lookup(code: int) -> XidFacts:
    """The facts of an XID; placeholder facts for an unknown one."""
    return table().get(code) or XidFacts(code, "UNKNOWN", "NONE", "", (), False, "Not in the catalogue", "")


class Assessment(msgspec.Struct, frozen=True):
    """Assessment of one line of an XID."""

    severity: Severity
    action: Action
    meaning: str
    link: int | None = None


def assess(code: int, text: str, driver: int | None = None) -> Assessment:
    """Severity and action of an XID by its text if that is decisive, else by its bucket."""
    plain = _assessments().get(code)
    if plain is None:
        facts = lookup(code)
        return Assessment(facts.severity, facts.action, facts.meaning)
    if code in BY_TEXT:
        return _by_text(code, text, driver, plain.meaning) or plain
    return plain


def _by_text(code: int, text: str, driver: int | None, meaning: str) -> Assessment | None:
    if code == RECOVERY_ACTION:
        asked = recovery.from_text(text)
        if asked is None:
            return None
        return Assessment(asked.severity, asked.action, asked.request)
    decoded = nvlink.decode_74(text) if code == 74 else nvlink.decode_5(code, text, driver)
    if decoded is None:
        return None
    each = decoded.policy
    return Assessment(each.severity, each.action, f"{meaning} ({decoded.meaning})", decoded.link)


@functools.cache
def _assessments() -> dict[int, Assessment]:
    return {code: Assessment(facts.severity, facts.action, facts.meaning) for code, facts in table().items()}
