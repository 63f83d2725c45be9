"""Failed pages of the host's memory: one from which the kernel recovered is a warning, many are a fault."""

from __future__ import annotations

from datetime import timedelta

from testing.findings import tracker
from testing.readings import START

from gpuhealth.model.finding import Finding, Severity
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings

RECOVERED = "Memory failure: {:#x}: recovery action for dirty LRU page: Recovered"
SIGBUS = "Memory failure: {:#x}: Sending SIGBUS to python:12 due to hardware memory corruption"
EDAC = "EDAC MC0: 1 UE on mc#0csrow#1channel#0 (csrow:1 channel:0 page:{:#x} offset:0x0 grain:0)"
LIMIT = Settings().host_memory.recovered_critical


class Node:
    """A node whose kernel reports failed pages."""

    def __init__(self) -> None:
        self._judge = Judge(Settings(), boot_id="boot-1", time=START)
        self._parser = kernel_log_parser()

    def finds(self, *lines: str, after: float = 0.0) -> list[tuple[str, Severity]]:
        """The findings of lines that are logged together, so many seconds after the start."""
        when = START + timedelta(seconds=after)
        events = [event for line in lines if (event := self._parser.feed(KernelRecord(line, when)))]
        return [
            (each.code, each.severity) for each in self._judge.judge_events(events, when) if isinstance(each, Finding)
        ]


WARNING = [("host.memory_recovered", Severity.WARNING)]
CRITICAL = [("host.memory_edac", Severity.CRITICAL)]


def test_a_page_that_the_kernel_recovered() -> None:
    """One page, and what the kernel says of it in several lines, is a warning."""
    assert Node().finds(SIGBUS.format(1), RECOVERED.format(1), SIGBUS.format(1)) == WARNING


def test_a_page_that_is_lost() -> None:
    """A page that could not be taken out of use is a fault of the node."""
    assert Node().finds("Memory failure: 0x1: recovery action for reserved kernel page: Ignored") == CRITICAL
    assert Node().finds(EDAC.format(1)) == CRITICAL


def test_edac_reports_a_recovered_page_again() -> None:
    """The memory controller's line about a page from which the kernel has recovered makes nothing worse."""
    assert Node().finds(RECOVERED.format(0x1F3), EDAC.format(0x1F3)) == WARNING
    assert set(Node().finds(RECOVERED.format(0x1F3), EDAC.format(0x1F4))) == {*WARNING, *CRITICAL}


def test_many_pages() -> None:
    """Many different pages within a day are a fault of the memory; the same page again, or over weeks, is not."""
    node = Node()
    for page in range(1, LIMIT):
        assert node.finds(RECOVERED.format(page), after=page * 600) == WARNING
    assert node.finds(RECOVERED.format(1), after=LIMIT * 600) == WARNING
    assert node.finds(RECOVERED.format(LIMIT), after=LIMIT * 600) == CRITICAL
    slow = Node()
    assert {each for page in range(3 * LIMIT) for each in slow.finds(RECOVERED.format(page), after=page * 43200)} == {
        *WARNING
    }


def test_a_storm_of_pages_stays_small() -> None:
    """Thousands of lines leave little memory and one finding of each code."""
    node = Node()
    assert set(node.finds(*(RECOVERED.format(page) for page in range(20_000)))) == {*WARNING, *CRITICAL}


def test_the_warning_ends_by_itself() -> None:
    """A day without another page ends it."""
    judge = Judge(Settings(), boot_id="boot-1", time=START)
    event = kernel_log_parser().feed(KernelRecord(RECOVERED.format(1), START))
    assert event is not None
    tracked = tracker()
    tracked.apply(judge.judge_events([event], START), START, "boot-1")
    assert [each.code for each in tracked.active()] == ["host.memory_recovered"]
    assert tracked.quarantine().findings == ()
    tracked.apply([], START + timedelta(days=1, seconds=1), "boot-1")
    assert tracked.active() == ()
