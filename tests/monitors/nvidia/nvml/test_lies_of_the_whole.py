"""Lies about NVML as a whole: handles, number of GPUs, versions; and many lies at once, read by the real process."""

from __future__ import annotations

import asyncio
import os
import random
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nvmlsim.simulator import Simulator
from testing.lying_node import GPUS, LYING, OPEN, LyingNode, lying_node
from testing.nvml_lies import CODES, DOUBLES, NUMBERS, Answer, add, answers, end, tell

from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, Clean, Finding, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml.process import NvmlProbe
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings
from gpuhealth.monitors.nvidia.settings import Nvml
from gpuhealth.monitors.registry import code_of

CALM = Nvml(warn_after=60.0, critical_after=120.0)
OWN = {4: "agent.permission", 12: "agent.unexpected_reading", 13: "agent.unexpected_reading"}
NAMED = {14: "inforom.corrupted", 15: "gpu.lost", 16: "gpu.reset_required"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingNode]:
    """A node of two H100."""
    with lying_node(tmp_path_factory.mktemp("lies"), model="h100-sxm") as made:
        yield made


def new_findings(node: LyingNode, readings: NvmlReadings, rounds: int = 3) -> list[Finding]:
    """What is found after so many rounds with the lie, and was not without it."""
    before = {(each.code, each.component) for each in node.clean if isinstance(each, Finding)}
    outcomes = node.outcomes_after(readings, rounds)
    return [each for each in outcomes if isinstance(each, Finding) and (each.code, each.component) not in before]


@pytest.mark.parametrize("code", CODES)
def test_a_handle_that_is_refused(node: LyingNode, code: int) -> None:
    """One GPU that cannot be opened is at fault in the first round, unless only our own process lacks something."""
    with tell(OPEN, gpu=LYING, code=code):
        readings = node.read()
    assert readings.gpus[0] == node.honest.gpus[0]
    assert readings.gpus[LYING].error
    found = new_findings(node, readings, rounds=1)
    assert {each.component.id for each in found} == {node.honest.gpus[LYING].uuid}
    assert [each.code for each in found] == [OWN.get(code, NAMED.get(code, "nvml.error"))]
    assert found[0].severity is (Severity.WARNING if code in OWN else Severity.CRITICAL)
    assert code_of(found[0].code).quarantine is (code not in OWN)
    if code in OWN:
        assert found[0].action is not Action.REBOOT_NODE
        assert found[0].severity is Severity.WARNING
    clean = {each.code for each in node.outcomes_after(readings) if isinstance(each, Clean) and each.component != NODE}
    assert clean  # those of the other GPU


@pytest.mark.parametrize("code", [4, 12, 13])
def test_our_own_lack_at_every_gpu_is_no_fault_of_theirs(node: LyingNode, code: int) -> None:
    """Handles that all GPUs refuse for lack of permission or of a function are findings agent.* and no others."""
    with tell(OPEN, code=code):
        readings = node.read()
    assert {each.code for each in new_findings(node, readings)} == {OWN[code]}


@pytest.mark.parametrize("lie", [{"zero": 1}, {"value": 0}, {"value": -1}, {"value": 7}])
def test_a_handle_that_is_none(node: LyingNode, lie: dict[str, int]) -> None:
    """A NULL handle is a refused one; with one that the driver does not know nothing about the GPU is clean."""
    with tell(OPEN, gpu=LYING, **lie):
        readings = node.read()
    assert readings.gpus[0] == node.honest.gpus[0]
    found = {each.code for each in new_findings(node, readings)}
    assert found == ({"nvml.error"} if readings.gpus[LYING].error else {"agent.unexpected_reading"})


def test_a_wrong_handle_is_not_kept(node: LyingNode) -> None:
    """A GPU that could not be identified is opened again in the next round."""
    with node.started() as driver:
        with tell(OPEN, gpu=LYING, value=7):
            assert isinstance(driver.read(LYING, GPUS).uuid, Missing)
        assert driver.read(LYING, GPUS).uuid == node.honest.gpus[LYING].uuid


