"""Faults of a simulated node, by the finding code that each raises, and how each ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from nvmlsim.simulator import Simulator

from gpuhealth.model.burnin_run import TestStatus
from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.finding import Severity
from gpuhealth.monitors.nvidia.settings import Nvml
from gpuhealth.runtime.single_instance import InstanceLock
from testing.burnin_results import PASSED, result, run

Change = Callable[[Simulator], None]

ROUND = 10.0  # seconds of the test's clock between two rounds
GPUS = 4
RESTARTING = Nvml(reinit_interval=0.0)  # NVML is started again in every round in which something is lost
FABRIC_MANAGER = 77  # its pid
GONE = 999_999  # a pid that no process has
GRADE = {Severity.INFO: "info", Severity.WARNING: "warning", Severity.CRITICAL: "critical"}


DATA = Component(Kind.MOUNT, "/data")


def _mount_data(on: Path) -> Change:
    """/data becomes a local disk of the node, with the space of the filesystem of a path."""

    def change(node: Simulator) -> None:
        (node.root / "data").unlink(missing_ok=True)
        (node.root / "data").symlink_to(on)
        (node.root / "proc/1/mounts").write_text("/dev/sda1 /data ext4 rw,relatime 0 0\n")

    return change


_full, _empty = _mount_data(Path(__file__)), _mount_data(Path("/proc"))  # which has no size, so that it is never full


def _any_disk_is_full(node: Simulator) -> dict[str, Any]:
    """Settings with which a disk is full if it has a size."""
    return {"host": {"root": node.root, "disk_free_percent": 100, "inodes_free_percent": 100}}


def _second_agent(node: Simulator) -> None:
    """An agent that does not get the lock of the journal's folder."""
    first = InstanceLock(node.root)
    assert first.take("first", 0.0)
    assert not InstanceLock(node.root).take("second", 0.0)
    first.release()


def _long_ago(node: Simulator) -> None:
    """That was an hour ago."""
    os.utime(node.root / "instance.refused", times=(0, 0))


class Case(NamedTuple):
    """How a code is made to fire, and to clear."""

    code: str
    severity: Severity
    inject: Change
    clear: Change
    model: str = "h100-sxm"
    before: Change = lambda _: None  # what is so all the time
    every_round: Change = lambda _: None  # what goes on while the fault is there
    at_start: bool = False  # the fault is there before the probe starts, as one of nvmlInit must be
    component: Component | None = None  # that has the finding; None is the first GPU
    nvml: Nvml = RESTARTING
    more: Callable[[Simulator], dict[str, Any]] = lambda _: {}  # settings of other monitors

    @property
    def name(self) -> str:
        """The name of its test."""
        return f"{self.code}-{GRADE[self.severity]}"


def fault(name: str, **arguments: Any) -> tuple[Change, Change]:
    """A fault of the first GPU, and its end."""
    return lambda node: node.inject(name, gpu=0, **arguments), lambda node: node.clear(name, gpu=0)


def lie(function: str, **answer: Any) -> tuple[Change, Change]:
    """A function that answers something else for the first GPU, and its end."""
    return lambda node: node.lie(function, gpu=0, **answer), lambda node: node.truth(function)


def of_calls(name: str, **arguments: Any) -> tuple[Change, Change]:
    """A fault of calls about no GPU in particular, and its end."""
    return lambda node: node.inject(name, **arguments), lambda node: node.clear(name)


def all_busy(node: Simulator) -> None:
    """Every GPU is at work."""
    node.inject("busy")


def throttled(reason: str) -> Change:
    """A counter of the first GPU's throttled time runs by the test's clock."""
    return lambda node: node.add({f"gpu0.throttle_ns.{reason}": int(ROUND * 1e9)})


def port_errors(kind: str) -> tuple[Change, Change]:
    """The port above the first GPU counts errors; the fault ends when it counts no more."""
    return lambda node: node.add({f"gpu0.port.{kind}": 100}), lambda _: None


def _stop_fabric_manager(node: Simulator) -> None:
    shutil.rmtree(node.root / "proc" / str(FABRIC_MANAGER))


def _start_fabric_manager(node: Simulator) -> None:
    process = node.root / "proc" / str(FABRIC_MANAGER)
    process.mkdir(parents=True)
    (process / "comm").write_text("nv-fabricmanage\n")


def _upgraded(node: Simulator) -> None:
    """Another module is loaded under a library that stays, and NVML is asked to start again."""
    node.set({"node.driver_version": "570.86.15"})
    node.inject("driver_mismatch")
    node.inject("error", call="nvmlDeviceGetCount", code=1)


