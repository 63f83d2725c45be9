"""Kernel-log messages about the host's memory and processors: EDAC, machine checks, pages that failed."""

from __future__ import annotations

import re

from gpuhealth.kernel_log.pattern import Groups, LineMeaning, line_pattern, number
from gpuhealth.kernel_log.user_text import BYTE, NAME_BYTES
from gpuhealth.model.codes import Code
from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.kernel_log import codes

_INFO, _WARNING, _CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL


def _edac(groups: Groups) -> LineMeaning:
    if groups["what"] == "CE":
        return LineMeaning(
            finding=codes.MEMORY_EDAC,
            severity=_INFO,
            action=Action.NONE,
            meaning="Corrected error in the host's memory",
        )
    if groups["recoverable"]:
        return _recovered("Uncorrectable error in the host's memory, from which the kernel could recover")
    return _lost("Uncorrectable error in the host's memory")


def _memory_failure(groups: Groups) -> LineMeaning:
    page = groups["page"]
    if groups["result"] in ("Failed", "Ignored"):
        return _lost(f"Page {page} of the host's memory has failed and is still in use")
    if groups["result"]:
        return _recovered(f"Page {page} of the host's memory has failed; the kernel has taken it out of use")
    return LineMeaning(
        finding=codes.MEMORY_RECOVERED,
        severity=_WARNING,
        action=Action.RESTART_WORKLOAD,
        meaning=f"A page of the host's memory has failed: {page}; the kernel has ended the program that used it",
        pid=number(groups["pid"]),
        process=groups["process"] or None,
    )


def _lost(meaning: str) -> LineMeaning:
    return LineMeaning(finding=codes.MEMORY_EDAC, severity=_CRITICAL, action=Action.INSPECT_HARDWARE, meaning=meaning)


def _recovered(meaning: str) -> LineMeaning:
    return LineMeaning(finding=codes.MEMORY_RECOVERED, severity=_WARNING, action=Action.NONE, meaning=meaning)


def _mce(groups: Groups) -> LineMeaning:
    if groups["logged"]:
        return _machine_check(_WARNING, Action.NONE, "The processor logged machine-check events")
    if groups["exception"]:
        return _machine_check(_CRITICAL, Action.INSPECT_HARDWARE, "The processor raised a machine-check exception")
    return _machine_check(_WARNING, Action.INSPECT_HARDWARE, "The processor reported a machine check")


def _machine_check(severity: Severity, action: Action, meaning: str, finding: Code = codes.MCE) -> LineMeaning:
    return LineMeaning(finding=finding, severity=severity, action=action, meaning=meaning)


def _ghes(groups: Groups) -> LineMeaning:
    word = groups["severity"].lower()
    meaning = f"The firmware reported a hardware error ({word})"
    if word in ("corrected", "info", "informational"):
        return _machine_check(_INFO, Action.NONE, meaning)
    return _machine_check(_CRITICAL if word in ("fatal", "panic") else _WARNING, Action.INSPECT_HARDWARE, meaning)


_NAME = rf"(?P<process>{BYTE}{{1,{NAME_BYTES}}}?)"
_EDAC_PAGE = re.compile(r"EDAC .{1,512}? page:0x([0-9a-f]{1,16}) ", re.ASCII | re.DOTALL)
_FAILED_PAGE = re.compile(r"Memory failure: 0x([0-9a-f]{1,16}): ", re.ASCII)

LINES = (
    # "recoverable" is printed by sb_edac.c and skx_common.c in drivers/edac.
    line_pattern(
        "edac",
        ("EDAC",),
        r"EDAC (?:\w{1,32} )?MC\d+: \d+ (?P<what>CE|UE) (?:[\w ,./()-]{1,120} )?on "
        r"(?:[^\n]{1,400}? - {1,2}(?:OVERFLOW )?(?P<recoverable>recoverable) )?",
        _edac,
    ),
    # mm/memory-failure.c. The results are Ignored, Failed, Delayed (until the page is next used) and Recovered.
    line_pattern(
        "edac",
        ("Memory failure",),
        r"Memory failure: (?P<page>0x[0-9a-f]{1,16}): (?:recovery action for [\w /,()-]{1,60}: (?P<result>\w{1,16})|"
        rf"(?:Sending SIGBUS to|Killing) {_NAME}:(?P<pid>\d+) due to hardware memory corruption)",
        _memory_failure,
    ),
    line_pattern(
        "mce",
        ("mce: [Hardware Error]",),
        r"mce: \[Hardware Error\]: (?:(?P<logged>Machine check events logged)|"
        r"CPU \d+: Machine Check(?P<exception> Exception)?: )",
        _mce,
    ),
    line_pattern(
        "mce",
        ("[Hardware Error]",),
        r"(?:\{\d+\})?\[Hardware Error\]:\s+event severity: (?P<severity>\w+)",
        _ghes,
    ),
)


def failed_page(line: str) -> int | None:
    """Number of the page that a line about failed memory names; None for any other line."""
    found = _FAILED_PAGE.match(line) or _EDAC_PAGE.match(line)
    return int(found[1], 16) if found else None
