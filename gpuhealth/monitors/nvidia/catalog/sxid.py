"""SXids: what the NVSwitch driver's error codes mean and what follows from them."""

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
    """What is known of one SXid."""

    code: int
    mnemonic: str
    bucket: str
    printed: str  # fatal, nonfatal, contained (fatal once contained), either; empty where the driver prints no word
    guide: str  # class in the Fabric Manager guide
    causes: tuple[str, ...]
    source: str

    @property
    def meaning(self) -> str:
        """The part of the switch and the error's name as words."""
        for prefix, unit in _UNITS:
            if self.mnemonic.startswith(prefix + "_"):
                rest = self.mnemonic.removeprefix(prefix + "_").replace("_", " ").lower()
                return f"NVSwitch, {unit}: {rest}"
        return f"NVSwitch: {self.mnemonic.replace('_', ' ').lower()}"

    @property
    def policy(self) -> Policy:
        """What we make of it where the line prints no word."""
        return policy.of_bucket(self.bucket)

    @property
    def severity(self) -> Severity:
        """The severity where the line prints no word."""
        return self.policy.severity

    @property
    def action(self) -> Action:
        """The action where the line prints no word."""
        return self.policy.action

    @property
    def advice(self) -> str:
        """What to do, in words."""
        return self.policy.advice

    @property
    def program(self) -> bool:
        """A program can cause it, so it never takes a node out of service by itself."""
        return "app" in self.causes

    @property
    def escalates(self) -> bool:
        """A warning of this code becomes critical when it repeats."""
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
    """The facts of an SXid; of one that is not known, that nothing is known."""
    return table().get(code) or SxidFacts(code, "UNKNOWN", "NONE", "", "", (), "")


def assess(code: int, word: str) -> tuple[Severity, Action]:
    """Severity and action by the printed word, which the driver decides at run time; by the table where there is none.

    What is printed as fatal and has no better remedy needs a reset. What is printed as not fatal never does, whatever
    the table says: it is a warning where the table sees more than nothing in it.
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
