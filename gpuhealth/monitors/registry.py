"""Loads the monitors that are listed in `gpuhealth.monitors`, and their finding codes."""

from __future__ import annotations

import functools
import importlib
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from gpuhealth.kernel_log.parser import KernelLogParser
from gpuhealth.model import out_of_service  # noqa: F401 - its codes belong to no monitor
from gpuhealth.model.codes import CODES, Code
from gpuhealth.monitors import MONITORS
from gpuhealth.monitors.monitor import Monitor
from gpuhealth.runtime.settings import CoreSettings

AnyMonitor: TypeAlias = Monitor[Any, Any, Any]


@functools.cache
def monitors() -> tuple[AnyMonitor, ...]:
    """All monitors, in the order of the list."""
    found = []
    for name in MONITORS:
        monitor: AnyMonitor = importlib.import_module(f"gpuhealth.monitors.{name}.monitor").MONITOR
        if monitor.name != name:
            raise ValueError(f"gpuhealth/monitors/{name}/monitor.py has a monitor named {monitor.name}")
        found.append(monitor)
    return tuple(found)


def enabled(settings: CoreSettings) -> tuple[AnyMonitor, ...]:
    """The monitors that the settings do not disable."""
    return tuple(monitor for monitor in monitors() if settings.schedule(monitor.name).enabled)


def kernel_log_parser(driver_branch: int | None = None) -> KernelLogParser:
    """A parser of the kernel log with the patterns of all monitors."""
    return KernelLogParser([monitor.patterns for monitor in monitors() if monitor.patterns], driver_branch)


def known_codes() -> list[str]:
    """Every finding code of all monitors, those of XIDs and SXids by number."""
    monitors()
    return CODES.names()


def code_of(name: str) -> Code:
    """The finding code of that name. Raises KeyError if there is none."""
    monitors()
    return CODES.get(name)


def unmatched_patterns(settings: CoreSettings) -> list[str]:
    """Codes and patterns in the settings' policies that match no finding code: misspelt, or outdated."""
    monitors()
    policies = [settings.findings, *(pool.findings for pool in settings.pools)]
    patterns = dict.fromkeys(pattern for findings in policies for pattern in findings)
    known = CODES.names() if patterns else []
    return [
        pattern
        for pattern in patterns
        if not CODES.exists(pattern) and not any(fnmatchcase(name, pattern) for name in known)
    ]
