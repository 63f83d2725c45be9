"""Every call of the probe, made to lie in every way: it costs the readings of this call, and nothing else.

The calls are those that the simulated driver counts while the probe reads, so that a new call is among them. What a
call's readings are is found by refusing it once. `GPUHEALTH_LIES=100000` makes so many examples instead of a few.
"""

from __future__ import annotations

import asyncio
import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvmlsim.simulator import Simulator
from testing import nvml_lies
from testing.nvml_lies import Answer, answers, tell
from testing.readings import device, node

from gpuhealth.model.codes import Clears
from gpuhealth.model.finding import Action, Clean, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.nvml import driver as nvml_driver
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvLink, NvmlReadings
from gpuhealth.monitors.nvidia.settings import Nvml
from gpuhealth.monitors.registry import code_of
from gpuhealth.monitors.settings import Settings

EXAMPLES = int(os.environ.get("GPUHEALTH_LIES", "0"))

NODES: dict[str, dict[str, Any]] = {
    "NVLink 4": {"model": "h100-sxm"},
    "NVLink 5": {"model": "b200"},
    "retired pages": {"model": "v100-sxm2-32gb"},
    "MIG": {"model": "h100-sxm", "mig": 2},
}
GPUS = 2
LYING = 1
"""The GPU whose answers are lies."""

OPEN = "nvmlDeviceGetHandleByIndex_v2"
FIELDS = "nvmlDeviceGetFieldValues"
LINK_STATE = "nvmlDeviceGetNvLinkState"
UNEXPECTED = "agent.unexpected_reading"
INVALID_ARGUMENT, NOT_SUPPORTED, CORRUPTED_INFOROM = 2, 3, 14

# A lie of each kind that is tried on every call in every run.
OF_EACH_KIND: list[Answer] = [
    *({"code": code} for code in (2, 4, 9, 13, 15, 16, 26, 999, -1)),
    *({"value": value} for value in (-1, (1 << 31) + 200, float("nan"))),
    {"zero": 1},
    {"shift": 1},
]
OF_FIELDS: list[Answer] = [{"type": 255}, {"type": 0, "value": 0.5}, {"value": float("inf")}, {"type": 6, "value": -1}]

# The values that a reading may have. A lie within them is a legal value, and may be any finding that such a value is.
LEGAL = {
    r"celsius": (-200, 200),
    r"percent": (0, 100),
    r"pcie_width": (0, 32),
    r"pcie_generation": (0, 16),
    r"milliwatts": (0, 20_000_000),
    r"mhz": (0, 100_000),
    r"recovery_action|minor|compute_mode": (0, 255),
    r"nvlinks\.\d+\.state": (0, 3),
    r"nvlinks\.\d+\.\w+_ber": (0, 1),
    r"remap_|ecc_errors|pcie_replays|retired_pages": (0, (1 << 31) - 1),
    r"clocks_event_reasons": (0, 0xFFFF),
    r"": (0, 1 << 62),
}


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


class Node:
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
        self._judge(self.honest, rounds=2, memory=self._memory)
        self.clean = self.outcomes_after(self.honest)

    def _calls(self) -> Iterator[Call]:
        for name in self.simulator.calls():
            kind, _, field = name.partition("=")
            if field:
                yield Call(FIELDS, int(field))
            elif kind.startswith("nvmlDevice") and "Count" not in kind.replace("MigDeviceCount", "") and kind != OPEN:
                yield Call(kind)

    def _reached(self, call: Call) -> set[str]:
        """The readings that change when the call is refused."""
        with tell(call.function, gpu=LYING, **call.where, code=999):
            refused = flat(self.read().gpus[LYING])
        honest = flat(self.honest.gpus[LYING])
        return {name for name in honest if refused.get(name) != honest[name]}

    def read(self) -> NvmlReadings:
        """A first round, as the parent of the child process receives it."""
        driver = nvml_driver.Driver(lambda _: None)
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

    def _judge(self, nvml: NvmlReadings, *, rounds: int, memory: Memory | None = None) -> list[Outcome]:
        """The outcomes of the last of so many equal rounds, ten seconds apart."""
        said: list[Outcome] = []
        judge = Judge(Settings(), memory, time=node().time)
        devices = tuple(msgspec.structs.replace(device(0), address=gpu.pci) for gpu in self.honest.gpus)
        for number in range(rounds):
            at = 10.0 * number + (20.0 if memory is not self._memory else 0.0)
            round_ = node(at=at, nvml=nvml, pci=devices, device_nodes=tuple(range(GPUS)))
            said = judge.round(NVIDIA, round_.nvidia, round_.time)
        return said

    def outcomes_after(self, lying: NvmlReadings) -> list[Outcome]:
        """The outcomes when a lie begins in the third round and has lasted for three."""
        return self._judge(lying, rounds=3, memory=copy.deepcopy(self._memory))


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


