"""What a node remembers of its GPUs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from testing.readings import LOST, Round, device, gpu, gpus, judged, node, nvml, pci, uuid

from gpuhealth.model.component import NODE, Kind
from gpuhealth.model.finding import Finding
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.monitors.nvidia.checks import gpu as subject
from gpuhealth.monitors.nvidia.monitor import MONITOR
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvLink, NvmlReadings, PciDevice
from gpuhealth.monitors.settings import Settings


def after(memory: Memory, *listed: GpuReadings, answered: bool = True, **settings: Any) -> Baseline:
    """What is remembered of the GPUs after a round."""
    looked = node(*listed, nvml=nvml(*listed, answered=answered))
    Judge(Settings(**settings), memory, time=looked.time).round(MONITOR, looked.nvidia, looked.time)
    baseline: Baseline = memory.baseline(MONITOR)
    return baseline


def test_learns() -> None:
    """The first round teaches which GPUs there are, which links are up, and that ECC is on."""
    baseline = after(Memory(), gpu(0))
    assert baseline.gpus == {uuid(0): pci(0)}
    assert baseline.models == {uuid(0): "NVIDIA H100 80GB HBM3"}
    assert baseline.active_links == {uuid(0): [0, 1, 2, 3]}
    assert baseline.ecc == {uuid(0): True}


def test_keeps_what_is_lost() -> None:
    """A GPU that is lost, or listed no more, is remembered as it was."""
    memory = Memory()
    after(memory, *gpus(3))
    assert set(after(memory, gpu(0), gpu(1, error=LOST)).gpus) == {uuid(0), uuid(1), uuid(2)}


def test_only_grows() -> None:
    """A link that went down and ECC that was turned off do not change what is remembered."""
    memory = Memory()
    after(memory, gpu(0))
    baseline = after(memory, gpu(0, nvlinks=(NvLink(0, 0), NvLink(1, 1)), ecc_enabled=False))
    assert baseline.active_links == {uuid(0): [0, 1, 2, 3]}
    assert baseline.ecc == {uuid(0): True}


def test_replacement() -> None:
    """Another GPU in the same place takes the place of the one that was there."""
    memory = Memory()
    after(memory, gpu(0))
    baseline = after(memory, gpu(0, uuid="GPU-new"))
    assert baseline.gpus == {"GPU-new": pci(0)}
    assert set(baseline.models) == {"GPU-new"}


def test_taken_out_on_purpose() -> None:
    """When exactly the expected GPUs are there, the others are forgotten; not in a round that is not complete."""
    memory = Memory()
    after(memory, *gpus(4))
    assert len(after(memory, *gpus(3), answered=False, expected_gpus=3).gpus) == 4
    assert set(after(memory, *gpus(3), expected_gpus=3).gpus) == {uuid(0), uuid(1), uuid(2)}


def test_remembers_one_that_never_told_its_name() -> None:
    """A GPU that was lost whenever we looked is missed once NVML lists it no more, until expected_gpus says better."""
    memory, nameless = Memory(), gpu(1, uuid=LOST, pci=LOST, error=LOST)
    after(memory, gpu(0), nameless)
    assert "2 GPUs expected" in judged(subject.CHECK, node(gpu(0)), memory).finding("gpu.missing", NODE).message
    after(memory, gpu(0), expected_gpus=1)
    again = judged(subject.CHECK, node(gpu(0)), memory)
    assert again.findings == []
    assert again.is_clean("gpu.missing", NODE)


# --- another boot -----------------------------------------------------------------------------------------------------


def elsewhere(count: int = 8, **changes: Any) -> Round:
    """A healthy node whose GPUs have other uuids and addresses than those of `gpus`; `changes` are its readings."""
    listed = [gpu(index, uuid=f"GPU-new{index}", pci=PciAddress(f"00{index:02x}:00:00.0")) for index in range(count)]
    on_bus = tuple(device(each.index, address=each.pci) for each in listed)
    return node(*listed, **({"pci": on_bus} | changes))


class Machine:
    """A node over several boots."""

    def __init__(self, *rounds: Round, boot_id: str = "boot-1", **settings: Any) -> None:
        self.memory = Memory()
        self.settings = Settings(**settings)
        for looked in rounds:
            self.look(looked, boot_id)

    def look(self, looked: Round, boot_id: str = "boot-2") -> list[str]:
        """The codes of the findings of one round in a boot."""
        judge = Judge(self.settings, self.memory, boot_id=boot_id, time=looked.time)
        judge.set_readings(MONITOR, looked.nvidia, looked.time)
        self.seen, self.complete = len(judge.components), Kind.GPU in judge.facts().complete
        outcomes = judge.round(MONITOR, looked.nvidia, looked.time)
        return [outcome.code for outcome in outcomes if isinstance(outcome, Finding)]

    @property
    def baseline(self) -> Baseline:
        """The known GPUs of the node after the rounds so far."""
        known: Baseline = self.memory.baseline(MONITOR)
        return known


def test_other_gpus_after_a_reboot() -> None:
    """As many GPUs as before, all with new uuids and addresses: the change is reported once, and none is missing."""
    machine = Machine(node(*gpus(8)))
    assert machine.look(elsewhere()) == ["gpu.replaced"]
    assert machine.seen == 8
    assert machine.look(elsewhere()) == []
    assert set(machine.baseline.gpus) == set(machine.baseline.models) == {f"GPU-new{index}" for index in range(8)}
    assert machine.look(elsewhere(7)) == ["gpu.missing"]


def test_one_board_replaced() -> None:
    """A board with another uuid in the same slot is reported once."""
    machine = Machine(node(*gpus(8)))
    replaced = node(*gpus(8, changed=3, uuid="GPU-new"))
    assert machine.look(replaced) == ["gpu.replaced"]
    assert machine.look(replaced) == []


def test_the_same_gpus_elsewhere_on_the_bus() -> None:
    """New addresses with the same uuids are no change of GPUs."""
    machine = Machine(node(*gpus(8)))
    moved = [gpu(index, pci=pci(index + 8)) for index in range(8)]
    assert machine.look(node(*moved, pci=tuple(device(index + 8) for index in range(8)))) == []
    assert machine.baseline.gpus == {uuid(index): pci(index + 8) for index in range(8)}


def test_other_gpus_in_the_same_boot() -> None:
    """GPUs do not change while a node runs: the known ones are missing."""
    machine = Machine(node(*gpus(8)))
    assert machine.look(elsewhere(), "boot-1") == []
    assert machine.look(elsewhere(), "boot-1") == ["gpu.missing"]


@pytest.mark.parametrize("count", range(8))
def test_fewer_after_a_reboot(count: int) -> None:
    """A node that comes up with fewer GPUs has missing ones, whatever their uuids, until the setting says otherwise."""
    machine = Machine(node(*gpus(8)))
    for _ in range(3):
        assert machine.look(elsewhere(count)) == ["gpu.missing"]
    assert machine.look(node(*gpus(count))) == ["gpu.missing"]
    machine.settings = Settings(expected_gpus=count)
    assert machine.look(node(*gpus(count))) == []


def test_more_after_a_reboot() -> None:
    """A virtual machine that comes up with more GPUs, all of them new, has as many."""
    machine = Machine(node(*gpus(4)))
    assert machine.look(elsewhere(8)) == ["gpu.replaced"]
    assert machine.look(elsewhere(8)) == []
    assert machine.look(elsewhere(7)) == ["gpu.missing"]


@pytest.mark.parametrize(
    "changes",
    [
        {"device_nodes": tuple(range(7))},
        {"pci": tuple(device(index) for index in range(9))},
        {"nvml": nvml(*gpus(8, changed=2, uuid=LOST), count=8)},
        {"nvml": msgspec.structs.replace(elsewhere().nvidia.nvml, answered=False)},
    ],
    ids=["device nodes", "bus", "uuid", "incomplete"],
)
def test_counts_that_do_not_agree(changes: dict[str, Any]) -> None:
    """Until all counts agree, the known GPUs are kept, and the others are not added to them."""
    machine = Machine(node(*gpus(8)))
    machine.look(elsewhere(**changes))
    assert len(machine.baseline.gpus) == 8
    assert machine.look(elsewhere()) == ["gpu.replaced"]
    assert machine.look(elsewhere()) == []


def test_a_baseline_without_a_boot_id() -> None:
    """What an earlier version has remembered says nothing of the boot: it is compared as that of another one."""
    machine = Machine(node(*gpus(8)))
    old = msgspec.json.encode({"gpus": machine.baseline.gpus, "counted": 8, "models": machine.baseline.models})
    machine.memory.baselines["nvidia"] = msgspec.json.decode(old, type=Baseline)
    assert machine.look(node(*gpus(8)), "boot-1") == []
    assert machine.baseline.boot_id == "boot-1"
    machine.memory.baselines["nvidia"] = msgspec.json.decode(old, type=Baseline)
    assert machine.look(elsewhere()) == ["gpu.replaced"]
    assert machine.look(elsewhere()) == []


# --- GPUs that come and go --------------------------------------------------------------------------------------------


def handed_over(*indices: int) -> tuple[PciDevice, ...]:
    """The bus with eight GPUs, some of which are a virtual machine's."""
    return tuple(device(index, driver="vfio-pci" if index in indices else "nvidia") for index in range(8))