@pytest.mark.parametrize("name", ["nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo"])
def test_two_gpus_with_one_name_are_two(node: LyingNode, name: str) -> None:
    """A GPU that answers with another's uuid or address keeps a component of its own, and is read."""
    first = node.honest.gpus[0]
    lies: dict[str, list[Answer]] = {
        "nvmlDeviceGetUUID": [{"text": first.id}],
        "nvmlDeviceGetPciInfo": [
            {"member": member, "value": node.simulator.get(f"gpu0.pci.{part}")}
            for member, part in enumerate(("domain", "bus", "device"))
        ],
    }
    for lie in lies[name]:
        add(name, gpu=LYING, **lie)
    readings = node.read()
    end()
    assert len({gpu.id for gpu in readings.gpus}) == GPUS
    assert list(readings.gpus[LYING].failed_calls) == [name]
    assert readings.gpus[LYING].temperature_celsius == first.temperature_celsius
    assert {each.code for each in new_findings(node, readings)} == {"agent.unexpected_reading"}


@pytest.mark.parametrize("lie", [*({"value": value} for value in (*NUMBERS, *DOUBLES)), {"zero": 1}])
def test_any_number_of_gpus(node: LyingNode, lie: dict[str, int | float]) -> None:
    """A count that cannot be is missing, one that is too large adds no GPU to those that the bus has, and only one
    that is too small is a GPU that is gone."""
    with tell("nvmlDeviceGetCount", gpu=None, **lie):
        readings = node.read()
    found = {each.code for each in new_findings(node, readings)}
    if isinstance(readings.count, Missing):
        assert readings.gpus == ()
        assert found == {"agent.unexpected_reading"}
    elif readings.count == GPUS:
        assert found == set()
    elif readings.count > GPUS:
        assert readings.gpus[:GPUS] == node.honest.gpus
        assert found == {"agent.unexpected_reading"}
    else:
        assert "gpu.missing" in found


def test_a_count_that_was_too_large_is_forgotten(node: LyingNode) -> None:
    """After one round with a GPU too many the node is as it was."""
    with tell("nvmlDeviceGetCount", value=GPUS + 1):
        readings = node.read()
    outcomes = node.outcomes_of([readings, node.honest, node.honest])
    assert {each.code for each in outcomes if isinstance(each, Finding)} <= {
        each.code for each in node.clean if isinstance(each, Finding)
    }


VERSIONS = ("nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion", "nvmlSystemGetCudaDriverVersion")


@pytest.mark.parametrize("name", VERSIONS)
def test_versions(node: LyingNode, name: str) -> None:
    """Whatever a version is, it costs this version, and is read again in the next round."""
    for lie in answers(text="Cuda" not in name):
        with tell(name, gpu=None, **lie):
            readings = node.read()
        assert readings.gpus == node.honest.gpus
        versions = (readings.driver_version, readings.nvml_version, readings.cuda_version)
        honest = (node.honest.driver_version, node.honest.nvml_version, node.honest.cuda_version)
        assert sum(one != other for one, other in zip(versions, honest, strict=True)) <= 1, lie
        odd = any(isinstance(each, Missing) and not each.is_unsupported for each in versions)
        assert {each.code for each in new_findings(node, readings)} == (
            {"agent.unexpected_reading"} if odd else set()
        ), lie
    with node.started() as driver:
        with tell(name, code=999):
            driver.read_versions()
        driver.read_versions()
        assert driver.driver_version == node.honest.driver_version
        assert driver.cuda_version == node.honest.cuda_version


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A node of three GPUs that this process' children see."""
    simulator = Simulator(tmp_path, "b200", gpus=3)
    for name, value in simulator.env.items():
        monkeypatch.setenv(name, value)
    return simulator


def run(test: Callable[[NvmlProbe], Any]) -> None:
    """Runs a test with a probe."""

    async def whole() -> None:
        probe = NvmlProbe(CALM)
        try:
            await test(probe)
        finally:
            probe.close()

    asyncio.run(whole())