def _downgraded(node: Simulator) -> None:
    """The module is the one that the library is for."""
    node.clear("driver_mismatch")
    node.clear("error")
    node.set({"node.driver_version": VERSION})


def burnin(test: str, status: TestStatus) -> Change:
    """A burn-in of all GPUs leaves a result, of which the first GPU's is this."""

    def leave(node: Simulator) -> None:
        folder = node.root / "burnin"
        folder.mkdir(exist_ok=True)
        number = len(list(folder.iterdir()))
        uuids = [node.text(f"gpu{index}.uuid") for index in range(GPUS)]
        results = [result(test, uuid, PASSED if index else status) for index, uuid in enumerate(uuids)]
        (folder / f"{number}.json").write_bytes(msgspec.json.encode(run(*results, at=3600.0 * number)))

    return leave


def failing(test: str) -> Case:
    """A test that passed, fails on the first GPU, is stopped once, and passes again."""
    code = f"burnin.{test}"
    stops, passes = burnin(test, TestStatus.STOPPED), burnin(test, PASSED)

    def clear(node: Simulator) -> None:
        passes(node)
        stops(node)

    return Case(code, Severity.CRITICAL, burnin(test, TestStatus.FAILED), clear, before=passes, every_round=stops)


VERSION = "550.90.07"
INFO, WARNING, CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL
HANG = fault("hang", call="nvmlDeviceGetPowerUsage")[0], Simulator.release
HUNG = Nvml(warn_after=0.3, critical_after=0.6)