def test_handed_over_and_given_back() -> None:
    """A GPU that is given to a virtual machine is no longer the node's; once it is back it is known again."""
    machine = Machine(node(*gpus(8)))
    still_listed = node(*gpus(8, changed=7, error=LOST), pci=handed_over(7))  # until NVML is started again
    assert machine.look(still_listed, "boot-1") == ["gpu.unmanaged"]
    assert machine.seen == 7
    away = node(*gpus(7), pci=handed_over(7), device_nodes=tuple(range(8)))
    assert machine.look(away, "boot-1") == ["gpu.unmanaged"]
    assert (machine.seen, machine.baseline.counted, len(machine.baseline.gpus)) == (7, 7, 7)
    assert machine.look(node(*gpus(7), pci=handed_over()), "boot-1") == []  # NVML need not list it yet
    assert machine.look(node(*gpus(8), pci=handed_over()), "boot-1") == []
    assert machine.look(node(*gpus(7), pci=handed_over()), "boot-1") == ["gpu.missing"]


def test_an_unknown_driver_under_which_nvml_works() -> None:
    """Whatever the driver of a GPU is called: what NVML lists is checked, unless it is a virtual machine's."""
    unknown = tuple(device(index, driver="nvgpu") for index in range(2))
    machine = Machine(node(*gpus(2), pci=unknown))
    assert machine.look(node(*gpus(2), pci=unknown), "boot-1") == []
    assert machine.seen == 2
    assert machine.look(node(*gpus(1), pci=unknown), "boot-1") == ["gpu.unmanaged"]


