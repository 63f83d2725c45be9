"""Input of the checks of NVIDIA GPUs, and how their rules become checks.

A rule is called once for every GPU, or once for the node. It returns a Finding, None for clean, or the Missing that
prevented a result. An unsupported reading needs no check and has no outcome; any other reason becomes NotChecked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from typing import TypeAlias, TypeVar

import msgspec

from gpuhealth.model.codes import Code
from gpuhealth.model.component import NODE, Component, ComponentInfo, Kind
from gpuhealth.model.context import Check, CheckContext, RuleResult, outcome_of
from gpuhealth.model.finding import Action, Finding, Outcome, Severity
from gpuhealth.model.missing import UNREAD, Missing, MissingReason, Reading
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.ownership import are_replaced, nothing_to_use, unmanaged_gpus
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvidiaReadings, NvmlReadings, with_own_names
from gpuhealth.monitors.nvidia.settings import NvidiaSettings

T = TypeVar("T")

NvidiaContext: TypeAlias = CheckContext[Reading[NvidiaReadings], NvidiaSettings, Baseline]


class GpuContext:
    """One round as input of the rules: the readings, the stored state, and the known GPUs of the node."""

    def __init__(self, context: NvidiaContext) -> None:
        self.round = context
        self.settings, self.history, self.baseline = context.settings, context.history, context.baseline
        self.time, self.now = context.time, context.now
        readings = _unread(context.readings) if isinstance(context.readings, Missing) else context.readings
        self.nothing_to_use = nothing_to_use(readings, self.baseline, self.settings.expected_gpus)
        if self.nothing_to_use:
            readings = msgspec.structs.replace(readings, nvml=NvmlReadings(problem=self.nothing_to_use))
        self.readings = msgspec.structs.replace(readings, nvml=with_own_names(readings.nvml))

    @property
    def nvml(self) -> Reading[NvmlReadings]:
        """NVML's readings, or why NVML as a whole does not answer."""
        return self.readings.working_nvml

    @property
    def released(self) -> Missing | None:
        """Set while the driver is released on request: no finding is possible until it is opened again."""
        return self.readings.released

    @cached_property
    def gpus(self) -> tuple[GpuReadings, ...]:
        """The GPUs that answered, and a placeholder (see its `error`) for every remembered one that did not."""
        if self.nothing_to_use:
            return ()
        return known_gpus(self.readings, self.unmanaged, {} if self.are_replaced else self.baseline.gpus)

    @cached_property
    def unmanaged(self) -> dict[PciAddress, str]:
        """The GPUs on the bus that the driver is not meant to use, each with the reason."""
        return unmanaged_gpus(self.readings, self.baseline)

    @cached_property
    def are_replaced(self) -> bool:
        """Whether other GPUs have taken the place of the known ones over a reboot."""
        return are_replaced(self.readings, self.baseline, self.round.boot_id)

    @property
    def components(self) -> tuple[ComponentInfo, ...]:
        """The GPUs and their MIG devices."""
        return tuple(info for gpu in self.gpus for info in self._components_of(gpu))

    def _components_of(self, gpu: GpuReadings) -> Iterator[ComponentInfo]:
        yield ComponentInfo(
            component=gpu.component,
            index=gpu.index,
            pci=gpu.pci if isinstance(gpu.pci, str) else None,
            model=gpu.name if isinstance(gpu.name, str) else self.baseline.models.get(gpu.id, ""),
            serial=gpu.serial if isinstance(gpu.serial, str) else "",
        )
        for mig in gpu.mig_devices:
            yield ComponentInfo(component=Component(Kind.MIG, mig.uuid, gpu.id), index=mig.gpu_instance)

    def peers(self, gpu: GpuReadings) -> list[GpuReadings]:
        """The other answering GPUs of the same model."""
        others = [other for other in self.gpus if other.id != gpu.id and not other.error]
        return [other for other in others if isinstance(other.name, str) and other.name == gpu.name]

    def found(
        self,
        code: Code,
        gpu: GpuReadings | None,
        message: str,
        *,
        source: str,
        reading: object = "",
        threshold: object = "",
        severity: Severity | None = None,
        action: Action | None = None,
    ) -> Finding:
        """A finding of this round on a GPU, or on the node; the message names the GPU by index and PCI address."""
        return code.found(
            gpu.component if gpu else NODE,
            f"{label(gpu)}: {message}" if gpu else message,
            now=self.time,
            source=source,
            reading=reading,
            threshold=threshold,
            severity=severity,
            action=action,
        )


def _unread(reason: Missing) -> NvidiaReadings:
    """Readings for a round in which nothing was read."""
    return NvidiaReadings(
        nvml=NvmlReadings(problem=reason),
        pci=reason,
        device_nodes=reason,
        kernel_module=reason,
        live_pids=reason,
        fabric_manager_running=reason,
        system_memory_bytes=reason,
    )


def label(gpu: GpuReadings) -> str:
    """The GPU as an operator on the node identifies it: by index and PCI address."""
    place = gpu.pci if isinstance(gpu.pci, str) else gpu.id
    return f"GPU {gpu.index} ({place})" if gpu.index >= 0 else f"GPU {place}"


