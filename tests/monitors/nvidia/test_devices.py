"""Device nodes and processes, on trees of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from testing.readings import device, gpus, nvml

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia import devices
from gpuhealth.monitors.nvidia.devices import ProcessProbe, SwitchManagement, device_nodes, live_pids
from gpuhealth.monitors.nvidia.joined_gpus import JoinedGpus
from gpuhealth.monitors.nvidia.probe import driver_branch


def test_device_nodes_are_the_numbered_ones(tmp_path: Path) -> None:
    """Only /dev/nvidiaN counts, by number and not by name."""
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-caps", "nvidia2x", "null"):
        (tmp_path / name).touch()
    assert device_nodes(tmp_path) == (2, 10)
    assert isinstance(device_nodes(tmp_path / "none"), Missing)


def test_live_pids_are_those_that_exist(tmp_path: Path) -> None:
    """Of the processes asked for, those that /proc shows."""
    for pid in (7, 4711):
        (tmp_path / str(pid)).mkdir()
    assert live_pids(tmp_path, [4711, 7, 8, 7]) == (7, 4711)
    assert live_pids(Path("/proc"), [os.getpid()]) == (os.getpid(),)
    assert isinstance(live_pids(tmp_path / "none", [7]), Missing)


def test_a_pid_namespace_of_our_own_tells_nothing(tmp_path: Path) -> None:
    """Where the node's first process lives in another pid namespace, that no process shows means nothing."""
    (tmp_path / "1" / "ns").mkdir(parents=True)
    (tmp_path / "1" / "ns" / "pid").symlink_to("pid:[1]")
    found = live_pids(tmp_path, [])
    assert isinstance(found, Missing)
    assert found.reason is MissingReason.NO_PERMISSION


def test_the_fabric_manager_is_found_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nv-fabricmanager is found by its name, missed when it ends, and found again under another pid."""
    monkeypatch.setattr(devices, "_RESCAN_SECONDS", 0.0)
    probe = ProcessProbe(tmp_path, "nv-fabricmanager")
    assert probe.read() is False
    _process(tmp_path, 100, "nv-fabricmanage")
    _process(tmp_path, 101, "bash")
    assert probe.read() is True
    (tmp_path / "100" / "comm").unlink()
    assert probe.read() is False
    _process(tmp_path, 200, "nv-fabricmanage")
    assert probe.read() is True
    assert isinstance(ProcessProbe(tmp_path / "none", "nvlsm").read(), Missing)


def _process(proc: Path, pid: int, name: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "comm").write_text(f"{name}\n")


# --- NVLink switches behind InfiniBand --------------------------------------------------------------------------------


def test_management_of_nvlink_switches(tmp_path: Path) -> None:
    """An InfiniBand device whose vital product data has SW_MNG leads to NVLink switches; adapters do not."""
    management = SwitchManagement(tmp_path)
    assert management.read() == ()
    for name, content in (
        ("mlx5_0", b"\x82\x00MCX75310AAS\x90"),
        ("mlx5_8", b"\x82\x00\xff-SMDL=SW_MNG\x78"),
        ("hfi1_0", None),
    ):
        device = tmp_path / "class/infiniband" / name / "device"
        device.mkdir(parents=True)
        if content is not None:
            (device / "vpd").write_bytes(content)
    assert management.read() == ("mlx5_8",)
    (tmp_path / "class/infiniband/mlx5_8/device/vpd").write_bytes(b"")  # it is read once
    assert management.read() == ("mlx5_8",)


def test_unreadable_vital_product_data(tmp_path: Path) -> None:
    """Where it cannot be read, nothing is known; one that can be read and leads to switches is enough."""
    management = SwitchManagement(tmp_path)
    (tmp_path / "class/infiniband/mlx5_0/device/vpd").mkdir(parents=True)  # opening it fails
    assert isinstance(management.read(), Missing)
    (tmp_path / "class/infiniband/mlx5_1/device").mkdir(parents=True)
    (tmp_path / "class/infiniband/mlx5_1/device/vpd").write_bytes(b"SMDL=SW_MNG")
    assert management.read() == ("mlx5_1",)


# --- GPUs that join ---------------------------------------------------------------------------------------------------


def test_nvml_is_started_again_for_gpus_that_join() -> None:
    """NVML lists a GPU that joins the bus only after a new start: one start for each interval, until it is listed."""
    joined = JoinedGpus()
    four, five = tuple(device(index) for index in range(4)), tuple(device(index) for index in range(5))
    assert not joined.seen(nvml(*gpus(4)), four, 3600.0)
    assert joined.seen(nvml(*gpus(4)), five, 3600.0)
    assert not joined.seen(nvml(*gpus(4)), five, 3600.0)
    assert joined.seen(nvml(*gpus(4)), five, 0.0)
    assert not joined.seen(nvml(*gpus(5)), five, 0.0)


def test_nvml_is_started_again_for_gpus_that_leave() -> None:
    """A GPU that NVML lists, and that another driver holds now, is a reason for a new start."""
    joined = JoinedGpus()
    bus = (*map(device, range(3)), device(3, driver="vfio-pci"))
    assert joined.seen(nvml(*gpus(4)), bus, 3600.0)
    assert not joined.seen(nvml(*gpus(3)), bus, 0.0)


def test_nvml_is_not_started_again_for_others() -> None:
    """A GPU that was there from the beginning, or that is another driver's, is no reason for a new start of NVML."""
    joined = JoinedGpus()
    assert not joined.seen(nvml(*gpus(4)), tuple(device(index) for index in range(5)), 0.0)
    assert not joined.seen(nvml(*gpus(4)), (*map(device, range(5)), device(5, driver="vfio-pci")), 0.0)
    assert joined.seen(nvml(*gpus(4)), tuple(map(device, range(6))), 0.0)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A program whose name is no UTF-8, which any user may start, does not end the search for the fabric manager."""
    for pid in (1, 2):
        _process(tmp_path, pid, "x")
    (tmp_path / "1" / "comm").write_bytes(b"\xb7\xff\n")
    assert ProcessProbe(tmp_path, "nv-fabricmanager").read() is False
    _process(tmp_path, 3, "nv-fabricmanage")
    assert ProcessProbe(tmp_path, "nv-fabricmanager").read() is True


def test_device_nodes_with_absurd_numbers(tmp_path: Path) -> None:
    """A number that no driver gives is that of no GPU."""
    for name in ("nvidia0", "nvidia" + "9" * 200, "nvidia\u0661"):
        (tmp_path / name).touch()
    assert device_nodes(tmp_path) == (0,)


def test_the_branch_of_a_driver_version() -> None:
    """The branch is a short number; any other text has none."""
    assert driver_branch("570.86.15") == 570
    assert [driver_branch(text) for text in ("", "x.1", "9" * 5000, "²")] == [None] * 4


def test_device_nodes_of_a_container_are_not_counted() -> None:
    """A /dev that a container runtime has made is a tmpfs, with copies from its start: it shows nothing of the node."""
    mounts = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {fields[4]: fields[fields.index("-") + 1] for fields in mounts}
    own = next((Path(point) for point, kind in kinds.items() if kind == "tmpfs" and Path(point).is_dir()), None)
    if own is None:
        pytest.skip("no tmpfs is mounted here")
    nodes = device_nodes(own)
    assert isinstance(nodes, Missing)
    assert nodes.reason is MissingReason.NOT_SUPPORTED
