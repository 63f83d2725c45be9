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
    def strength(self) -> tuple[int, int]:
        """Orders actions by how much they ask for."""
        return self.severity.rank, _STRENGTH.get(self.action, 0)

    @property
    def request(self) -> str:
        """What the driver asks for, as a sentence."""
        if self.action is Action.NONE:
            return f"The driver requests no recovery action: {self.meaning}"
        return f"The driver requests {self.name}: {self.meaning}"

    @property
    def quarantine(self) -> bool:
        """Whether a GPU with this action is taken out of service."""
        return self.severity is Severity.CRITICAL


_STRENGTH = {Action.RESTART_WORKLOAD: 1, Action.CONTACT_SUPPORT: 2, Action.RESET_GPU: 3, Action.REBOOT_NODE: 4}

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
    if action := _by_words(name):
        return msgspec.structs.replace(action, value=value, name=name)
    unknown = f"an action that is not known ({value}{f', {name}' if name else ''})"
    return RecoveryAction(value, name or "unknown", Severity.WARNING, Action.CONTACT_SUPPORT, unknown)


def _by_words(name: str) -> RecoveryAction | None:
    """The known action with the longest word that the name contains."""
    words = sorted(actions().values(), key=lambda each: -len(each.word))
    return next((action for action in words if action.word in name.lower()), None)


def from_text(text: str) -> RecoveryAction | None:
    """The new action in the text of an XID 154. If its number and its words differ, the stronger action counts."""
    match = _TEXT.search(text)
    if match is None:
        return None
    by_number = recovery_action(int(match[1], 16), match[2] or "")
    by_words = _by_words(match[2] or "")
    if by_words is None or by_words.strength <= by_number.strength:
        return by_number
    return by_words
