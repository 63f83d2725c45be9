"""Whether all GPUs are there: three counts against each other, and against what the node had or ought to have."""

from __future__ import annotations

from gpuhealth.model.code import Code
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.history import History
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.checks.rule import Judgement, Look, per_node
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import Settings

MISSING = Code(
    "gpu.missing",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="The node has fewer GPUs than it ought to: PCI bus, device nodes and driver disagree, or a GPU that was"
    " there before is gone, or the configured number is not reached.",
    advice="Reboot the node (power-cycle it when the PCI bus itself lacks the GPU); if the GPU stays away, reseat or"
    " replace it. If it was taken out on purpose, set expected_gpus.",
    quarantine=True,
    drain=True,
    essential=True,
)

_NVML_AWAY = Missing(MissingReason.ERROR, "NVML has not counted the GPUs")


def _missing(look: Look) -> Judgement:
    readings, expected, remembered = look.readings, look.settings.expected_gpus, look.history.baseline.gpus
    nvml = look.nvml
    on_bus = set() if isinstance(readings.pci, Missing) else {each.address for each in readings.pci if each.is_gpu}
    nodes = () if isinstance(readings.device_nodes, Missing) else readings.device_nodes

    counts: dict[str, int] = {}
    # A tree that shows none is no count of zero: a container may hide it. A driver that lists none is one.
    if on_bus:
        counts["PCI bus"] = len(on_bus)
    if nodes:
        counts["/dev/nvidiaN"] = len(nodes)
    if not isinstance(nvml, Missing) and not isinstance(nvml.count, Missing):
        counts["NVML"] = nvml.count
    known = max(len(remembered), look.history.baseline.counted) if expected is None else expected
    wanted = max([known, *counts.values()])
    short = {source: count for source, count in counts.items() if count < wanted}
    if short:
        listing = ", ".join(f"{source} shows {count}" for source, count in short.items())
        return look.found(
            MISSING,
            None,
            "; ".join(
                [f"{wanted} GPUs expected, {listing}", *_gone(look, on_bus, wanted - counts.get("NVML", wanted))]
            ),
            source="sysfs PCI, /dev, nvmlDeviceGetCount" + ("" if expected is None else ", expected_gpus"),
            reading=", ".join(f"{source} {count}" for source, count in counts.items()),
            threshold=wanted,
            action=Action.INSPECT_HARDWARE if "PCI bus" in short else None,
        )
    if "NVML" not in counts:
        return nvml if isinstance(nvml, Missing) else nvml.count if isinstance(nvml.count, Missing) else _NVML_AWAY
    return None if wanted else Missing(MissingReason.NOT_INSTALLED, "no GPU is known of anywhere")


def _gone(look: Look, on_bus: set[str], lacking: int) -> list[str]:
    """Each GPU that is known from one place and absent from another, by address and, where remembered, uuid.

    NVML lacks so many; those that left the bus are among them, and only if that does not explain all are others named.
    """
    nvml = look.nvml
    listed = () if isinstance(nvml, Missing) else nvml.gpus
    addresses = {gpu.pci for gpu in listed if isinstance(gpu.pci, str)}
    uuids = {pci: uuid for uuid, pci in look.history.baseline.gpus.items()}

    def named(pci: str) -> str:
        return f"{pci} ({uuids[pci]})" if pci in uuids else pci

    off_bus = sorted((set(uuids) | addresses) - on_bus) if on_bus else []
    names = [f"{named(pci)} is not on the PCI bus" for pci in off_bus]
    # A round that is not complete, or GPUs that are lost, leave open which address each place of the list stands for.
    told = not isinstance(nvml, Missing) and nvml.answered and not any(gpu.error for gpu in listed)
    if told and lacking > len(off_bus):
        unlisted = (set(uuids) | on_bus) - addresses - set(off_bus)
        names += [f"{named(pci)} is not in NVML" for pci in sorted(unlisted)]
    return names


MISSING_CHECK = per_node((MISSING, _missing))


def remember(readings: NodeReadings, settings: Settings, history: History) -> None:
    """Grows the baseline by what has answered in this round. A GPU that is lost or gone stays in it, until another
    sits in its place or `expected_gpus` says that those which are there are all."""
    nvml = readings.nvml
    if isinstance(nvml, Missing) or nvml.problem:
        return
    baseline = history.baseline
    for gpu in nvml.gpus:
        uuid, pci = gpu.uuid, gpu.pci
        if gpu.error or not isinstance(uuid, str) or not isinstance(pci, str):
            continue
        for other in [other for other, place in baseline.gpus.items() if place == pci and other != uuid]:
            _forget(history, other)
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
    if nvml.answered and settings.expected_gpus == len(present) == len(nvml.gpus):
        baseline.counted = len(present)
        for uuid in set(baseline.gpus) - present:
            _forget(history, uuid)


def _forget(history: History, uuid: str) -> None:
    baseline = history.baseline
    for remembered in (baseline.gpus, baseline.models, baseline.ecc, baseline.active_links):
        remembered.pop(uuid, None)
