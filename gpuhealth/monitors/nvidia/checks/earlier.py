"""Faults logged long before the first round: whether what was logged since, and the readings, prove that they are over.

A GPU that has recovered answers, and either its reset was logged, or the driver states that no action is needed and no
uncorrectable ECC error is counted since the last reset. On drivers that do not report the recovery action, an ECC count
of zero alone proves nothing: most faults are none of the memory. A fault of an NVSwitch, or of the driver itself, has
no such readings, and is over once the driver has been loaded again.
"""

from __future__ import annotations

from gpuhealth.kernel_log.boot_log import EarlierFault
from gpuhealth.model.pci import slot_of
from gpuhealth.monitors.nvidia.checks.ecc import uncorrected_counts
from gpuhealth.monitors.nvidia.context import GpuContext, NvidiaContext, split
from gpuhealth.monitors.nvidia.patterns import EVENT_KINDS
from gpuhealth.monitors.nvidia.readings import GpuReadings

_LOADED = "the driver has been loaded again since"
_RESET = "a reset or a load of the driver was logged since, and the GPU answers"
_CLEAN = "the GPU answers, the driver requests no recovery action, and no uncorrectable ECC error is counted"


def recovery(round_context: NvidiaContext, fault: EarlierFault) -> str:
    """Why an earlier fault that the driver reported is over, in words; empty while nothing proves it."""
    event = fault.event
    if event.kind not in EVENT_KINDS:
        return ""
    if event.kind == "sxid" or event.pci is None:
        return _LOADED if fault.ended else ""
    answering = [gpu for gpu in GpuContext(round_context).gpus if not gpu.error and isinstance(gpu.uuid, str)]
    gpu = next((gpu for gpu in answering if isinstance(gpu.pci, str) and slot_of(gpu.pci) == event.pci), None)
    if gpu is None:
        return ""
    if fault.ended:
        return _RESET
    return _CLEAN if _is_clean(gpu) else ""


def _is_clean(gpu: GpuReadings) -> bool:
    counts, unread = split(uncorrected_counts(gpu))
    return gpu.recovery_action == 0 and not any(counts.values()) and (unread is None or unread.is_unsupported)
