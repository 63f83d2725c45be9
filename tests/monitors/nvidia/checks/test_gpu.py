"""The GPU as a whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.readings import LOST, Judged, device, gpu, gpus, judged, node, nvml, pci, remembering, uuid

from gpuhealth.model import component
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.checks import gpu as subject
from gpuhealth.monitors.nvidia.readings import GpuProcess, GpuReadings, NvmlReadings

PROCESS = GpuProcess(4711, 1 << 30)


def look(*listed: GpuReadings, memory: Memory | None = None, **changes: Any) -> Judged:
    """The check over a node with these GPUs."""
    return judged(subject.CHECK, node(*listed, **changes), memory)


def test_lost() -> None:
    """A GPU that every call finds lost is critical and takes a reboot."""
    finding = look(gpu(error=LOST)).finding("gpu.lost")
    assert (finding.severity, finding.action, finding.component) == (
        Severity.CRITICAL,
        Action.REBOOT_NODE,
        component.gpu(uuid(0)),
    )
    assert look(gpu()).is_clean("gpu.lost")


def test_corrupt_inforom_is_not_lost() -> None:
    """A GPU whose handle is refused for its InfoROM answers, and is not lost."""
    reason = Missing(MissingReason.CORRUPTED_INFOROM, "nvmlDeviceGetHandleByIndex_v2: corrupted infoROM (14)")
    assert look(gpu(error=reason)).is_clean("gpu.lost")


@pytest.mark.parametrize(
    ("value", "severity", "action"),
    [
        (1, Severity.CRITICAL, Action.RESET_GPU),
        (2, Severity.CRITICAL, Action.REBOOT_NODE),
        (3, Severity.WARNING, Action.RESTART_WORKLOAD),
        (4, Severity.CRITICAL, Action.RESET_GPU),
        (5, Severity.WARNING, Action.RESTART_WORKLOAD),
        (6, Severity.CRITICAL, Action.RESET_GPU),
        (7, Severity.CRITICAL, Action.REBOOT_NODE),
        (99, Severity.WARNING, Action.CONTACT_SUPPORT),
    ],
)
def test_recovery_action(value: int, severity: Severity, action: Action) -> None:
    """Each value of field 230 has its own severity and action; one of a newer driver is not passed over."""
    finding = look(gpu(recovery_action=value)).finding("gpu.recovery_action")
    assert (finding.severity, finding.action) == (severity, action)


def test_no_recovery_action() -> None:
    """None is clean, a driver without the field has nothing to check."""
    assert look(gpu(recovery_action=0)).is_clean("gpu.recovery_action")
    assert look(gpu(recovery_action=NOT_SUPPORTED)).says_nothing("gpu.recovery_action")


def busy(count: int, slow: int | None = None, clock: int = 1000) -> tuple[GpuReadings, ...]:
    """Busy GPUs at 1980 MHz, one of them slower."""
    return tuple(
        gpu(index, utilization_percent=100, sm_clock_mhz=clock if index == slow else 1980) for index in range(count)
    )


def test_straggler() -> None:
    """Of eight busy GPUs the slow one is found, and only that."""
    result = look(*busy(8, slow=5))
    assert [(each.code, each.component) for each in result.findings] == [("gpu.straggler", component.gpu(uuid(5)))]
    assert result.is_clean("gpu.straggler", uuid(0))


@pytest.mark.parametrize(("clock", "slow"), [(1683, False), (1682, True)])
def test_straggler_threshold(clock: int, slow: bool) -> None:
    """85 % of the median are still good."""
    assert look(*busy(8, slow=5, clock=clock)).is_clean("gpu.straggler", uuid(5)) is not slow


def test_straggler_needs_load() -> None:
    """An idle GPU's low clock says nothing, neither of itself nor of others."""
    result = look(*busy(4), gpu(4), gpu(5))
    assert result.why_not("gpu.straggler", uuid(4)) is MissingReason.NO_HISTORY
    assert result.is_clean("gpu.straggler", uuid(0))


def test_straggler_needs_peers() -> None:
    """With fewer than three GPUs of a model there is nothing to compare."""
    assert look(*busy(2, slow=1)).says_nothing("gpu.straggler", uuid(1))
    others = [gpu(index, name="NVIDIA L4", utilization_percent=100, sm_clock_mhz=900) for index in (3, 4)]
    assert look(*busy(3), *others).says_nothing("gpu.straggler", uuid(3))


