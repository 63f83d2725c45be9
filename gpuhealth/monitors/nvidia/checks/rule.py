"""How a subject's rules become a check: every rule is asked once about every GPU, or once about the node.

A rule answers with a Finding, with None for clean, or with the Missing that kept it from judging. Missing for want of
support is nothing to check and leaves no outcome; any other reason becomes NotChecked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import cached_property
from typing import TypeAlias, TypeVar

import msgspec

from gpuhealth.model.code import Check, Code
from gpuhealth.model.finding import Action, Finding, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.missing import UNREAD, Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings, PciDevice
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import Settings

T = TypeVar("T")

Judgement: TypeAlias = Finding | Missing | None
"""What a rule says: found, could not be judged, or clean."""


class Look:
    """One round as the rules see it: the readings, what is remembered, and the GPUs that the node is known to have."""

    def __init__(self, readings: NodeReadings, settings: Settings, history: History) -> None:
        self.readings = readings
        self.settings = settings
        self.history = history

    @property
    def time(self) -> datetime:
        """When the readings were taken."""
        return self.readings.time

    @cached_property
    def now(self) -> float:
        """The same in seconds since the epoch."""
        return self.readings.time.timestamp()

    @property
    def nvml(self) -> Reading[NvmlReadings]:
        """NVML's readings, or why NVML as a whole does not answer."""
        nvml = self.readings.nvml
        return nvml if isinstance(nvml, Missing) else nvml.problem or nvml

    @property
    def released(self) -> Missing | None:
        """Set while the driver has been let go on purpose: there is nothing to find until it is taken again."""
        nvml = self.nvml
        return nvml if isinstance(nvml, Missing) and nvml.reason is MissingReason.RELEASED else None

    @cached_property
    def gpus(self) -> tuple[GpuReadings, ...]:
        """The GPUs that answered, and a stand-in (its `error` says why) for every remembered one that did not."""
        return known_gpus(self.readings, self.history)

    def peers(self, gpu: GpuReadings) -> list[GpuReadings]:
        """The other GPUs of the same model that answer."""
        others = [other for other in self.gpus if other.component != gpu.component and not other.error]
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
        """A finding of this round whose message begins with the GPU's place in the node."""
        return code.found(
            gpu,
            f"{label(gpu)}: {message}" if gpu else message,
            now=self.time,
            source=source,
            reading=reading,
            threshold=threshold,
            severity=severity,
            action=action,
        )


def label(gpu: GpuReadings) -> str:
    """The GPU as a person on the node finds it."""
    place = gpu.pci if isinstance(gpu.pci, str) else gpu.component
    return f"GPU {gpu.index} ({place})" if gpu.index >= 0 else f"GPU {place}"


def known_gpus(readings: NodeReadings, history: History) -> tuple[GpuReadings, ...]:
    """Every GPU that answered, and a stand-in for each that is remembered and did not; its `error` says why."""
    nvml = readings.nvml
    reason = Missing(MissingReason.ERROR, "NVML no longer lists this GPU")
    listed: tuple[GpuReadings, ...] = ()
    if isinstance(nvml, Missing):
        reason = nvml
    elif nvml.problem:
        reason = nvml.problem
    else:
        listed = nvml.gpus
        if isinstance(nvml.count, Missing):
            reason = nvml.count
        if not nvml.answered:
            call = nvml.waiting_for or "NVML"
            reason = Missing(MissingReason.TIMEOUT, f"waiting {nvml.waiting_seconds:.0f} s for {call}")
    remembered = history.baseline.gpus
    gpus = _recognised(_placed(listed, readings.pci), remembered)
    seen = {gpu.uuid for gpu in gpus}
    if any(isinstance(gpu.uuid, Missing) for gpu in gpus):
        return gpus  # such a GPU is one of the absent, and nothing tells which
    stand_ins = [(uuid, pci) for uuid, pci in remembered.items() if uuid not in seen]
    return (*gpus, *(GpuReadings(-1, uuid=uuid, pci=pci, error=reason) for uuid, pci in stand_ins))


