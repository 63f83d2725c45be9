"""Whether all GPUs are present: compares three counts with each other, and with the earlier or configured number.

GPUs on the bus that the driver is not meant to use, such as those of virtual machines, count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpuhealth.model.codes import define
from gpuhealth.model.component import NODE
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.context import GpuContext, per_node
from gpuhealth.monitors.nvidia.ownership import is_other_boot, known_count
from gpuhealth.monitors.nvidia.readings import PciDevice

MISSING = define(
    "gpu.missing",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="The node has fewer GPUs than it should: PCI bus, device nodes and driver disagree, or a GPU that was"
    " there before is gone, or the configured number is not reached.",
    advice="Reboot the node (power-cycle it when the PCI bus itself lacks the GPU); if the GPU stays away, reseat or"
    " replace it. If it was taken out on purpose, set expected_gpus.",
    quarantine=True,
    drain=True,
    essential=True,
)
UNMANAGED = define(
    "gpu.unmanaged",
    Severity.INFO,
    Action.NONE,
    meaning="There are GPUs on the PCI bus that the node's NVIDIA driver is not meant to use, and that are not checked:"
    " bound to another driver such as vfio-pci for a virtual machine, excluded by the driver's options, or a display"
    " card.",
    advice="Nothing if that is intended. Otherwise bind the GPU to the driver nvidia, or set expected_gpus, which"
    " counts regardless of the bus.",
)
REPLACED = define(
    "gpu.replaced",
    Severity.INFO,
    Action.NONE,
    meaning="After a reboot the node has other GPUs than before, and as many: a virtual machine that was started on"
    " another host, or a replaced board. Findings on the earlier GPUs have ended.",
    advice="Nothing if that is intended. Otherwise compare serial numbers with the inventory.",
    clear_after=600.0,
)

_NVML_AWAY = Missing(MissingReason.ERROR, "NVML has not counted the GPUs")
_JOIN_SECONDS = 300.0
"""How long a GPU that joins the bus while the node runs may take until NVML lists it."""
_SHOWN = 8
"""Maximum number of GPUs named in a message."""


def _missing(context: GpuContext) -> RuleResult:
    nvml, expected = context.nvml, context.settings.expected_gpus
    counts = _counts(context)
    joining = _joining(context)
    if expected is None:
        wanted = _wanted(context, counts, len(joining))
    else:
        wanted = expected
        if counts.get("NVML", 0) >= expected:
            counts.pop("PCI bus", None)  # the configured number is reached: what else is on the bus does not matter
    short = {source: count for source, count in counts.items() if count < wanted}
    if short:
        listing = ", ".join(f"{source} shows {count}" for source, count in short.items())
        gone = _gone(context, wanted - counts.get("NVML", wanted))
        return context.found(
            MISSING,
            None,
            "; ".join([f"{wanted} GPUs expected, {listing}", *_shown(gone)]),
            source="sysfs PCI, /dev, nvmlDeviceGetCount" + ("" if expected is None else ", expected_gpus"),
            reading=", ".join(f"{source} {count}" for source, count in counts.items()),
            threshold=wanted,
            action=Action.INSPECT_HARDWARE if "PCI bus" in short else None,
        )
    if context.nothing_to_use:
        return None
    if "NVML" not in counts:
        return nvml if isinstance(nvml, Missing) else nvml.count if isinstance(nvml.count, Missing) else _NVML_AWAY
    if wanted or context.unmanaged or expected is not None:
        return None
    return Missing(MissingReason.NOT_INSTALLED, "no GPU is known of anywhere")


def _counts(context: GpuContext) -> dict[str, int]:
    """How many GPUs each source shows.

    A tree without GPUs is not a count of zero, as a container may hide it. A driver that lists none is one.
    """
    readings, nvml, unmanaged = context.readings, context.nvml, context.unmanaged
    counts: dict[str, int] = {}
    if on_bus := _on_bus(context):
        counts["PCI bus"] = len(on_bus)
    if not isinstance(readings.device_nodes, Missing) and readings.device_nodes:
        counts["/dev/nvidiaN"] = len(readings.device_nodes)
    if not isinstance(nvml, Missing) and not isinstance(nvml.count, Missing):
        number = nvml.count - sum(gpu.pci in unmanaged for gpu in nvml.gpus)
        counts["NVML"] = min(number, _most_counted(context)) if on_bus else number
    return counts


def _most_counted(context: GpuContext) -> int:
    """The largest count of GPUs to believe: as many as NVML names, or the bus has.

    A count that is too large must not make a node lack GPUs that never were there.
    """
    listed = () if isinstance(context.nvml, Missing) else context.nvml.gpus
    managed = [gpu for gpu in listed if gpu.pci not in context.unmanaged]
    named = sum(isinstance(gpu.uuid, str) or isinstance(gpu.pci, str) for gpu in managed)
    return max(named, len(_on_bus(context)))


def _wanted(context: GpuContext, counts: dict[str, int], joining: int) -> int:
    """How many GPUs the node should have, if the number is not configured.

    A device node may stay when its GPU is handed over.
    """
    known = 0 if context.are_replaced else known_count(context.baseline, context.unmanaged)
    bus, nodes = counts.get("PCI bus", 0) - joining, counts.get("/dev/nvidiaN", 0) - joining - len(context.unmanaged)
    return max(known, bus, nodes, counts.get("NVML", 0))


def _on_bus(context: GpuContext) -> dict[PciAddress, PciDevice]:
    """The GPUs on the bus that the driver is meant to use."""
    devices = () if isinstance(context.readings.pci, Missing) else context.readings.pci
    return {device.address: device for device in devices if device.is_gpu and device.address not in context.unmanaged}


def _joining(context: GpuContext) -> set[PciAddress]:
    """The GPUs that have joined the bus while the node runs, and that NVML need not list yet."""
    nvml, known = context.nvml, context.baseline.gpus.values()
    if isinstance(nvml, Missing) or not nvml.is_complete or context.are_replaced:
        return set()
    joined = set(_on_bus(context)) - {gpu.pci for gpu in nvml.gpus} - set(known)
    key = history_key(MISSING.name, NODE, "joined")
    overdue = context.history.held_for(key, bool(joined), context.now, _JOIN_SECONDS)
    return set() if overdue else joined


def _gone(context: GpuContext, lacking: int) -> list[str]:
    """Each GPU known from one place and absent from another, by address and, if remembered, uuid.

    `lacking` is the number missing in NVML. It includes GPUs that left the bus; only the remainder is named otherwise.
    """
    nvml, on_bus = context.nvml, set(_on_bus(context))
    listed = () if isinstance(nvml, Missing) else nvml.gpus
    addresses = {gpu.pci for gpu in listed if isinstance(gpu.pci, str)}
    uuids = {pci: uuid for uuid, pci in context.baseline.gpus.items() if pci not in context.unmanaged}

    def named(pci: PciAddress) -> str:
        return f"{pci} ({uuids[pci]})" if pci in uuids else pci

    off_bus = sorted((set(uuids) | addresses) - on_bus - set(context.unmanaged)) if on_bus else []
    names = [f"{named(pci)} is not on the PCI bus" for pci in off_bus]
    # In an incomplete round, or with lost GPUs, the address of each listed GPU is uncertain.
    all_listed = not isinstance(nvml, Missing) and nvml.answered and not any(gpu.error for gpu in listed)
    if all_listed and lacking > len(off_bus):
        unlisted = (set(uuids) | on_bus) - addresses - set(off_bus)
        names += [f"{named(pci)} is not in NVML" for pci in sorted(unlisted)]
    return names + [f"{pci} is {reason}" for pci, reason in context.unmanaged.items()]


def _shown(names: Iterable[str]) -> list[str]:
    """The first of many names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return [*listed[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _unmanaged(context: GpuContext) -> RuleResult:
    if isinstance(context.readings.pci, Missing):
        return context.readings.pci
    if not context.unmanaged:
        return None
    number = len(context.unmanaged)
    listing = "; ".join(_shown(f"{pci} is {reason}" for pci, reason in context.unmanaged.items()))
    which = f"{number} GPU{'s' if number > 1 else ''} not meant for the node's NVIDIA driver"
    return context.found(UNMANAGED, None, f"{which}: {listing}", source="sysfs PCI, driver options", reading=number)


def _replaced(context: GpuContext) -> RuleResult:
    if isinstance(context.nvml, Missing):
        return context.nvml
    if not context.are_replaced:
        return None
    present, known = {gpu.id: gpu for gpu in context.gpus}, context.baseline.gpus
    new = [f"{gpu.pci} ({uuid})" for uuid, gpu in present.items() if uuid not in known]
    gone = len([uuid for uuid in known if uuid not in present])
    message = f"other GPUs after a reboot: {gone} of {len(known)} are gone, in their place: {'; '.join(_shown(new))}"
    return context.found(REPLACED, None, message, source="nvmlDeviceGetUUID", reading=gone, threshold=0)


PRESENCE_CHECK = per_node((MISSING, _missing), (UNMANAGED, _unmanaged), (REPLACED, _replaced))


def remember(context: GpuContext) -> None:
    """Adds the GPUs that answered in this round to the baseline.

    A lost or missing GPU stays in it until another one is in its slot, it is handed over to another driver, all GPUs
    are replaced over a reboot, or `expected_gpus` shows that the present ones are complete.
    """
    nvml, baseline = context.nvml, context.baseline
    if isinstance(nvml, Missing):
        return
    present = {gpu.uuid for gpu in context.gpus if isinstance(gpu.uuid, str) and not gpu.error}
    if context.are_replaced:
        _forget_all(baseline, set(baseline.gpus) - present)
        baseline.counted = len(present)
    if nvml.answered:
        handed_over = {uuid for uuid, pci in baseline.gpus.items() if pci in context.unmanaged}
        _forget_all(baseline, handed_over)
        baseline.counted = max(0, baseline.counted - len(handed_over))
    _learn(context, present)
    listed = [gpu for gpu in nvml.gpus if gpu.pci not in context.unmanaged]
    counted = min(len(listed), _most_counted(context)) if _on_bus(context) else len(listed)
    baseline.counted = max(baseline.counted, counted)
    present = {gpu.uuid for gpu in listed if isinstance(gpu.uuid, str)}
    expected = context.settings.expected_gpus
    if nvml.answered and expected == len(present) and len(present) == len(listed):
        baseline.counted = len(present)
        _forget_all(baseline, set(baseline.gpus) - present)
    if nvml.is_complete and present == set(baseline.gpus) and len(present) == baseline.counted:
        baseline.boot_id = context.round.boot_id


def _learn(context: GpuContext, present: set[str]) -> None:
    baseline = context.baseline
    # After a reboot, new GPUs next to absent ones may be the same in other places: wait until the counts agree.
    uncertain = is_other_boot(baseline, context.round.boot_id) and not set(baseline.gpus) <= present
    for gpu in context.gpus:
        uuid, pci = gpu.uuid, gpu.pci
        if gpu.error or not isinstance(uuid, str) or not isinstance(pci, str):
            continue
        if uncertain and uuid not in baseline.gpus and pci not in baseline.gpus.values():
            continue
        _forget_all(baseline, {other for other, place in baseline.gpus.items() if place == pci and other != uuid})
        baseline.gpus[uuid] = pci
        if isinstance(gpu.name, str):
            baseline.models[uuid] = gpu.name
        if gpu.ecc_enabled is True:
            baseline.ecc[uuid] = True
        if not isinstance(gpu.nvlinks, Missing):
            up = {link.link for link in gpu.nvlinks if not isinstance(link.state, Missing) and link.state}
            baseline.active_links[uuid] = sorted(up | set(baseline.active_links.get(uuid, [])))


def _forget_all(baseline: Baseline, uuids: set[str]) -> None:
    for uuid in uuids:
        for remembered in (baseline.gpus, baseline.models, baseline.ecc, baseline.active_links):
            remembered.pop(uuid, None)
