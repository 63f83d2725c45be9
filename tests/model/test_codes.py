"""Finding codes: one registry that refuses what is defined twice and knows what does not exist."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.findings import BOOT, GPU, START, TIMEOUT, at

from gpuhealth.model.codes import Clears, Code, Registry, Rule
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.finding import Action, Clean, Finding, NotChecked, Severity
from gpuhealth.model.policy import FindingPolicy
from gpuhealth.model.tracker import FindingTracker, TrackerRules

FULL = Code("mount.full", Severity.CRITICAL, Action.NONE, "It is full.", "Make room.", quarantine=True, drain=True)
STALE = msgspec.structs.replace(FULL, name="mount.stale", severity=Severity.WARNING)
DATA = Component(Kind.MOUNT, "/data")


def numbered(number: int, severity: Severity | None = None, action: Action | None = None) -> Code:
    """A code of a family, which is as bad as the finding is."""
    return Code(f"smart.{number}", severity or Severity.CRITICAL, action or Action.INSPECT_HARDWARE, "It.", "Do.")


def known() -> Iterable[int]:
    """The numbers of the family that are known by name."""
    return [5, 197]


@pytest.fixture
def registry() -> Registry:
    """Two codes and a family."""
    made = Registry()
    made.define(FULL)
    made.define(STALE)
    made.define_family("smart", numbered, known)
    return made


def test_codes_by_name(registry: Registry) -> None:
    """In the order of their definition, and those of families by the numbers that are known."""
    assert registry.get("mount.full") is FULL
    assert registry.defined() == (FULL, STALE)
    assert registry.names() == ["mount.full", "mount.stale", "smart.5", "smart.197"]


def test_a_name_that_is_taken(registry: Registry) -> None:
    """A second code of a name is refused, also an equal one, and so is a second family; the first one stays."""
    for another in (FULL, msgspec.structs.replace(FULL, drain=False)):
        with pytest.raises(ValueError, match=r"mount\.full is defined twice"):
            registry.define(another)
    with pytest.raises(ValueError, match="smart is defined twice"):
        registry.define_family("smart", lambda *_: FULL, list)
    assert registry.get("mount.full") is FULL
    assert registry.get("smart.5") == numbered(5)
    assert len(registry.names()) == 4


def test_a_family_makes_its_codes(registry: Registry) -> None:
    """Of any number, known or not: the worst case, or that of the finding at hand."""
    assert registry.get("smart.999999999") == numbered(999_999_999)
    assert registry.get("smart.5", Severity.INFO, Action.NONE) == numbered(5, Severity.INFO, Action.NONE)
    found = numbered(5).found(GPU, "text", now=START, source="test", severity=Severity.WARNING, action=Action.NONE)
    assert registry.of(found) == numbered(5, Severity.WARNING, Action.NONE)


@pytest.mark.parametrize(
    "name",
    ["", ".", "mount", "mount.", "mount.ful", "MOUNT.FULL", "mount.full ", "mount.full.", "smart", "smart.", "smart.x",
     "smart.-1", "smart.+1", "smart. 1", "smart.1_0", "smart.²", "smart.٣", "smart.5.1", "smart.05", "smart.00",
     "smart.1000000000", "smart." + "9" * 5000, ".5", "other.5"],
)  # fmt: skip
def test_a_name_that_does_not_exist(registry: Registry, name: str) -> None:
    """It raises KeyError, and exists under no other spelling: a setting for it would never apply."""
    assert not registry.exists(name)
    with pytest.raises(KeyError):
        registry.get(name)


@given(st.text(max_size=20), st.from_regex(r"(smart|mount|xid)(\.[0-9a-z]{0,11})?", fullmatch=True))
def test_what_exists_has_that_name(text: str, likely: str) -> None:
    """Whatever name is looked up, the code that is found carries it."""
    registry = Registry()
    registry.define(FULL)
    registry.define_family("smart", numbered, known)
    for name in (text, likely):
        if registry.exists(name):
            assert registry.get(name).name == name


def test_a_code_of_a_familys_name(registry: Registry) -> None:
    """A code may be called like a family: it stands for all of it, as xid does."""
    registry.define(msgspec.structs.replace(FULL, name="smart"))
    assert registry.get("smart").name == "smart"
    assert registry.get("smart.5") == numbered(5)


def test_outcomes() -> None:
    """Each is of the code and the component, and a finding has what it says of itself from the code."""
    assert FULL.clean() == Clean("mount.full", NODE)
    assert FULL.clean(DATA) == Clean("mount.full", DATA)
    assert FULL.not_checked(TIMEOUT) == NotChecked("mount.full", NODE, TIMEOUT)
    assert FULL.not_checked(TIMEOUT, DATA) == NotChecked("mount.full", DATA, TIMEOUT)
    found = FULL.found(DATA, "no room", now=at(1), source="statvfs", reading=0.99, threshold=0.95)
    assert (found.code, found.component, found.message, found.first_seen, found.last_seen) == (
        "mount.full",
        DATA,
        "no room",
        at(1),
        at(1),
    )
    assert (found.severity, found.action, found.clears_when) == (FULL.severity, FULL.action, "read clean for 30 s")
    assert (found.evidence.reading, found.evidence.threshold, found.evidence.time) == ("0.99", "0.95", at(1))
    milder = FULL.found(DATA, "", now=at(1), source="", severity=Severity.INFO, action=Action.REBOOT_NODE)
    assert (milder.severity, milder.action) == (Severity.INFO, Action.REBOOT_NODE)


@pytest.mark.parametrize("clears", Clears)
def test_every_rule_is_told_in_words(clears: Clears) -> None:
    """A finding says what ends it; the time is named where there is one to wait for."""
    words = msgspec.structs.replace(FULL, clears=clears, clear_after=77.0).clears_when
    timed = clears in (Clears.CLEAN_READING, Clears.QUIET_PERIOD, Clears.LOGGED_END)
    assert words
    assert ("77 s" in words) is timed


def finding(code: Code, severity: Severity | None = None) -> Finding:
    """A finding of a code."""
    return code.found(DATA, "", now=START, source="", severity=severity)


def test_what_takes_a_node_out_of_service() -> None:
    """A critical finding of a quarantining code; where the policy says so, one of any severity, or none."""
    usual = Rule(FULL, FindingPolicy())
    assert (usual.quarantines(finding(FULL)), usual.drains(finding(FULL))) == (True, True)
    warning = finding(FULL, Severity.WARNING)
    assert (usual.quarantines(warning), usual.drains(warning)) == (False, False)
    harmless = msgspec.structs.replace(FULL, quarantine=False)
    assert not Rule(harmless, FindingPolicy()).quarantines(finding(harmless))
    assert not Rule(harmless, FindingPolicy()).drains(finding(harmless)), "nothing is drained that stays in service"
    for asked in (True, False):
        rule = Rule(FULL, FindingPolicy(quarantine=asked, drain=True))
        assert (rule.quarantines(warning), rule.drains(warning)) == (asked, asked)
    assert not Rule(FULL, FindingPolicy(drain=False)).drains(finding(FULL))


def test_what_a_policy_changes_of_a_code() -> None:
    """Times that it names, zero as well; those that it does not are the code's."""
    code = msgspec.structs.replace(FULL, raise_after=10.0, clear_after=20.0)
    assert (Rule(code, FindingPolicy()).raise_after, Rule(code, FindingPolicy()).clear_after) == (10.0, 20.0)
    rule = Rule(code, FindingPolicy(raise_after=0.0, clear_after=0.0))
    assert (rule.raise_after, rule.clear_after) == (0.0, 0.0)


def test_the_codes_of_a_deployment() -> None:
    """What the settings make of a code holds in the tracker: here it ends sooner than by default."""
    sooner = msgspec.structs.replace(FULL, name="gpu.lost", clear_after=5.0)
    tracked = FindingTracker(TrackerRules(code_of=lambda _: sooner))
    tracked.apply([finding(sooner)], at(0), BOOT)
    assert tracked.apply([sooner.clean(DATA)], at(1), BOOT) == []
    assert [change.reason for change in tracked.apply([sooner.clean(DATA)], at(6), BOOT)] == ["read clean for 5 s"]
