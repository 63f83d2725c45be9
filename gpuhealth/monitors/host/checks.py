"""Rules on the host's disks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from gpuhealth.model.codes import Code, define
from gpuhealth.model.component import Component, Kind
from gpuhealth.model.context import Check, CheckContext, RuleResult, outcome_of
from gpuhealth.model.finding import Action, Outcome, Severity
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.monitors.host.readings import HostReadings, Space
from gpuhealth.monitors.host.settings import HostSettings
from gpuhealth.monitors.monitor import NoBaseline

Context: TypeAlias = CheckContext[Reading[HostReadings], HostSettings, NoBaseline]

DISK_FULL = define(
    "host.disk_full",
    Severity.WARNING,
    Action.NONE,
    meaning="A disk of the host has little space left: the kubelet evicts pods, and images and checkpoints cannot be"
    " written.",
    advice="Remove old images, logs and checkpoints (crictl rmi --prune, journalctl --vacuum-size), or add space.",
    clear_after=300.0,
)
INODES = define(
    "host.inodes",
    Severity.WARNING,
    Action.NONE,
    meaning="A disk of the host has few inodes left: no file can be made on it although there is space.",
    advice="Find the folder with very many small files (du --inodes -x) and remove them.",
    clear_after=300.0,
)
_GIBIBYTE = 1 << 30


def _disk_full(component: Component, space: Space, context: Context) -> RuleResult:
    limit = context.settings.host.disk_free_percent
    if space.free_percent >= limit:
        return None
    free, total = space.free_bytes / _GIBIBYTE, space.total_bytes / _GIBIBYTE
    return DISK_FULL.found(
        component,
        f"{component.id}: {space.free_percent:.1f} % free ({free:.1f} of {total:.1f} GiB)",
        now=context.time,
        source="statvfs",
        reading=f"{space.free_percent:.1f} %",
        threshold=f"{limit:g} %",
    )


def _inodes(component: Component, space: Space, context: Context) -> RuleResult:
    limit = context.settings.host.inodes_free_percent
    if space.free_inodes_percent >= limit:
        return None
    return INODES.found(
        component,
        f"{component.id}: {space.free_inodes_percent:.1f} % of the inodes free ({space.free_inodes})",
        now=context.time,
        source="statvfs",
        reading=f"{space.free_inodes_percent:.1f} %",
        threshold=f"{limit:g} %",
    )


_RULES: tuple[tuple[Code, Callable[[Component, Space, Context], RuleResult]], ...] = (
    (DISK_FULL, _disk_full),
    (INODES, _inodes),
)


def _run(context: Context) -> Iterator[Outcome]:
    readings = context.readings
    if isinstance(readings, Missing):
        for code, _ in _RULES:
            yield code.not_checked(readings)
        return
    for point, space in readings.disks.items():
        component = Component(Kind.MOUNT, point)
        for code, rule in _RULES:
            result = space if isinstance(space, Missing) else rule(component, space, context)
            yield from outcome_of(code, component, result)


CHECK = Check(tuple(code for code, _ in _RULES), _run)
