"""GPU recovery actions requested by the driver, by the value of NVML field 230 or the text of XID 154."""

from __future__ import annotations

import functools
import re

import msgspec

from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.nvidia.catalog.table import rows


class RecoveryAction(msgspec.Struct, frozen=True):
    """One recovery action of the driver."""

    value: int
    name: str
    severity: Severity
    action: Action
    meaning: str
    word: str = ""  # identifies the action in a text

    @property
    def quarantine(self) -> bool:
        """Whether a GPU with this action is taken out of service."""
        return self.severity is Severity.CRITICAL


_TEXT = re.compile(
    r"GPU recovery action changed from 0x[0-9a-f]{1,8} \([^)]*\) to 0x([0-9a-f]{1,8})(?: \(([^)]*)\))?",
    re.ASCII | re.IGNORECASE,
)


@functools.cache
def actions() -> dict[int, RecoveryAction]:
    """All known actions by value."""
    return {
        int(row["value"]): RecoveryAction(
            value=int(row["value"]),
            name=row["name"],
            severity=Severity(row["severity"]),
            action=Action(row["action"]),
            meaning=row["meaning"],
            word=row["word"],
        )
        for row in rows("recovery.csv")
    }


def recovery_action(value: int, name: str = "") -> RecoveryAction:
    """The action for a value; for an unknown value, by the words of its name.

    The value goes first, since drivers phrase one action differently: 0x2 is "Node Reboot Required" or "OS Reboot".
    """
    known = actions()
    if value in known:
        return known[value]
    for action in sorted(known.values(), key=lambda each: -len(each.word)):
        if action.word in name.lower():
            return msgspec.structs.replace(action, value=value, name=name)
    unknown = f"an action that is not known ({value}{f', {name}' if name else ''})"
    return RecoveryAction(value, name or "unknown", Severity.WARNING, Action.CONTACT_SUPPORT, unknown)


def from_text(text: str) -> RecoveryAction | None:
    """The new action named in the text of an XID 154."""
    match = _TEXT.search(text)
    return recovery_action(int(match[1], 16), match[2] or "") if match else None