CASES = [
    Case("gpu.lost", CRITICAL, *fault("lost")),
    Case("gpu.reset_required", CRITICAL, *fault("reset_required")),
    Case("gpu.missing", CRITICAL, *fault("drop"), component=NODE),
    Case("gpu.missing", CRITICAL, *fault("drop", bus=1, node=1), component=NODE),
    Case("gpu.unmanaged", INFO, *fault("passthrough"), component=NODE),
    Case("gpu.recovery_action", CRITICAL, *fault("recovery_action", value=2)),
    Case("gpu.recovery_action", WARNING, *fault("recovery_action", value=3)),
    Case("gpu.straggler", WARNING, *fault("straggler"), before=all_busy),
    Case("gpu.leaked_memory", WARNING, *fault("leaked_memory")),
    Case("gpu.zombie_process", WARNING, *fault("process", pid=GONE)),
    Case("driver.unresponsive", WARNING, *HANG, component=NODE, at_start=True, nvml=Nvml(warn_after=0.3)),
    Case("driver.unresponsive", CRITICAL, *HANG, component=NODE, at_start=True, nvml=HUNG),
    Case("driver.not_loaded", CRITICAL, *of_calls("init_failure"), component=NODE, at_start=True),
    Case("driver.version_mismatch", CRITICAL, *of_calls("driver_mismatch"), component=NODE, at_start=True),
    Case("nvml.error", CRITICAL, *of_calls("init_failure", code=999), component=NODE, at_start=True),
    Case("nvml.error", WARNING, *fault("error", code=999)),
    Case("nvml.error", CRITICAL, *fault("error", code=999)),
    Case("agent.nvml_library", WARNING, _upgraded, _downgraded, component=NODE),
    Case("agent.permission", WARNING, *of_calls("init_failure", code=4), component=NODE, at_start=True),
    Case("agent.monitor_failed", WARNING, *of_calls("crash", call="nvmlDeviceGetPowerUsage"), component=NODE),
    Case("agent.unexpected_reading", WARNING, *of_calls("init_failure", code=26), component=NODE, at_start=True),
    Case("agent.unexpected_reading", WARNING, *fault("error", call="nvmlDeviceGetPowerUsage", code=999)),
    Case("agent.unexpected_reading", WARNING, *fault("error", call="nvmlDeviceGetApplicationsClock", code=26)),
    Case("agent.unexpected_reading", WARNING, *lie("nvmlDeviceGetFieldValues", field=82, value=0.5)),
    Case("ecc.uncorrectable", CRITICAL, *fault("ecc_uncorrectable")),
    Case("ecc.uncorrectable", CRITICAL, *fault("ecc_uncorrectable", location="sram")),
    Case("ecc.corrected_rate", WARNING, *fault("ecc_corrected", count=20_000)),
    Case("ecc.sram_threshold", CRITICAL, *fault("sram_threshold")),
    Case("ecc.disabled", WARNING, *fault("ecc_disabled")),
    Case("gpu_memory.remap_pending", WARNING, *fault("remap_pending")),
    Case("gpu_memory.remap_failed", CRITICAL, *fault("remap_failed")),
    Case("gpu_memory.remap_reserve", WARNING, *fault("remap_reserve")),
    Case("gpu_memory.retired_pages", WARNING, *fault("retired_pages", sbe=60, dbe=0), model="v100-sxm2-32gb"),
    Case("gpu_memory.retired_pages", CRITICAL, *fault("retired_pages", sbe=0, dbe=20), model="v100-sxm2-32gb"),
    Case("gpu_memory.retirement_pending", WARNING, *fault("retirement_pending"), model="v100-sxm2-32gb"),
    Case("gpu_memory.repair_pending", WARNING, *fault("repair_pending"), model="b200"),
    Case("gpu_memory.unrepairable", CRITICAL, *fault("unrepairable"), model="b200"),
    Case("inforom.corrupted", CRITICAL, *fault("corrupted_inforom")),
    Case("thermal.gpu", WARNING, *fault("overheat", margin=5)),
    Case("thermal.gpu", CRITICAL, *fault("overheat")),
    Case("thermal.gpu", CRITICAL, *fault("overheat", margin=-10), model="v100-sxm2-32gb"),
    Case("thermal.memory", CRITICAL, *fault("memory_overheat")),
    Case("clocks.hw_slowdown", WARNING, *fault("hw_slowdown")),
    Case("clocks.thermal", WARNING, *fault("hw_thermal"), every_round=throttled("hw_thermal")),
    Case("clocks.thermal", WARNING, *fault("sw_thermal"), every_round=throttled("sw_thermal")),
    Case("clocks.thermal", WARNING, *fault("hw_thermal"), model="v100-sxm2-32gb"),
    Case("power.brake", CRITICAL, *fault("power_brake"), every_round=throttled("power_brake")),
    Case("pcie.width", WARNING, *fault("pcie_width")),
    Case("pcie.generation", WARNING, *fault("pcie_generation"), before=all_busy),
    Case("pcie.replay_rate", WARNING, *fault("pcie_replays")),
    Case("pcie.aer_correctable_rate", WARNING, *fault("aer", count=100)),
    Case("pcie.aer_uncorrectable", CRITICAL, *fault("aer", severity="fatal")),
    Case("pcie.aer_uncorrectable", CRITICAL, *fault("aer", severity="nonfatal")),
    Case("pcie.aer_correctable_rate", WARNING, *port_errors("correctable")),
    Case("pcie.aer_uncorrectable", WARNING, *port_errors("nonfatal")),
    Case("pcie.aer_uncorrectable", WARNING, *port_errors("fatal")),
    Case("nvlink.down", CRITICAL, *fault("nvlink_down", link=3)),
    Case("nvlink.down", CRITICAL, lambda node: node.inject("nvlink_down"), lambda node: node.clear("nvlink_down")),
    Case("nvlink.errors", WARNING, *fault("nvlink_errors", link=3)),
    Case("nvlink.errors", WARNING, *fault("nvlink_errors", link=3), model="b200"),
    Case("nvlink.ber", WARNING, *fault("nvlink_ber", link=3), model="b200"),
    Case("fabric.incomplete", CRITICAL, *fault("fabric_incomplete")),
    Case("fabric.unhealthy", CRITICAL, *fault("fabric_unhealthy")),
    Case("fabric.manager_down", CRITICAL, _stop_fabric_manager, _start_fabric_manager, component=NODE),
    Case("fabric.manager_down", CRITICAL, _stop_fabric_manager, _start_fabric_manager, component=NODE, model="b200"),
    Case("fabric.manager_down", CRITICAL, _stop_fabric_manager, _start_fabric_manager, component=NODE, model="b300"),
    Case("host.disk_full", WARNING, _full, _empty, before=_empty, component=DATA, more=_any_disk_is_full),
    Case("host.inodes", WARNING, _full, _empty, before=_empty, component=DATA, more=_any_disk_is_full),
    Case(
        "agent.second_agent",
        WARNING,
        _second_agent,
        _long_ago,
        component=NODE,
        more=lambda node: {"journal": {"path": node.root / "journal.sqlite"}},
    ),
    Case("persistence.off", WARNING, *fault("persistence_off")),
    *map(failing, ("exact", "repeat", "memory", "bandwidth", "p2p", "collectives", "soak")),
]