def _placed(gpus: tuple[GpuReadings, ...], pci: Reading[tuple[PciDevice, ...]]) -> tuple[GpuReadings, ...]:
    """The only GPU that does not tell its address has the one that the bus shows beside those of the others."""
    nowhere = [gpu for gpu in gpus if isinstance(gpu.pci, Missing)]
    on_bus = [] if isinstance(pci, Missing) else [device.address for device in pci if device.is_gpu]
    left = set(on_bus) - {gpu.pci for gpu in gpus if isinstance(gpu.pci, str)}
    if not len(nowhere) == len(left) == 1 or len(on_bus) != len(gpus):
        return gpus
    (address,) = left
    return tuple(msgspec.structs.replace(gpu, pci=address) if gpu is nowhere[0] else gpu for gpu in gpus)


def _recognised(gpus: tuple[GpuReadings, ...], remembered: dict[str, str]) -> tuple[GpuReadings, ...]:
    """A GPU that cannot tell its uuid is known again by its address, or as the only one that is not accounted for."""
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


def per_gpu(
    *rules: tuple[Code, Callable[[GpuReadings, Look], Judgement]], broken_too: bool = False, of_node_too: bool = False
) -> Check:
    """A check of rules about a GPU. One that answers with an error as a whole is not asked, unless `broken_too`.

    While NVML is away and no GPU is known, the node is what has not been checked; `of_node_too` says that other rules
    of the same codes speak for the node.
    """

    def run(readings: NodeReadings, settings: Settings, history: History) -> Iterator[Outcome]:
        look = Look(readings, settings, history)
        away = look.nvml if isinstance(look.nvml, Missing) and not look.gpus and not of_node_too else None
        for code, judge in rules:
            if away:
                yield code.not_checked(None, away)
            for gpu in look.gpus:
                judged = gpu.error if gpu.error and not broken_too else judge(gpu, look)
                yield from _outcome(code, gpu, judged)

    return Check(tuple(code for code, _ in rules), run)


def per_node(*rules: tuple[Code, Callable[[Look], Judgement]]) -> Check:
    """A check of rules about the node as a whole; they rest while the driver is released."""

    def run(readings: NodeReadings, settings: Settings, history: History) -> Iterator[Outcome]:
        look = Look(readings, settings, history)
        for code, judge in rules:
            yield from _outcome(code, None, look.released or judge(look))

    return Check(tuple(code for code, _ in rules), run)


def together(*checks: Check) -> Check:
    """Several checks as one subject."""

    def run(readings: NodeReadings, settings: Settings, history: History) -> Iterator[Outcome]:
        for check in checks:
            yield from check.run(readings, settings, history)

    codes = {code.name: code for check in checks for code in check.codes}
    return Check(tuple(codes.values()), run)


def flag(
    code: Code, read: Callable[[GpuReadings], Reading[bool]], message: str, source: str
) -> tuple[Code, Callable[[GpuReadings, Look], Judgement]]:
    """The rule that finds a flag set."""

    def judge(gpu: GpuReadings, look: Look) -> Judgement:
        value = read(gpu)
        if isinstance(value, Missing):
            return value
        return look.found(code, gpu, message, source=source, reading=value, threshold=False) if value else None

    return code, judge


def split(readings: dict[str, Reading[T]]) -> tuple[dict[str, T], Missing | None]:
    """The values among the readings, and why not all are there: support is wanting only where it is for all."""
    values = {key: value for key, value in readings.items() if not isinstance(value, Missing)}
    missing = [value for value in readings.values() if isinstance(value, Missing)]
    for reason in missing:
        if reason.reason is not MissingReason.NOT_SUPPORTED:
            return values, reason
    return values, None if values else next(iter(missing), UNREAD)


def _outcome(code: Code, gpu: GpuReadings | None, judged: Judgement) -> Iterable[Outcome]:
    if judged is None:
        return [code.clean(gpu)]
    if isinstance(judged, Finding):
        return [judged]
    return [] if judged.reason is MissingReason.NOT_SUPPORTED else [code.not_checked(gpu, judged)]
