"""XIDs that say little alone and much together: faults of different programs on one GPU, and rows remapped again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from gpuhealth.model.codes import Clears, define
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, Finding, Severity
from gpuhealth.model.history import History
from gpuhealth.model.history import key as history_key
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.monitors.nvidia.catalog import xid
from gpuhealth.monitors.nvidia.catalog.xid import CONSEQUENCES
from gpuhealth.monitors.nvidia.context import label
from gpuhealth.monitors.nvidia.readings import GpuReadings
from gpuhealth.monitors.nvidia.settings import Xid as XidSettings

APP_FAULTS = define(
    "gpu.repeated_app_faults",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="Different programs have failed on the same GPU with errors that are usually a program's own fault.",
    advice="Run `gpuhealth burnin` on this GPU: if every program fails, the GPU may be the cause.",
    clears=Clears.QUIET_PERIOD,
    clear_after=86400.0,
)
REMAPS = define(
    "gpu_memory.repeated_remaps",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="Rows or pages of the GPU's memory fail one after another: each was replaced by a spare one, but more will"
    " follow.",
    advice="Keep long jobs off the GPU, run NVIDIA's field diagnostic, and plan its replacement.",
    clears=Clears.QUIET_PERIOD,
    clear_after=7 * 86400.0,
)
CODES = (APP_FAULTS, REMAPS)

_REMAPPED = 63
_KEPT = 64  # processes and remappings of a GPU
_KEPT_CRASHES = 256  # of the node


def repeats(
    event: KernelEvent, code: int, gpu: GpuReadings, when: datetime, history: History, settings: XidSettings
) -> Iterator[Finding]:
    """The findings for an XID of a GPU together with earlier ones."""
    if event.pid is not None and code not in CONSEQUENCES and _is_of_program(code):
        yield from _app_faults(event, code, gpu, when, history, settings)
    if code == _REMAPPED:
        yield from _remaps(event, gpu, when, history, settings)


def _is_of_program(code: int) -> bool:
    return xid.lookup(code).action is Action.RESTART_WORKLOAD


def _app_faults(
    event: KernelEvent, code: int, gpu: GpuReadings, when: datetime, history: History, settings: XidSettings
) -> Iterator[Finding]:
    key, at, window = history_key("app_faults", gpu.component), when.timestamp(), settings.repeat_window
    faults = history.events_within(key, at, window)
    is_new = not _is_in_crash_loop(event, at, history, settings)
    if is_new and str(event.pid) not in {pid for _, pid in faults}:
        keep = max(_KEPT, settings.app_fault_threshold)
        faults = history.record_event(key, at, window, str(event.pid), keep)
    if len(faults) >= settings.app_fault_threshold:
        yield APP_FAULTS.found(
            gpu.component,
            f"{label(gpu)}: faults of {len(faults)} different processes, the last one XID {code}",
            now=when,
            source=_source(event),
            reading=f"{len(faults)} processes",
            threshold=f"{settings.app_fault_threshold} in {window:g} s",
            line=event.line,
        )


def _is_in_crash_loop(event: KernelEvent, at: float, history: History, settings: XidSettings) -> bool:
    """Whether a program of this name has failed a short while ago, on this GPU or another, and was started again.

    A name says little, since many programs are called python: after crash_loop_window it counts as another program.
    """
    if not event.process:
        return False
    key = history_key("app_crashes", NODE)
    before = history.events_within(key, at, settings.crash_loop_window)
    history.record_event(key, at, settings.crash_loop_window, event.process, _KEPT_CRASHES)
    return any(name == event.process for _, name in before)


def _remaps(
    event: KernelEvent, gpu: GpuReadings, when: datetime, history: History, settings: XidSettings
) -> Iterator[Finding]:
    key, window = history_key("remaps", gpu.component), settings.remap_window
    seen = history.record_event(key, when.timestamp(), window, keep=max(_KEPT, settings.remaps_warning))
    if len(seen) >= settings.remaps_warning:
        yield REMAPS.found(
            gpu.component,
            f"{label(gpu)}: {len(seen)} rows or pages of memory were replaced within {window / 86400.0:g} days",
            now=when,
            source=_source(event),
            reading=f"{len(seen)} times XID {_REMAPPED}",
            threshold=f"{settings.remaps_warning} in {window:g} s",
            line=event.line,
        )


def _source(event: KernelEvent) -> str:
    return "kernel log" if event.line else "NVML event"
