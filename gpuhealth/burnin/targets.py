"""Which devices a run tests: the devices visible to CUDA, matched with the GPUs listed by NVML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from gpuhealth.burnin.protocol import CudaDevice
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.nvidia.readings import GpuReadings

_GRAMMAR = "write all, cuda:0,1, cpu, or cpu:0,1"


class BurninError(Exception):
    """No test can run; the text is one sentence with the reason. This has no bearing on any GPU's health."""


class Target(msgspec.Struct, frozen=True):
    """A device to test."""

    device: str  # as torch names it: cuda:0, cpu
    gpu: str  # its name in results: NVML's uuid, or the name of a device not listed by NVML
    model: str = ""  # as NVML or torch names it; empty for a processor

    @property
    def is_processor(self) -> bool:
        """Whether it is a processor in place of a GPU."""
        return self.device == "cpu"


def needs_cuda(spec: str) -> bool:
    """Whether the spec names devices that CUDA must list, which takes seconds. Raises BurninError."""
    return any(kind in ("all", "cuda") for kind, _ in _parse(spec))


def targets(spec: str, cuda: Iterable[CudaDevice], gpus: Mapping[str, GpuReadings]) -> tuple[Target, ...]:
    """The devices that a spec such as `cuda:0,1` names; `gpus` are NVML's, by uuid. Raises BurninError.

    `all` means those that CUDA shows, which respects CUDA_VISIBLE_DEVICES and a container's share of the GPUs.
    `cpu:1` is a processor in place of NVML's GPU 1, with its telemetry, for tests on a simulated node.
    """
    visible = {device.name: device for device in cuda}
    chosen: list[Target] = []
    for kind, number in _parse(spec):
        if kind == "cpu":
            chosen.append(_processor_target(number, gpus))
        elif number is None:
            chosen += [_cuda_target(device, gpus) for device in visible.values()]
        elif f"cuda:{number}" in visible:
            chosen.append(_cuda_target(visible[f"cuda:{number}"], gpus))
        else:
            raise BurninError(f"there is no cuda:{number}: CUDA shows {', '.join(visible) or 'no GPU'}")
    names = [target.gpu for target in chosen]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise BurninError(f"devices {spec!r} name {name} twice")
    return tuple(chosen)


def _parse(spec: str) -> list[tuple[str, int | None]]:
    """[("cuda", 0), ("cuda", 1)] for `cuda:0,1`; the number is None where all devices of a kind are meant."""
    parsed: list[tuple[str, int | None]] = []
    kind = ""
    for part in spec.split(","):
        before, colon, after = part.strip().rpartition(":")
        if colon:
            kind = before
        elif not after.isdecimal():
            kind = after
        number = int(after) if after.isdecimal() else None
        if kind not in ("all", "cuda", "cpu") or (kind == "all" and number is not None) or (colon and number is None):
            raise BurninError(f"{spec!r} names no devices: {_GRAMMAR}")
        parsed.append((kind, number))
    return parsed


def _cuda_target(device: CudaDevice, gpus: Mapping[str, GpuReadings]) -> Target:
    """The target for a CUDA device; CUDA shows a process at most one MIG device, so the GPU's uuid identifies it."""
    for uuid, gpu in gpus.items():
        names = [uuid, *(mig.uuid for mig in gpu.mig_devices)]
        if any(name.partition("-")[2] == device.uuid for name in names):
            return Target(device.name, uuid, _model(gpu) or device.model)
    return Target(device.name, f"GPU-{device.uuid}", device.model)


def _processor_target(number: int | None, gpus: Mapping[str, GpuReadings]) -> Target:
    if number is None:
        return Target("cpu", "cpu")
    uuid = next((uuid for uuid, gpu in gpus.items() if gpu.index == number), "")
    if gpus and not uuid:
        raise BurninError(f"cpu:{number} stands for GPU {number}, but NVML lists {len(gpus)} GPUs")
    return Target("cpu", uuid, _model(gpus[uuid])) if uuid else Target("cpu", f"cpu:{number}")


def _model(gpu: GpuReadings) -> str:
    return gpu.name if isinstance(gpu.name, str) else ""


def processes_using(gpu: GpuReadings, proc: Path) -> list[str]:
    """The processes that use a GPU, as `python3 (pid 4711)`; empty where NVML does not report them."""
    if isinstance(gpu.compute_processes, Missing):
        return []
    return [f"{_command(process.pid, proc)} (pid {process.pid})" for process in gpu.compute_processes]


def _command(pid: int, proc: Path) -> str:
    try:
        return (proc / str(pid) / "comm").read_text().strip() or "a process"
    except OSError:
        return "a process"  # in another pid namespace, or exited