def test_leaked_memory() -> None:
    """Memory in use with no process is found above 1 GiB."""
    assert look(gpu(memory_used_bytes=(1 << 30) + 1)).severity("gpu.leaked_memory") is Severity.WARNING
    assert look(gpu(memory_used_bytes=1 << 30)).is_clean("gpu.leaked_memory")


@pytest.mark.parametrize(
    "owner",
    [{"compute_processes": (PROCESS,)}, {"graphics_processes": (PROCESS,)}, {"utilization_percent": 3}],
)
def test_used_memory_with_an_owner(owner: dict[str, Any]) -> None:
    """Memory that somebody uses is not leaked; what computes is used by somebody."""
    assert look(gpu(memory_used_bytes=70 << 30, **owner), live_pids=(4711,)).is_clean("gpu.leaked_memory")


def test_leak_without_a_list_of_processes() -> None:
    """Where the processes cannot be listed, used memory is not called leaked."""
    hidden = Missing(MissingReason.NO_PERMISSION, "nvmlDeviceGetComputeRunningProcesses")
    result = look(gpu(memory_used_bytes=70 << 30, compute_processes=hidden))
    assert result.why_not("gpu.leaked_memory") is MissingReason.NO_PERMISSION


def test_zombie_process() -> None:
    """A listed process that does not exist is found by its pid; one that does is clean."""
    held = gpu(compute_processes=(PROCESS, GpuProcess(5000)))
    assert "4711" in look(held, live_pids=(5000,)).finding("gpu.zombie_process").message
    assert look(held, live_pids=(4711, 5000)).is_clean("gpu.zombie_process")
    unread = Missing(MissingReason.NO_PERMISSION, "/proc")
    assert look(held, live_pids=unread).why_not("gpu.zombie_process") is MissingReason.NO_PERMISSION


def missing(memory: Memory | None = None, listed: tuple[GpuReadings, ...] = (), **changes: Any) -> Judged:
    """The count of GPUs on a node."""
    expected = changes.pop("expected_gpus", None)
    return judged(subject.CHECK, node(*listed, **changes), memory, expected_gpus=expected)


def test_missing_from_nvml() -> None:
    """A GPU that is on the bus and not in NVML is named by its address, without any configuration."""
    pci_devices, nodes = tuple(device(index) for index in range(8)), tuple(range(8))
    finding = missing(listed=gpus(7), pci=pci_devices, device_nodes=nodes).finding("gpu.missing", NODE)
    assert f"{pci(7)} is not in NVML" in finding.message
    assert (finding.severity, finding.action) == (Severity.CRITICAL, Action.REBOOT_NODE)


def test_missing_from_the_bus() -> None:
    """A remembered GPU that is missing everywhere is named by address and uuid; the action is to inspect hardware."""
    memory = remembering(gpus={uuid(index): pci(index) for index in range(8)})
    finding = missing(memory, gpus(7)).finding("gpu.missing", NODE)
    assert f"{pci(7)} ({uuid(7)}) is not on the PCI bus" in finding.message
    assert finding.action is Action.INSPECT_HARDWARE


def test_one_off_the_bus_and_one_off_the_driver() -> None:
    """Of two missing GPUs each is named with the place that lacks it."""
    memory = remembering(gpus={uuid(index): pci(index) for index in range(4)})
    message = missing(memory, gpus(2), pci=tuple(device(i) for i in (0, 1, 2))).finding("gpu.missing", NODE).message
    assert f"{pci(3)} ({uuid(3)}) is not on the PCI bus" in message
    assert f"{pci(2)} ({uuid(2)}) is not in NVML" in message


def test_stale_list_names_nobody() -> None:
    """While NVML still lists a lost GPU, its list cannot identify another missing one."""
    memory = remembering(gpus={uuid(index): pci(index) for index in range(3)})
    finding = missing(memory, (gpu(0, error=LOST), gpu(1)), pci=tuple(device(i) for i in range(3)))
    assert pci(2) not in finding.finding("gpu.missing", NODE).message


def test_missing_device_node() -> None:
    """A GPU without its device node is missing too."""
    finding = missing(listed=gpus(8), device_nodes=(0, 1, 2, 3, 4, 5, 6)).finding("gpu.missing", NODE)
    assert "8 GPUs expected, /dev/nvidiaN shows 7" in finding.message


@pytest.mark.parametrize("tree", ["pci", "device_nodes"])
@pytest.mark.parametrize("shown", [(), Missing(MissingReason.NOT_INSTALLED)])
def test_hidden_trees_are_no_count(tree: str, shown: Any) -> None:
    """A tree that a container does not show is not a count of zero."""
    assert missing(None, gpus(8), **{tree: shown}).is_clean("gpu.missing", NODE)