def test_all_handed_over() -> None:
    """Once all GPUs are virtual machines' and the driver is gone, none is left: findings on them end."""
    machine = Machine(node(*gpus(8)))
    away = Missing(MissingReason.NOT_LOADED, "nvmlInit_v2: Driver Not Loaded (9)")
    looked = node(nvml=NvmlReadings(problem=away), pci=handed_over(*range(8)), device_nodes=())
    assert machine.look(looked, "boot-1") == ["gpu.unmanaged"]
    assert (machine.seen, machine.complete) == (0, True)
    looked = node(nvml=NvmlReadings(problem=away), pci=handed_over(*range(7)), device_nodes=())
    machine.look(looked, "boot-1")
    assert (machine.seen, machine.complete) == (1, False)


def test_one_missing_among_those_handed_over() -> None:
    """A GPU that vanishes while others are handed over is missing."""
    machine = Machine(node(*gpus(8)))
    machine.look(node(*gpus(6), pci=handed_over(6, 7), device_nodes=tuple(range(6))), "boot-1")
    assert machine.look(node(*gpus(5), pci=handed_over(6, 7), device_nodes=tuple(range(6))), "boot-1") == [
        "gpu.missing",
        "gpu.unmanaged",
    ]


def test_joined_gpu_that_nvml_never_lists() -> None:
    """A GPU that is added to a running node, and that NVML does not list within minutes, is missing."""
    machine = Machine(node(*gpus(7)))
    added = tuple(device(index) for index in range(8))
    for at in (10.0, 300.0):
        assert machine.look(node(*gpus(7), pci=added, device_nodes=tuple(range(8)), at=at), "boot-1") == []
    assert machine.look(node(*gpus(7), pci=added, at=320.0), "boot-1") == ["gpu.missing"]


def test_gpu_that_nvml_does_not_list_from_the_beginning() -> None:
    """On the first look there is no grace: the GPU on the bus is missing in NVML."""
    assert Machine().look(node(*gpus(7), pci=tuple(device(index) for index in range(8)))) == ["gpu.missing"]


def test_messages_are_bounded() -> None:
    """However many GPUs there are, a message names a few of them."""
    bus = tuple(device(index, address=PciAddress(f"{index:04x}:00:00.0"), driver="vfio-pci") for index in range(200))
    found = judged(subject.CHECK, node(gpu(0), pci=bus)).finding("gpu.unmanaged", NODE)
    assert "200 GPUs not meant" in found.message
    assert len(found.message) < 500
    missing = tuple(msgspec.structs.replace(each, driver="") for each in bus)
    assert len(judged(subject.CHECK, node(gpu(0), pci=missing)).finding("gpu.missing", NODE).message) < 600