def known_gpus(
    readings: NvidiaReadings, unmanaged: Collection[PciAddress], remembered: dict[str, PciAddress]
) -> tuple[GpuReadings, ...]:
    """Every GPU that answered, and a placeholder for each remembered one that did not; its `error` has the reason.

    GPUs that the driver is not meant to use are left out. NVML lists them until it is started again.
    """
    nvml = readings.nvml
    reason = Missing(MissingReason.ERROR, "NVML no longer lists this GPU")
    listed: tuple[GpuReadings, ...] = ()
    if nvml.problem:
        reason = nvml.problem
    else:
        listed = nvml.gpus
        if isinstance(nvml.count, Missing):
            reason = nvml.count
        if not nvml.answered:
            call = nvml.waiting_for or "NVML"
            reason = Missing(MissingReason.TIMEOUT, f"waiting {nvml.waiting_seconds:.0f} s for {call}")
    remembered = {uuid: pci for uuid, pci in remembered.items() if pci not in unmanaged}
    listed = tuple(gpu for gpu in listed if gpu.pci not in unmanaged)
    pci = () if isinstance(readings.pci, Missing) else readings.pci
    on_bus = [device.address for device in pci if device.is_gpu and device.address not in unmanaged]
    gpus = _recognised(_placed(listed, on_bus), remembered)
    seen = {gpu.uuid for gpu in gpus}
    if any(isinstance(gpu.uuid, Missing) for gpu in gpus):
        return gpus  # it is one of the absent GPUs, but which one is unknown
    placeholders = [(uuid, pci) for uuid, pci in remembered.items() if uuid not in seen]
    return (*gpus, *(GpuReadings(-1, uuid=uuid, pci=pci, error=reason) for uuid, pci in placeholders))


def _placed(gpus: tuple[GpuReadings, ...], on_bus: list[PciAddress]) -> tuple[GpuReadings, ...]:
    """Assigns the only unclaimed GPU address on the bus to the only GPU without an address."""
    nowhere = [gpu for gpu in gpus if isinstance(gpu.pci, Missing)]
    left = set(on_bus) - {gpu.pci for gpu in gpus if isinstance(gpu.pci, str)}
    if len(nowhere) != 1 or len(left) != 1 or len(on_bus) != len(gpus):
        return gpus
    (address,) = left
    return tuple(msgspec.structs.replace(gpu, pci=address) if gpu is nowhere[0] else gpu for gpu in gpus)


def _recognised(gpus: tuple[GpuReadings, ...], remembered: dict[str, PciAddress]) -> tuple[GpuReadings, ...]:
    """Identifies a GPU without a uuid by its address, or as the only remembered one not yet accounted for."""
    absent = set(remembered) - {gpu.uuid for gpu in gpus if isinstance(gpu.uuid, str)}
    nameless = [gpu for gpu in gpus if isinstance(gpu.uuid, Missing)]

    def named(gpu: GpuReadings) -> GpuReadings:
        by_address = [uuid for uuid in absent if remembered[uuid] == gpu.pci]
        left = list(absent) if isinstance(gpu.pci, Missing) and len(absent) == len(nameless) == 1 else []
        if isinstance(gpu.uuid, str) or not by_address + left:
            return gpu
        uuid = (by_address + left)[0]
        return msgspec.structs.replace(gpu, uuid=uuid, pci=remembered[uuid])

    return tuple(named(gpu) for gpu in gpus)


NvidiaCheck: TypeAlias = Check[NvidiaContext]


def per_gpu(
    *rules: tuple[Code, Callable[[GpuReadings, GpuContext], RuleResult]],
    broken_too: bool = False,
    of_node_too: bool = False,
) -> NvidiaCheck:
    """A check of rules about a GPU. A GPU with an error of the whole device is skipped, unless `broken_too`.

    While NVML is unavailable and no GPU is known, the node is reported as not checked; with `of_node_too` other rules
    of the same codes cover the node.
    """

    def run(round_context: NvidiaContext) -> Iterator[Outcome]:
        context = GpuContext(round_context)
        away = context.nvml if isinstance(context.nvml, Missing) and not context.gpus and not of_node_too else None
        for code, judge in rules:
            if away:
                yield from outcome_of(code, NODE, away)
            for gpu in context.gpus:
                result = gpu.error if gpu.error and not broken_too else judge(gpu, context)
                yield from outcome_of(code, gpu.component, result)

    return Check(tuple(code for code, _ in rules), run)


def per_node(*rules: tuple[Code, Callable[[GpuContext], RuleResult]]) -> NvidiaCheck:
    """A check of rules about the node as a whole; none runs while the driver is released."""

    def run(round_context: NvidiaContext) -> Iterator[Outcome]:
        context = GpuContext(round_context)
        for code, judge in rules:
            yield from outcome_of(code, NODE, context.released or judge(context))

    return Check(tuple(code for code, _ in rules), run)


def together(*checks: NvidiaCheck) -> NvidiaCheck:
    """Several checks combined into one."""

    def run(round_context: NvidiaContext) -> Iterator[Outcome]:
        for check in checks:
            yield from check.run(round_context)

    codes = {code.name: code for check in checks for code in check.codes}
    return Check(tuple(codes.values()), run)


def flag(
    code: Code, read: Callable[[GpuReadings], Reading[bool]], message: str, source: str
) -> tuple[Code, Callable[[GpuReadings, GpuContext], RuleResult]]:
    """A rule that raises a finding if a flag is set."""

    def judge(gpu: GpuReadings, context: GpuContext) -> RuleResult:
        value = read(gpu)
        if isinstance(value, Missing):
            return value
        return context.found(code, gpu, message, source=source, reading=value, threshold=False) if value else None

    return code, judge


def split(readings: dict[str, Reading[T]]) -> tuple[dict[str, T], Missing | None]:
    """The values among the readings, and why one is missing. NOT_SUPPORTED is returned only if it applies to all."""
    values = {key: value for key, value in readings.items() if not isinstance(value, Missing)}
    missing = [value for value in readings.values() if isinstance(value, Missing)]
    for reason in missing:
        if reason.reason is not MissingReason.NOT_SUPPORTED:
            return values, reason
    return values, None if values else next(iter(missing), UNREAD)
