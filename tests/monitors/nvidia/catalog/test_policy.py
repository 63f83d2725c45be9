"""Every XID and SXid, in a line as the driver prints it, becomes what the policy for its bucket says."""

import pytest

from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.nvidia.catalog import sxid, xid
from gpuhealth.monitors.registry import kernel_log_parser

INFO, WARNING, CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL
EXPECTED = {
    "IGNORE": (INFO, Action.NONE),
    "RESTART_APP": (WARNING, Action.RESTART_WORKLOAD),
    "WORKFLOW_XID_45": (WARNING, Action.RESTART_WORKLOAD),
    "CHECK_UVM": (WARNING, Action.RESTART_WORKLOAD),
    "RESET_GPU": (CRITICAL, Action.RESET_GPU),
    "WORKFLOW_XID_48": (CRITICAL, Action.RESET_GPU),
    "RESET_FABRIC": (CRITICAL, Action.RESET_GPU),
    "WORKFLOW_NVLINK_POTENTIALLY_FATAL_ERR": (CRITICAL, Action.RESET_GPU),
    "RESTART_BM": (CRITICAL, Action.REBOOT_NODE),
    "RESTART_VM": (CRITICAL, Action.REBOOT_NODE),
    "CHECK_MECHANICALS": (CRITICAL, Action.INSPECT_HARDWARE),
    "CHECK_LINK_MECHANICAL_CONNECTIONS": (CRITICAL, Action.INSPECT_HARDWARE),
    "CHECK_THERMALS": (CRITICAL, Action.INSPECT_HARDWARE),
    "RUN_FIELDDIAG": (CRITICAL, Action.INSPECT_HARDWARE),
    "INVESTIGATE_LINK_SI": (CRITICAL, Action.INSPECT_HARDWARE),
    "UPDATE_SWFW": (CRITICAL, Action.UPDATE_SOFTWARE),
    "CHECK_FM_CONFIG": (CRITICAL, Action.UPDATE_SOFTWARE),
    "CONTACT_SUPPORT": (WARNING, Action.CONTACT_SUPPORT),
    "REPORT_ISSUE": (WARNING, Action.CONTACT_SUPPORT),
    "UNEXPECTED_ERR_REPORT_ISSUE": (WARNING, Action.CONTACT_SUPPORT),
    "WORKFLOW_NVLINK_ERR": (WARNING, Action.CONTACT_SUPPORT),
    "WORKFLOW_NVLINK5_ERR": (WARNING, Action.CONTACT_SUPPORT),
    "NONE": (WARNING, Action.CONTACT_SUPPORT),
    "XID_154": (WARNING, Action.NONE),
}


def event(line: str) -> KernelEvent:
    """The event of a line that has one."""
    found = kernel_log_parser().feed(KernelRecord(line))
    assert found is not None, line
    return found


def test_the_catalogue_is_whole() -> None:
    """All 177 XIDs and 400 SXids are there, each with a name, a meaning and a source."""
    assert (len(xid.table()), len(sxid.table())) == (177, 400)
    assert all(each.mnemonic and each.meaning and each.source and each.advice for each in xid.table().values())
    assert all(each.mnemonic and each.meaning and each.source and each.advice for each in sxid.table().values())


@pytest.mark.parametrize("code", sorted(xid.table()))
def test_every_xid(code: int) -> None:
    """An XID without words of its own follows its bucket; one that is not in use is a warning."""
    found = event(f"NVRM: Xid (PCI:0000:3b:00): {code}, pid=42, name=python, some words")
    facts = xid.lookup(code)
    expected = EXPECTED[facts.bucket] if facts.used else (WARNING, Action.CONTACT_SUPPORT)
    assert (found.severity, found.action) == expected
    assert (found.kind, found.code, found.pci, found.pid, found.process) == ("xid", code, "0000:3b:00", 42, "python")
    assert found.finding == f"xid.{code}"


@pytest.mark.parametrize("code", sorted(sxid.table()))
def test_every_sxid_without_a_word(code: int) -> None:
    """Where the driver prints no word, the table decides."""
    found = event(f"nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): {code:05d}, something happened")
    assert (found.severity, found.action) == EXPECTED[sxid.lookup(code).bucket]
    assert (found.kind, found.code, found.pci, found.link) == ("sxid", code, "0000:a9:00", None)


@pytest.mark.parametrize("code", sorted(sxid.table()))
def test_the_printed_word_wins(code: int) -> None:
    """Fatal is critical and asks for a reset unless the table knows better; Non-fatal never is and never does."""
    fatal = event(f"nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): {code:05d}, Fatal, Link 07 text")
    severity, action = EXPECTED[sxid.lookup(code).bucket]
    assert fatal.severity is CRITICAL
    assert fatal.action is (action if severity is CRITICAL else Action.RESET_GPU)
    assert fatal.link == 7
    mild = event(f"nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): {code:05d}, Non-fatal, Link 07 text")
    assert mild.severity is (INFO if severity is INFO else WARNING)
    assert mild.action not in (Action.RESET_GPU, Action.REBOOT_NODE)


def test_what_a_program_can_cause_is_marked() -> None:
    """XIDs that a program can cause are distinguished from hardware-only ones."""
    assert all(xid.lookup(code).program for code in (13, 31, 43, 45, 109))
    assert not any(xid.lookup(code).program for code in (48, 62, 64, 74, 95, 119, 120, 140))
    assert xid.lookup(94).severity is WARNING


def test_unknown_codes() -> None:
    """A code that is in no catalogue is a warning."""
    assert event("NVRM: Xid (PCI:0000:3b:00): 999, whatever").severity is WARNING
    assert event("nvidia-nvswitch1: SXid (PCI:0000:a9:00.0): 99999, whatever").severity is WARNING


def test_correctable_is_information() -> None:
    """An SXid that is printed as correctable is recorded only."""
    assert event("nvidia-nvswitch1: SXid (PCI:0000:a9:00.0): 23001, Correctable, text").severity is INFO