@pytest.fixture(scope="module", params=NODES)
def lying_node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node of each kind, NVML started in this process."""
    before = os.environ.get("NVMLSIM_STATE")
    yield Node(tmp_path_factory.mktemp("lies"), NODES[request.param])
    nvml_lies.end()
    nvml_driver.stop(lambda _: None)
    os.environ.pop("NVMLSIM_STATE") if before is None else os.environ.update(NVMLSIM_STATE=before)


def test_each_reading_belongs_to_one_call(lying_node: Node) -> None:
    """Two calls that are refused cost no reading in common, so that one call costs its own."""
    owners: dict[str, Call] = {}
    assert len(lying_node.calls) > 40
    for call, readings in lying_node.reach.items():
        if call == Call(FIELDS):  # every field at once
            continue
        if call.function == "nvmlDeviceGetMigMode":
            readings = readings - {"mig_devices"}  # not asked for without MIG  # noqa: PLW2901
        for reading in readings:
            if reading == "mig_devices":  # several calls make one device
                continue
            assert reading not in owners, (reading, call, owners[reading])
            owners[reading] = call


def _assert_lie_costs_its_call_only(lying_node: Node, call: Call, lie: Answer) -> None:
    with tell(call.function, gpu=LYING, **call.where, **lie):
        lying = lying_node.read()
    what = (call, lie)
    honest = lying_node.honest
    assert [gpu.index for gpu in lying.gpus] == list(range(GPUS)), what
    for index in set(range(GPUS)) - {LYING}:
        assert lying.gpus[index] == honest.gpus[index], what
    assert msgspec.structs.replace(lying, gpus=()) == msgspec.structs.replace(honest, gpus=()), what

    told, truth = flat(lying.gpus[LYING]), flat(honest.gpus[LYING])
    changed = {name: told.get(name) for name in {*told, *truth} if told.get(name) != truth.get(name)}
    assert lying.gpus[LYING].error is None, what
    assert changed.keys() <= lying_node.reach[call] | _also_changed(call, told, truth), (what, changed)
    for name, value in changed.items():
        _assert_missing_or_legal(name, value, what)
    if changed or lying.gpus[LYING].failed_calls:
        _assert_judged(lying_node, lying, changed, what)


def _also_changed(call: Call, told: dict[str, Any], truth: dict[str, Any]) -> set[str]:
    """Readings of other calls that depend on this answer: those of NVLinks on which links and counters there are."""
    links = {name for name in {*told, *truth} if name.startswith("nvlinks")}
    if call == Call(FIELDS) or (call.function == LINK_STATE and "nvlinks" in told):
        return links
    if call.function == LINK_STATE:  # links that only the lie makes
        return {name for name in links if name.rpartition(".")[0] + ".state" not in truth}
    return set()


def _assert_missing_or_legal(name: str, value: Any, what: tuple[Call, Answer]) -> None:
    call, _ = what
    if isinstance(value, Missing):
        if value.reason is not MissingReason.NOT_SUPPORTED:
            assert re.sub(r"_v\d$", "", call.function).startswith(re.split(r"[:(]|_v\d", value.detail)[0]), (what, value)
            assert len(value.detail) <= 300, what
            assert value.detail.isprintable(), what
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = next(bounds for pattern, bounds in LEGAL.items() if re.search(pattern, name))
        assert low <= value <= high, (what, name, value)
    elif isinstance(value, str):
        assert value.isprintable(), what
        assert len(value) <= 256, what


def _assert_judged(lying_node: Node, lying: NvmlReadings, changed: dict[str, Any], what: tuple[Call, Answer]) -> None:
    call, lie = what
    said = lying_node.outcomes_after(lying)
    before = {(each.code, each.component) for each in lying_node.clean if isinstance(each, Finding)}
    found = [each for each in said if isinstance(each, Finding) and (each.code, each.component) not in before]
    odd = [each for each in found if each.code == UNEXPECTED]
    unread = [value for value in changed.values() if isinstance(value, Missing) and not value.is_unsupported]
    gone = not changed.keys() <= flat(lying.gpus[LYING]).keys()  # such as a counter of a link
    assert bool(odd) == bool(lying.gpus[LYING].failed_calls) or lie.get("code") == CORRUPTED_INFOROM, (what, said)
    assert odd or not (unread or gone) or call.is_legal(lie), (what, changed)
    for each in odd:
        assert each.severity is Severity.WARNING, what
        assert each.action is not Action.REBOOT_NODE, what
        assert len(each.message) < 1000, what
        assert not code_of(each.code).quarantine
    legal = [value for value in changed.values() if value is not None and not isinstance(value, Missing)]
    assert len(found) == len(odd) or legal or call.is_legal(lie), (what, found, changed)
    for each in found:
        assert code_of(each.code).clears not in (Clears.REBOOT, Clears.REBOOT_OR_BURNIN), (what, each)
    was_clean = {(each.code, each.component) for each in lying_node.clean if isinstance(each, Clean)}
    clean = {(each.code, each.component) for each in said if isinstance(each, Clean)}
    assert legal or clean <= was_clean, (what, clean - was_clean)


def test_a_lie_of_each_kind_about_every_call(lying_node: Node) -> None:
    """Whatever one call answers about one GPU costs that call's readings: each is missing with what was seen, or legal.

    The rest of the GPU, the other GPUs, versions and count are as without the lie; what is found is
    agent.unexpected_reading, unless the answer is a legal value of a fault; nothing that is missing counts as clean.
    """
    for call in lying_node.calls:
        for lie in [*OF_EACH_KIND, *(OF_FIELDS if call.field is not None else [])]:
            _assert_lie_costs_its_call_only(lying_node, call, lie)


def test_any_lie_about_any_call(lying_node: Node) -> None:
    """As above, for lies of every kind drawn at random."""
    cases = [(call, lie) for call in lying_node.calls for lie in call.lies]
    assert len(cases) > 2000

    @given(st.sampled_from(cases))
    @settings(settings.default, max_examples=EXAMPLES or settings.default.max_examples)
    def holds(case: tuple[Call, Answer]) -> None:
        _assert_lie_costs_its_call_only(lying_node, *case)

    holds()
