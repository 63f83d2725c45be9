"""The GPU's handling of bad memory: remapped rows, retired pages, repairs; and the InfoROM, which records it.

The flags are NVIDIA's own judgement by its rules (eight remappings a bank, 512 in all): read, not computed again.
"""

from __future__ import annotations

import msgspec

from gpuhealth.model.codes import define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.context import GpuContext, flag, per_gpu, split, together
from gpuhealth.monitors.nvidia.readings import GpuReadings

REMAP_PENDING = define(
    "gpu_memory.remap_pending",
    Severity.WARNING,
    Action.RESET_GPU,
    meaning="A bad row of GPU memory will be replaced by a spare one at the next reset; until then it is not used.",
    advice="Reset the GPU (or reboot the node) when it is free.",
)
REMAP_FAILED = define(
    "gpu_memory.remap_failed",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="A bad row of GPU memory could not be replaced: the spare rows of its bank are used up.",
    advice="Take the GPU out of service, run NVIDIA's field diagnostic and have it replaced.",
    quarantine=True,
    drain=True,
)
REMAP_RESERVE = define(
    "gpu_memory.remap_reserve",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="A bank of GPU memory has no spare row left: its next bad row cannot be replaced.",
    advice="Nothing is broken yet. Plan a replacement, and keep long jobs off the GPU.",
)
RETIRED_PAGES = define(
    "gpu_memory.retired_pages",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The GPU has given up nearly as many memory pages as its table can hold, or loses them at a rate at which"
    " NVIDIA replaces it.",
    advice="Have the GPU replaced; `nvidia-smi -q -d PAGE_RETIREMENT` lists the pages.",
    quarantine=True,
    drain=True,
)
RETIREMENT_PENDING = define(
    "gpu_memory.retirement_pending",
    Severity.WARNING,
    Action.RESET_GPU,
    meaning="A bad page of GPU memory will be retired at the next reset; until then programs may still be assigned it.",
    advice="Reset the GPU (or reboot the node) soon.",
)
REPAIR_PENDING = define(
    "gpu_memory.repair_pending",
    Severity.WARNING,
    Action.RESET_GPU,
    meaning="The GPU has a repair of a memory channel or a compute unit pending, which is made at the next reset.",
    advice="Reset the GPU (or reboot the node) when it is free.",
)
UNREPAIRABLE = define(
    "gpu_memory.unrepairable",
    Severity.CRITICAL,
    Action.INSPECT_HARDWARE,
    meaning="The GPU reports a fault of its memory that it cannot repair.",
    advice="Take the GPU out of service and have it replaced.",
    quarantine=True,
    drain=True,
)
INFOROM_CORRUPTED = define(
    "inforom.corrupted",
    Severity.CRITICAL,
    Action.CONTACT_SUPPORT,
    meaning="The memory in which the GPU keeps its settings and its record of bad memory is corrupt: its reports about"
    " itself cannot be relied on, and repairs may be lost with the next reset.",
    advice="Reset the GPU or power-cycle the node; if it stays, have the InfoROM reflashed or the GPU replaced.",
    quarantine=True,
)

# NVIDIA's memory error management: the table holds 64 pages and counts as full with 63 (DCGM's limit); a GPU must be
# replaced when more than 15 pages went to double-bit errors and more than one a week is still added.
_TABLE_FULL = 63
_DOUBLE_BIT_PAGES = 15
_DOUBLE_BIT_PAGES_A_WEEK = 1
_WEEK = 7 * 86400.0


def _remap_reserve(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    if not gpu.remap_histogram:
        return split(gpu.remap_histogram)[1]
    banks = gpu.remap_histogram.get("none", 0)
    if isinstance(banks, Missing):
        return banks
    if not banks:
        return None
    message = f"memory banks without a spare row: {banks}"
    source = "nvmlDeviceGetRowRemapperHistogram none"
    return context.found(REMAP_RESERVE, gpu, message, source=source, reading=banks, threshold=0)


def _retired_pages(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    pages, unread = split(gpu.retired_pages)
    total, double_bit = sum(pages.values()), pages.get("double_bit", 0)
    week = 0
    if "double_bit" in pages:
        key = history_key(RETIRED_PAGES.name, gpu.component, "double_bit")
        week = context.history.counter_increase(key, double_bit, context.now, _WEEK).amount
    failing = double_bit > _DOUBLE_BIT_PAGES and week > _DOUBLE_BIT_PAGES_A_WEEK
    limit = context.settings.gpu_memory.retired_pages
    if total < limit and not failing:
        return unread
    return context.found(
        RETIRED_PAGES,
        gpu,
        f"{total} memory pages retired, {double_bit} of them for double-bit errors, {week} of those within a week",
        source="nvmlDeviceGetRetiredPages",
        reading=total,
        threshold=f"{limit}; {_TABLE_FULL} is all; {_DOUBLE_BIT_PAGES} double-bit and still growing",
        severity=Severity.CRITICAL if failing or total >= _TABLE_FULL else Severity.WARNING,
    )


def _repair_pending(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    pending, unread = split(gpu.repair_pending)
    kinds = ", ".join(kind for kind, waits in pending.items() if waits)
    if not kinds:
        return unread
    message = f"repair waits for a reset: {kinds}"
    return context.found(REPAIR_PENDING, gpu, message, source="nvmlDeviceGetRepairStatus", reading=kinds)


def _inforom(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    for reading in (gpu.error, *msgspec.structs.asdict(gpu).values()):
        if isinstance(reading, Missing) and reading.reason is MissingReason.CORRUPTED_INFOROM:
            message = "InfoROM corrupt"
            return context.found(INFOROM_CORRUPTED, gpu, message, source="NVML", reading=reading.detail)
    for call, reason in gpu.failed_calls.items():
        if reason.reason is MissingReason.CORRUPTED_INFOROM:
            return context.found(INFOROM_CORRUPTED, gpu, "InfoROM corrupt", source=call, reading=reason.detail)
    checksum = gpu.inforom_checksum
    return gpu.error or (checksum if isinstance(checksum, Missing) else None)


CHECK = together(
    per_gpu(
        flag(
            REMAP_PENDING,
            lambda gpu: gpu.remap_pending,
            "a row of memory waits for a reset to be remapped",
            "nvmlDeviceGetRemappedRows pending",
        ),
        flag(
            REMAP_FAILED,
            lambda gpu: gpu.remap_failed,
            "a bad row of memory could not be remapped",
            "nvmlDeviceGetRemappedRows failure",
        ),
        (REMAP_RESERVE, _remap_reserve),
        (RETIRED_PAGES, _retired_pages),
        flag(
            RETIREMENT_PENDING,
            lambda gpu: gpu.retirement_pending,
            "a bad page of memory waits for a reset to be retired",
            "nvmlDeviceGetRetiredPagesPendingStatus",
        ),
        (REPAIR_PENDING, _repair_pending),
        flag(
            UNREPAIRABLE,
            lambda gpu: gpu.unrepairable_memory,
            "memory has a fault that cannot be repaired",
            "nvmlDeviceGetUnrepairableMemoryFlag",
        ),
    ),
    per_gpu((INFOROM_CORRUPTED, _inforom), broken_too=True),
)
