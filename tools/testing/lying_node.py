"""A simulated node whose calls can be made to lie one by one, and what the probe and the checks make of it."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from nvmlsim.simulator import Simulator

from gpuhealth.model.finding import Outcome
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.nvml import driver as nvml_driver
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvLink, NvmlReadings
from gpuhealth.monitors.settings import Settings
from testing import nvml_lies
from testing.nvml_lies import Answer, answers, tell
from testing.readings import device, node

GPUS = 2
LYING = 1
"""The GPU whose answers are lies."""

OPEN = "nvmlDeviceGetHandleByIndex"
FIELDS = "nvmlDeviceGetFieldValues"
LINK_STATE = "nvmlDeviceGetNvLinkState"
INVALID_ARGUMENT, NOT_SUPPORTED, CORRUPTED_INFOROM = 2, 3, 14


class Call(NamedTuple):
    """A function that the probe calls, or one of the field values that it asks for."""

    function: str
    field: int | None = None

    @property
    def where(self) -> Answer:
        """The words of a lie that limit it to this call."""
        return {} if self.field is None else {"field": self.field}

    def is_legal(self, lie: Answer) -> bool:
        """Whether it is a return code that says something about the GPU: it has no such thing, or a corrupt InfoROM."""
        past_the_last = lie.get("code") == INVALID_ARGUMENT and self.function in (LINK_STATE, FIELDS)
        return past_the_last or lie.get("code") in (NOT_SUPPORTED, CORRUPTED_INFOROM)

    @property
    def lies(self) -> list[Answer]:
        """Every way in which it can lie."""
        return answers(fields=self.field is not None, text=bool(re.search("UUID|Name|Serial|Version", self.function)))


class LyingNode:
    """A simulated node that this process sees, and what the probe reads of it."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.simulator = Simulator(folder, gpus=GPUS, **options)
        self.simulator.load()
        assert nvml_driver.start(lambda _: None) is None
        self.honest = self.read()
        assert not any(gpu.failed_calls for gpu in self.honest.gpus)
        self.calls = list(self._calls())
        self.reach = {call: self._reached(call) for call in self.calls}
        self._memory = Memory()
        self.outcomes_of([self.honest] * 2, self._memory)
        self.clean = self.outcomes_after(self.honest)

    def _calls(self) -> Iterator[Call]:
        for name in self.simulator.calls():
            kind, _, field = name.partition("=")
            if field:
                yield Call(FIELDS, int(field))
            elif (
                kind.startswith("nvmlDevice")
                and "Count" not in kind.replace("MigDeviceCount", "")
                and not kind.startswith(OPEN)
            ):
                yield Call(kind)

    def _reached(self, call: Call) -> set[str]:
        """The readings that change when the call is refused."""
        with tell(call.function, gpu=LYING, **call.where, code=999):
            refused = flat(self.read().gpus[LYING])
        honest = flat(self.honest.gpus[LYING])
        return {name for name in honest if refused.get(name) != honest[name]}

    @contextmanager
    def started(self) -> Iterator[nvml_driver.Driver]:
        """The probe's side of NVML, before its first round."""
        yield nvml_driver.Driver(lambda _: None)

    def read(self) -> NvmlReadings:
        """A first round, as the parent of the child process receives it."""
        with self.started() as driver:
            driver.read_versions()
            count = driver.count()
            number = 0 if isinstance(count, Missing) else count
            readings = NvmlReadings(
                answered=True,
                driver_version=driver.driver_version,
                nvml_version=driver.nvml_version,
                cuda_version=driver.cuda_version,
                count=count,
                gpus=tuple(driver.read(index, number) for index in range(number)),
            )
        return msgspec.json.decode(msgspec.json.encode(readings), type=NvmlReadings)

    def outcomes_of(self, rounds: list[NvmlReadings], memory: Memory | None = None) -> list[Outcome]:
        """The outcomes of the last of these rounds, ten seconds apart, which follow two honest ones."""
        said: list[Outcome] = []
        judge = Judge(Settings(), memory or copy.deepcopy(self._memory), time=node().time)
        devices = tuple(msgspec.structs.replace(device(0), address=gpu.pci) for gpu in self.honest.gpus)
        for number, nvml in enumerate(rounds):
            at = 10.0 * number + (0.0 if memory else 20.0)
            round_ = node(at=at, nvml=nvml, pci=devices, device_nodes=tuple(range(GPUS)))
            said = judge.round(NVIDIA, round_.nvidia, round_.time)
        return said

    def outcomes_after(self, told: NvmlReadings, rounds: int = 3) -> list[Outcome]:
        """The outcomes when a lie has lasted for so many rounds."""
        return self.outcomes_of([told] * rounds)


def flat(gpu: GpuReadings) -> dict[str, Any]:
    """Every single reading of a GPU, by a dotted name."""
    readings: dict[str, Any] = {}
    for field in GpuReadings.__struct_fields__:
        value = getattr(gpu, field)
        if field in ("calls", "failed_calls", "error"):
            continue
        if isinstance(value, dict):
            readings |= {f"{field}.{name}": each for name, each in value.items()}
        elif field == "nvlinks" and not isinstance(value, Missing):
            for link in value:
                readings |= {f"nvlinks.{link.link}.{name}": each for name, each in _of_link(link)}
        else:
            readings[field] = value
    return readings


def _of_link(link: NvLink) -> Iterator[tuple[str, Any]]:
    yield from (("state", link.state), ("remote_pci", link.remote_pci))
    yield from (("effective_ber", link.effective_ber), ("symbol_ber", link.symbol_ber))
    yield from link.errors.items()


@contextmanager
def lying_node(folder: Path, **options: Any) -> Iterator[LyingNode]:
    """A node that this process sees, NVML started; `options` are those of the simulator."""
    before = os.environ.get("NVMLSIM_STATE")
    try:
        yield LyingNode(folder, options)
    finally:
        nvml_lies.end()
        nvml_driver.stop(lambda _: None)
        os.environ.pop("NVMLSIM_STATE") if before is None else os.environ.update(NVMLSIM_STATE=before)
