"""SXids: meaning of the NVSwitch driver's error codes, and the resulting severity and action."""

from __future__ import annotations

import functools

import msgspec

from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.nvidia.catalog import policy
from gpuhealth.monitors.nvidia.catalog.policy import Policy
from gpuhealth.monitors.nvidia.catalog.table import rows

_UNITS = (
    ("HOST", "host interface"),
    ("NPORT_INGRESS", "ingress of a port"),
    ("NPORT_EGRESS", "egress of a port"),
    ("NPORT_FSTATE", "flush state of a port"),
    ("NPORT_TSTATE", "request tracking of a port"),
    ("NPORT_ROUTE", "routing of a port"),
    ("NPORT_SOURCETRACK", "source tracking of a port"),
    ("NPORT_MULTICASTTSTATE", "multicast tracking of a port"),
    ("NPORT_REDUCTIONTSTATE", "reduction tracking of a port"),
    ("NPORT", "port"),
    ("NVLIPT_LNK", "link interface"),
    ("NVLIPT", "link interface"),
    ("NVLTLC_TX", "transmitting transaction layer of a link"),
    ("NVLTLC_RX", "receiving transaction layer of a link"),
    ("NVLTLC", "transaction layer of a link"),
    ("NVLCTRL", "link controller"),
    ("DLPL", "data and physical layer of a link"),
    ("AFS", "crossbar"),
    ("MINION", "link processor"),
    ("NXBAR", "crossbar"),
    ("SOE", "switch processor"),
    ("CCI", "cable controller"),
    ("OSFP", "optical module"),
    ("GFW", "boot firmware"),
)


class SxidFacts(msgspec.Struct, frozen=True):
    """Catalogue entry of one SXid."""

    code: int
    mnemonic: str
    bucket: str
    printed: str  # fatal, nonfatal, contained (fatal once contained), either; empty if the driver prints no word
    guide: str  # class in the Fabric Manager guide
    causes: tuple[str, ...]
    source: str

    @property
    def meaning(self) -> str:
        """The part of the switch and the name of the error in words."""
        for prefix, unit in _UNITS:
            if self.mnemonic.startswith(prefix + "_"):
                rest = self.mnemonic.removeprefix(prefix + "_").replace("_", " ").lower()
                return f"NVSwitch, {unit}: {rest}"
        return f"NVSwitch: {self.mnemonic.replace('_', ' ').lower()}"

    @property
    def policy(self) -> Policy:
        """The policy if the line has no severity word."""
        return policy.of_bucket(self.bucket)

    @property
    def severity(self) -> Severity:
        """The severity if the line has no severity word."""
        return self.policy.severity

    @property
    def action(self) -> Action:
        """The action if the line has no severity word."""
        return self.policy.action

    @property
    def advice(self) -> str:
        """The remedy in words."""
        return self.policy.advice

    @property
    def program(self) -> bool:
        """Whether a program can cause it, so that it never takes a node out of service by itself."""
        return "app" in self.causes

    @property
    def escalates(self) -> bool:
        """Whether this code, if a warning, becomes critical when it repeats."""
        return self.policy.escalates


@functools.cache
def table() -> dict[int, SxidFacts]:
    """All known SXids by code."""
    return {
        int(row["code"]): SxidFacts(
            code=int(row["code"]),
            mnemonic=row["mnemonic"],
            bucket=row["bucket"],
            printed=row["printed"],
            guide=row["guide"],
            causes=tuple(row["causes"].split()),
            source=row["source"],
        )
        for row in rows("sxid.csv")
    }


def lookup(code: int) -> SxidFacts:
    """The facts of an SXid; placeholder facts for an unknown one."""
    return table().get(code) or SxidFacts(code, "UNKNOWN", "NONE", "", "", (), "")


def assess(code: int, word: str) -> tuple[Severity, Action]:
    """Severity and action by the printed word, which the driver chooses at run time; else by the table.

    A code printed as fatal without a better remedy needs a reset. A code printed as not fatal never does, whatever the
    table has: it is a warning if the table rates it above info.
    """
    each = lookup(code).policy
    match word.lower():
        case "fatal":
            return Severity.CRITICAL, each.action if each.severity is Severity.CRITICAL else Action.RESET_GPU
        case "correctable":
            return Severity.INFO, Action.NONE
        case "non-fatal" | "nonfatal":
            if each.severity is Severity.INFO:
                return each.severity, each.action
            needs_reset = each.action in (Action.RESET_GPU, Action.REBOOT_NODE)
            return Severity.WARNING, Action.NONE if needs_reset else each.action
        case _:
            return each.severity, each.action