def test_nvml_zero_is_a_count() -> None:
    """A driver that answers and lists no GPU lacks those on the bus."""
    result = missing(pci=(device(0), device(1)), device_nodes=())
    assert "2 GPUs expected, NVML shows 0" in result.finding("gpu.missing", NODE).message


def test_expected_number_wins_over_the_baseline() -> None:
    """With `expected_gpus` the remembered GPUs do not count, and fewer than expected are missing at the first look."""
    memory = remembering(gpus={uuid(index): pci(index) for index in range(8)})
    assert missing(memory, gpus(7), expected_gpus=7).is_clean("gpu.missing", NODE)
    assert missing(None, gpus(7), expected_gpus=8).severity("gpu.missing", NODE) is Severity.CRITICAL


def test_lost_gpu_is_not_missing() -> None:
    """A lost GPU is still counted everywhere: one fault, one finding."""
    assert missing(listed=gpus(8, changed=2, error=LOST)).is_clean("gpu.missing", NODE)


def test_no_gpu_anywhere() -> None:
    """A node on which no GPU is known is not checked, and not clean."""
    assert missing(pci=(), device_nodes=()).why_not("gpu.missing", NODE) is MissingReason.NOT_INSTALLED


def test_count_without_nvml() -> None:
    """Without NVML's count nothing is clean, but the bus can already show what is missing."""
    hung = NvmlReadings(problem=Missing(MissingReason.TIMEOUT, "no answer for 25 s to nvmlInit_v2"))
    assert missing(listed=gpus(8), nvml=hung).why_not("gpu.missing", NODE) is MissingReason.TIMEOUT
    memory = remembering(gpus={uuid(index): pci(index) for index in range(8)})
    assert missing(memory, gpus(7), nvml=hung).severity("gpu.missing", NODE) is Severity.CRITICAL


def test_round_under_way() -> None:
    """GPUs not yet read in a slow round are not reported as missing from NVML."""
    begun = nvml(gpu(0), answered=False, count=2)
    assert missing(listed=gpus(2), nvml=begun).is_clean("gpu.missing", NODE)


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.none() | st.integers(0, 8))
def test_counts_agree_or_are_found(bus: int, nodes: int, counted: int, before: int, expected: int | None) -> None:
    """Whatever is counted: it is clean exactly where nobody shows fewer than another, the memory or the setting.

    A configured number counts alone, and once NVML reaches it, the bus does not matter.
    """
    memory = remembering(gpus={uuid(index): pci(index) for index in range(before)})
    result = missing(
        memory,
        gpus(counted),
        pci=tuple(device(index) for index in range(bus)),
        device_nodes=tuple(range(nodes)),
        expected_gpus=expected,
    )
    shown = [count for count in (bus, nodes) if count] + [counted]
    wanted = max(*shown, before) if expected is None else expected
    if expected is not None and counted >= expected:
        shown = [nodes or counted, counted]
    if wanted == 0 and expected is None:
        assert result.why_not("gpu.missing", NODE) is MissingReason.NOT_INSTALLED
    elif min(shown) >= wanted:
        assert result.is_clean("gpu.missing", NODE)
    else:
        assert result.severity("gpu.missing", NODE) is Severity.CRITICAL


STATE = ("temperature_celsius", "power_milliwatts", "memory_total_bytes", "ecc_enabled", "sm_clock_mhz")


@pytest.mark.parametrize("reason", [NOT_SUPPORTED, Missing(MissingReason.ERROR, "x")])
def test_a_gpu_without_any_reading_is_not_known_to_work(reason: Missing) -> None:
    """A GPU that answers every call with "not supported", or with errors, is not clean; with one value it is."""
    unread = gpu(0, **dict.fromkeys(STATE, reason))
    assert look(unread).why_not("gpu.lost") is MissingReason.ERROR
    assert look(gpu(0, **dict.fromkeys(STATE[1:], reason))).is_clean("gpu.lost")


def test_gpus_that_report_one_uuid_are_kept_apart() -> None:
    """Clean readings of one GPU do not hide the fault of another that reports the same uuid and address."""
    twins = (gpu(0, recovery_action=2), gpu(1, uuid=uuid(0)), gpu(2, uuid=uuid(0), pci=pci(1)))
    found = look(*twins)
    assert found.severity("gpu.recovery_action", pci(0)) is Severity.CRITICAL
    assert found.is_clean("gpu.recovery_action", "gpu1")
    assert found.is_clean("gpu.recovery_action", "gpu2")
    assert found.says_nothing("gpu.recovery_action", uuid(0))
