"""Whether all GPUs are present: compares three counts with each other, and with the earlier or configured number."""

from __future__ import annotations

from gpuhealth.model.codes import define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.context import GpuContext, per_node

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

_NVML_AWAY = Missing(MissingReason.ERROR, "NVML has not counted the GPUs")


def _missing(context: GpuContext) -> RuleResult:
    readings, expected, remembered = context.readings, context.settings.expected_gpus, context.baseline.gpus
    nvml = context.nvml
    on_bus: set[PciAddress] = (
        set() if isinstance(readings.pci, Missing) else {each.address for each in readings.pci if each.is_gpu}
    )
    nodes = () if isinstance(readings.device_nodes, Missing) else readings.device_nodes

    counts: dict[str, int] = {}
    # A tree without GPUs is not a count of zero, as a container may hide it. A driver that lists none is one.
    if on_bus:
        counts["PCI bus"] = len(on_bus)
    if nodes:
        counts["/dev/nvidiaN"] = len(nodes)
    if not isinstance(nvml, Missing) and not isinstance(nvml.count, Missing):
        counts["NVML"] = nvml.count
    known = max(len(remembered), context.baseline.counted) if expected is None else expected
    wanted = max([known, *counts.values()])
    short = {source: count for source, count in counts.items() if count < wanted}
    if short:
        listing = ", ".join(f"{source} shows {count}" for source, count in short.items())
        return context.found(
            MISSING,
            None,
            "; ".join(
                [f"{wanted} GPUs expected, {listing}", *_gone(context, on_bus, wanted - counts.get("NVML", wanted))]
            ),
            source="sysfs PCI, /dev, nvmlDeviceGetCount" + ("" if expected is None else ", expected_gpus"),
            reading=", ".join(f"{source} {count}" for source, count in counts.items()),
            threshold=wanted,
            action=Action.INSPECT_HARDWARE if "PCI bus" in short else None,
        )
    if "NVML" not in counts:
        return nvml if isinstance(nvml, Missing) else nvml.count if isinstance(nvml.count, Missing) else _NVML_AWAY
    return None if wanted else Missing(MissingReason.NOT_INSTALLED, "no GPU is known of anywhere")


def _gone(context: GpuContext, on_bus: set[PciAddress], lacking: int) -> list[str]:
    """Each GPU known from one place and absent from another, by address and, if remembered, uuid.

    `lacking` is the number missing in NVML. It includes GPUs that left the bus; only the remainder is named otherwise.
    """
    nvml = context.nvml
    listed = () if isinstance(nvml, Missing) else nvml.gpus
    addresses = {gpu.pci for gpu in listed if isinstance(gpu.pci, str)}
    uuids = {pci: uuid for uuid, pci in context.baseline.gpus.items()}

    def named(pci: PciAddress) -> str:
        return f"{pci} ({uuids[pci]})" if pci in uuids else pci

    off_bus = sorted((set(uuids) | addresses) - on_bus) if on_bus else []
    names = [f"{named(pci)} is not on the PCI bus" for pci in off_bus]
    # In an incomplete round, or with lost GPUs, the address of each listed GPU is uncertain.
    all_listed = not isinstance(nvml, Missing) and nvml.answered and not any(gpu.error for gpu in listed)
    if all_listed and lacking > len(off_bus):
        unlisted = (set(uuids) | on_bus) - addresses - set(off_bus)
        names += [f"{named(pci)} is not in NVML" for pci in sorted(unlisted)]
    return names


MISSING_CHECK = per_node((MISSING, _missing))


def remember(context: GpuContext) -> None:
    """Adds the GPUs that answered in this round to the baseline. A lost or missing GPU stays in it until another one is
    in its slot, or `expected_gpus` shows that the present ones are complete."""
    nvml, baseline = context.nvml, context.baseline
    if isinstance(nvml, Missing):
        return
    for gpu in nvml.gpus:
        uuid, pci = gpu.uuid, gpu.pci
        if gpu.error or not isinstance(uuid, str) or not isinstance(pci, str):
            continue
        for other in [other for other, place in baseline.gpus.items() if place == pci and other != uuid]:
            _forget(baseline, other)
        baseline.gpus[uuid] = pci
        if isinstance(gpu.name, str):
            baseline.models[uuid] = gpu.name
        if gpu.ecc_enabled is True:
            baseline.ecc[uuid] = True
        if not isinstance(gpu.nvlinks, Missing):
            up = {link.link for link in gpu.nvlinks if not isinstance(link.state, Missing) and link.state}
            baseline.active_links[uuid] = sorted(up | set(baseline.active_links.get(uuid, [])))
    present = {gpu.uuid for gpu in nvml.gpus if isinstance(gpu.uuid, str)}
    baseline.counted = max(baseline.counted, len(nvml.gpus))
    expected = context.settings.expected_gpus
    if nvml.answered and expected == len(present) and len(present) == len(nvml.gpus):
        baseline.counted = len(present)
        for uuid in set(baseline.gpus) - present:
            _forget(baseline, uuid)


def _forget(baseline: Baseline, uuid: str) -> None:
    for remembered in (baseline.gpus, baseline.models, baseline.ecc, baseline.active_links):
        remembered.pop(uuid, None)