def test_many_lies_told_to_the_process(simulated: Simulator) -> None:
    """With dozens of lies about two GPUs the process goes on, the third GPU is read in full, and the truth is read
    again as soon as they end."""

    async def body(probe: NvmlProbe) -> None:
        honest = await _read(probe, rounds=3)
        pids, calls = probe.pids, [name for name in simulated.calls() if name.startswith("nvmlDevice")]
        for seed in range(int(os.environ.get("GPUHEALTH_LIES", "0")) // 1000 + 4):
            chosen = random.Random(seed)
            for _ in range(30):
                call, lie = chosen.choice(calls), chosen.choice(answers())
                simulated.lie(call, gpu=chosen.choice((1, 2)), **lie)
            for _ in range(3):
                readings = await probe.read(60.0)
                assert readings.answered, seed
                assert readings.problem is None, seed
                assert [gpu.index for gpu in readings.gpus] == [0, 1, 2], seed
                assert readings.gpus[0] == honest.gpus[0], seed
                assert not any(_is_of_our_process(gpu) for gpu in readings.gpus), seed
            simulated.truth()
            # A GPU is opened again, a fixed property is read twice, a count has fallen.
            readings = await _read(probe, rounds=3)
            assert _without_time(readings) == _without_time(honest), seed
        assert probe.pids == pids

    run(body)


async def _read(probe: NvmlProbe, rounds: int) -> NvmlReadings:
    """The last of so many rounds."""
    for _ in range(rounds - 1):
        await probe.read(60.0)
    return await probe.read(60.0)


def _is_of_our_process(gpu: GpuReadings) -> bool:
    return gpu.error is not None and gpu.error.reason is MissingReason.AGENT_FAULT


def _without_time(readings: NvmlReadings) -> NvmlReadings:
    return msgspec.structs.replace(readings, waiting_seconds=0.0)


OLD_BINDING = """
    import sys
    if "gpuhealth.monitors.nvidia.nvml.child" in sys.orig_argv:
        import pynvml
        for name in list(vars(pynvml)):
            if name.startswith(("NVML_FI_", "NVML_CLOCK_", "NVML_NVLINK_", "NVML_GPU_", "nvmlMemory_v", "NVML_ECC")):
                delattr(pynvml, name)
        for name in ("nvmlDeviceGetMarginTemperature", "nvmlDeviceGetRepairStatus", "nvmlDeviceGetFieldValues",
                     "c_nvmlGpuFabricInfo_v3_t", "c_nvmlEccSramErrorStatus_v1_t", "nvmlEventSetCreate"):
            delattr(pynvml, name)
"""


def test_a_binding_that_lacks_what_is_asked_for(
    simulated: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an nvidia-ml-py without some functions, structures and constants, the readings of these functions are
    missing and name them, and all others are taken."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(OLD_BINDING))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")

    async def body(probe: NvmlProbe) -> None:
        probe.want_events()
        readings = await probe.read(60.0)
        assert readings.problem is None
        assert [gpu.index for gpu in readings.gpus] == [0, 1, 2]
        for gpu in readings.gpus:
            assert set(gpu.failed_calls) == {
                "nvmlDeviceGetMarginTemperature",
                "nvmlDeviceGetRepairStatus",
                "nvmlDeviceGetFieldValues",
                "nvmlDeviceGetGpuFabricInfoV",
                "nvmlDeviceGetSramEccErrorStatus",
            }
            assert "has no attribute" in gpu.failed_calls["nvmlDeviceGetRepairStatus"].detail
            assert isinstance(gpu.recovery_action, Missing)
            assert gpu.recovery_action.reason is MissingReason.ERROR
            assert gpu.temperature_celsius == 28
        assert probe.deaf
        assert "nvmlEventSetCreate" in probe.deaf.detail

    run(body)


def test_odd_events_end_no_process(simulated: Simulator) -> None:
    """Whatever the event calls answer, the readings come, and an XID that cannot be is passed over."""

    async def body(probe: NvmlProbe) -> None:
        seen: list[int] = []
        probe.on_xid = lambda event: seen.append(event.xid)
        simulated.lie("nvmlEventSetCreate", code=999)
        probe.want_events()
        assert (await probe.read(60.0)).answered
        assert probe.deaf
        simulated.truth()
        simulated.lie("nvmlEventSetWait_v2", member=2, value=-1)
        simulated.lie("nvmlEventSetFree", code=1)
        for _ in range(3):
            simulated.inject("xid", gpu=1, code=48)
            assert len((await probe.read(60.0)).gpus) == 3
        assert seen == []
        (pid,) = probe.pids
        assert pid

    run(body)
