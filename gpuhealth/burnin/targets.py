"""Which devices a run tests: what CUDA shows, matched with what NVML knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from gpuhealth.burnin.protocol import CudaDevice
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.nvidia.readings import GpuReadings

_GRAMMAR = "write all, cuda:0,1, cpu, or cpu:0,1"


class BurninError(Exception):
    """The tests cannot be done; the text is one sentence that says why. No word about any GPU's health."""


class Target(msgspec.Struct, frozen=True):
    """A device to be tested."""

    device: str  # as torch names it: cuda:0, cpu
    gpu: str  # as results name it: NVML's uuid, or the device's name where NVML does not know it
    model: str = ""  # as NVML or torch names it; none of a processor

    @property
    def is_processor(self) -> bool:
        """Whether a processor stands in for a GPU."""
        return self.device == "cpu"


def needs_cuda(words: str) -> bool:
    """Whether devices are named for which CUDA must be asked."""
    return any(kind in ("all", "cuda") for kind, _ in _parsed(words))


def targets(words: str, cuda: Iterable[CudaDevice], gpus: Mapping[str, GpuReadings]) -> tuple[Target, ...]:
    """The devices that `words` names, such as `cuda:0,1`; `gpus` are NVML's, by uuid. Raises BurninError.

    `all` are those that CUDA shows, so that CUDA_VISIBLE_DEVICES and a container's share are respected. `cpu:1` is the
    processor in the place of NVML's GPU 1, whose telemetry it then has: so a simulated node is tested whole.
    """
    shown = {device.name: device for device in cuda}
    chosen: list[Target] = []
    for kind, number in _parsed(words):
        if kind == "cpu":
            chosen.append(_processor(number, gpus))
        elif number is None:
            chosen += [_cuda(device, gpus) for device in shown.values()]
        elif f"cuda:{number}" in shown:
            chosen.append(_cuda(shown[f"cuda:{number}"], gpus))
        else:
            raise BurninError(f"there is no cuda:{number}: CUDA shows {', '.join(shown) or 'no GPU'}")
    twice = [target.gpu for number, target in enumerate(chosen) if target.gpu in {each.gpu for each in chosen[:number]}]
    if twice:
        raise BurninError(f"devices {words!r} name {twice[0]} twice")
    return tuple(chosen)


def _parsed(words: str) -> list[tuple[str, int | None]]:
    """[("cuda", 0), ("cuda", 1)] of `cuda:0,1`; None where all of a kind are meant."""
    parsed: list[tuple[str, int | None]] = []
    kind = ""
    for word in words.split(","):
        before, colon, after = word.strip().rpartition(":")
        kind = before if colon else kind if after.isdecimal() else after
        number = int(after) if after.isdecimal() else None
        if kind not in ("all", "cuda", "cpu") or (kind == "all" and number is not None) or (colon and number is None):
            raise BurninError(f"{words!r} names no devices: {_GRAMMAR}")
        parsed.append((kind, number))
    return parsed


def _cuda(device: CudaDevice, gpus: Mapping[str, GpuReadings]) -> Target:
    """CUDA shows at most one MIG device to a process, so that its GPU's uuid names it well enough."""
    for uuid, gpu in gpus.items():
        names = [uuid, *(mig.uuid for mig in gpu.mig_devices)]
        if any(name.partition("-")[2] == device.uuid for name in names):
            return Target(device.name, uuid, _name(gpu) or device.model)
    return Target(device.name, f"GPU-{device.uuid}", device.model)


def _processor(number: int | None, gpus: Mapping[str, GpuReadings]) -> Target:
    if number is None:
        return Target("cpu", "cpu")
    named = next((uuid for uuid, gpu in gpus.items() if gpu.index == number), "")
    if gpus and not named:
        raise BurninError(f"cpu:{number} is to stand for GPU {number}, but NVML knows {len(gpus)} GPUs")
    return Target("cpu", named, _name(gpus[named])) if named else Target("cpu", f"cpu:{number}")


def _name(gpu: GpuReadings) -> str:
    return gpu.name if isinstance(gpu.name, str) else ""


def users(gpu: GpuReadings, proc: Path) -> list[str]:
    """The processes that hold a GPU, as `python3 (pid 4711)`; those that NVML does not tell of are not known."""
    if isinstance(gpu.compute_processes, Missing):
        return []
    return [f"{_command(process.pid, proc)} (pid {process.pid})" for process in gpu.compute_processes]


def _command(pid: int, proc: Path) -> str:
    try:
        return (proc / str(pid) / "comm").read_text().strip() or "a process"
    except OSError:
        return "a process"  # of another pid namespace, or gone
