"""Reads the hex words of NVLink XIDs: registers of 74 (NVLink 3 and 4), status words of 144 to 150 (NVLink 5)."""

from __future__ import annotations

import functools
import re

import msgspec

from gpuhealth.monitors.nvidia.catalog import policy
from gpuhealth.monitors.nvidia.catalog.policy import Policy
from gpuhealth.monitors.nvidia.catalog.table import rows

FIRST_V2_DRIVER = 575
"""The first driver branch with the second layout of the interrupt word of XID 144-150."""


class Decoded(msgspec.Struct, frozen=True):
    """The meaning of the hex words of one line."""

    policy: Policy
    meaning: str
    link: int | None = None


# --- XID 74 -----------------------------------------------------------------------------------------------------------

_LINK74 = re.compile(r"link (-?\d{1,4})\s*\(((?:0x[0-9a-f]{1,8}(?:, ?)?){1,16})\)", re.ASCII | re.IGNORECASE)
_CLASS74 = {
    "ignore": policy.IGNORE,
    "secondary": policy.REPORT,  # the causing error has its own line; without one, a case for the vendor
    "repeat": policy.REPORT,
    "signal": policy.SIGNAL,
    "hardware": policy.INSPECT,
    "reset": policy.RESET,
}


@functools.cache
def _bits74() -> dict[tuple[int, int], tuple[Policy, str]]:
    return {
        (int(row["register"]), int(bit)): (_CLASS74[row["class"]], row["meaning"])
        for row in rows("xid74.csv")
        for bit in row["bits"].split()
    }


def decode_74(text: str) -> Decoded | None:
    """The worst of the bits set in the registers of an XID 74; None if the text has no registers."""
    match = _LINK74.search(text)
    if match is None:
        return None
    table = _bits74()
    set_bits = [
        (number, bit)
        for number, word in enumerate(match[2].split(","), 1)
        for bit in range(32)
        if int(word, 16) >> bit & 1
    ]
    found = [table.get(place, (policy.REPORT, "bit {} of register {}".format(*reversed(place)))) for place in set_bits]
    link = int(match[1])
    if not found:
        return Decoded(policy.REPORT, f"NVLink {link}: an error without any register bit", link)
    worst = max((each for each, _ in found), key=_badness)
    meanings = dict.fromkeys(meaning for each, meaning in found if each is worst)
    return Decoded(worst, f"NVLink {link}: {'; '.join(meanings)}", link)


def _badness(each: Policy) -> tuple[int, bool]:
    return each.severity.rank, each.escalates


# --- XID 144 to 150 ---------------------------------------------------------------------------------------------------

_LINE5 = re.compile(
    r"(?P<unit>[A-Z][A-Z0-9_/]{1,40}(?: Degraded)?)"
    r"(?: (?P<word>Fatal|Nonfatal|Non-fatal|Link Fatal))? XC\d+ i\d+"
    r" Link (?P<link>-?\d{1,4}) \((?P<words>0x[0-9a-f]{1,8}(?: 0x[0-9a-f]{1,8}){1,15})\)",
    re.ASCII | re.IGNORECASE,
)


class Pattern(msgspec.Struct, frozen=True):
    """A bit pattern: a word matches if its masked bits have the value."""

    mask: int
    value: int

    @staticmethod
    def parse(text: str) -> Pattern | None:
        """A pattern from 32 characters 0, 1 and - (any), bit 31 first."""
        if not text:
            return None
        return Pattern(int(text.translate(_MASK), 2), int(text.replace("-", "0"), 2))

    def matches(self, word: int) -> bool:
        """Whether the word matches the pattern."""
        return word & self.mask == self.value


_MASK = str.maketrans("01-", "110")


class Rule5(msgspec.Struct, frozen=True):
    """One row of the decode table."""

    units: frozenset[str]
    patterns: tuple[Pattern, Pattern]  # V1, V2
    statuses: tuple[int, ...]  # empty: any
    bucket: str
    second: tuple[Pattern | None, Pattern | None]
    second_bucket: str

    def bucket_for(self, version: int, word: int) -> str | None:
        """The bucket if the interrupt word matches in this layout (0 is V1, 1 is V2)."""
        second = self.second[version]
        if second is not None and second.matches(word):
            return self.second_bucket
        return self.bucket if self.patterns[version].matches(word) else None


@functools.cache
def rules5() -> dict[int, tuple[Rule5, ...]]:
    """The decode table by XID."""
    table: dict[int, list[Rule5]] = {}
    for row in rows("nvlink5.csv"):
        v1, v2 = Pattern.parse(row["v1"]), Pattern.parse(row["v2"])
        assert v1, "every row has both patterns"
        assert v2, "every row has both patterns"
        rule = Rule5(
            units=frozenset(row["unit"].split("/")),
            patterns=(v1, v2),
            statuses=tuple(int(status, 16) for status in row["status"].split("/") if status),
            bucket=row["bucket"],
            second=(Pattern.parse(row["second_v1"]), Pattern.parse(row["second_v2"])),
            second_bucket=row["second_bucket"],
        )
        table.setdefault(int(row["xid"]), []).append(rule)
    return {xid: tuple(each) for xid, each in table.items()}


def bucket_5(xid: int, unit: str, interrupt: int, status: int, driver: int | None = None) -> str | None:
    """The bucket of NVLink 5 status words; None if no row matches.

    `driver` is the driver's branch (570, 575 …); if unknown, the newer layout is tried first.
    """
    candidates = [rule for rule in rules5().get(xid, ()) if unit in rule.units]
    versions = (1, 0) if driver is None else ((1,) if driver >= FIRST_V2_DRIVER else (0,))
    for version in versions:
        fits = [(rule, bucket) for rule in candidates if (bucket := rule.bucket_for(version, interrupt)) is not None]
        exact = [bucket for rule, bucket in fits if not rule.statuses or status in rule.statuses]
        # The status word of the link units is a set of bits: several may be set at once, and the worst one counts.
        bits = [] if unit.startswith("NETIR") else [b for r, b in fits if any(status & each for each in r.statuses)]
        if found := exact or bits:
            return max(found, key=lambda bucket: policy.of_bucket(bucket).severity.rank)
    return None


def decode_5(xid: int, text: str, driver: int | None = None) -> Decoded | None:
    """The meaning of an XID 144-150, from the printed word if no row matches; None if the text has another form."""
    match = _LINE5.search(text)
    if match is None:
        return None
    words = [int(word, 16) for word in match["words"].split()]
    link = int(match["link"])
    where = match["unit"] if link < 0 else f"{match['unit']} of NVLink {link}"
    bucket = bucket_5(xid, match["unit"], words[0], words[1], driver)
    fatal = (match["word"] or "").lower() in ("fatal", "link fatal")
    unlisted = policy.RESET if fatal else policy.REPORT
    each = unlisted if bucket is None else policy.of_bucket(bucket)
    return Decoded(each, f"{where}: interrupt {words[0]:#010x}, status {words[1]:#010x}", link if link >= 0 else None)
