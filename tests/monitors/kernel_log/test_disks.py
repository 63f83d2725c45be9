"""Which block devices are the node's own: the mount table and /sys, and what lines about devices mean by them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.findings import tracker
from testing.readings import START

from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Finding, Severity
from gpuhealth.model.kernel_event import Disks, KernelLogStatus, KernelRecord
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.kernel_log.monitor import MONITOR
from gpuhealth.monitors.kernel_log.mounted_disks import MountedDisks
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings

POD = "/var/lib/kubelet/pods/0b6f3d0e-8a43-4c5e-9f0a-6a1f0b7d2c11/volumes/kubernetes.io~csi/pvc-1/mount"
STAGED = "/var/lib/kubelet/plugins/kubernetes.io/csi/driver.longhorn.io/aabb/globalmount"


class Host:
    """A /proc and a /sys with disks."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "1").mkdir(parents=True)
        (self.sys / "dev/block").mkdir(parents=True)
        (self.sys / "class/block").mkdir(parents=True)
        self._lines = ""

    def disk(self, name: str, number: str, below: str = "pci0000:00/ata1", slaves: tuple[str, ...] = ()) -> None:
        """A block device; `below` is where it is among the devices."""
        folder = self.sys / "devices" / below / "block" / name
        (folder / "slaves").mkdir(parents=True)
        for slave in slaves:
            (folder / "slaves" / slave).symlink_to(f"../../{slave}")
        (self.sys / "class/block" / name).symlink_to(folder)
        (self.sys / "dev/block" / number).symlink_to(f"../../devices/{below}/block/{name}")

    def mount(self, number: str, point: str, source: str = "/dev/root", kind: str = "ext4") -> None:
        """A line of /proc/1/mountinfo."""
        self._lines += f"29 1 {number} / {point} rw,relatime shared:1 - {kind} {source} rw\n"
        (self.proc / "1/mountinfo").write_text(self._lines)

    def read(self) -> Reading[Disks]:
        """What is made of it."""
        return MountedDisks(self.proc, self.sys).read()


def test_disks_of_the_node(tmp_path: Path) -> None:
    """The node's filesystems are found by their numbers, on partitions, LVM and RAID, with all devices below."""
    host = Host(tmp_path)
    host.disk("sda2", "8:2")
    host.disk("md0", "9:0", "virtual", slaves=("nvme0n1p1", "nvme1n1p1"))
    host.disk("dm-0", "253:0", "virtual", slaves=("md0",))
    host.mount("8:2", "/")
    host.mount("253:0", "/var/lib/containerd", "/dev/mapper/vg-containers")
    host.mount("0:22", "/proc", "proc", "proc")
    disks = host.read()
    assert disks == Disks(("dm-0", "md0", "nvme0n1", "nvme0n1p1", "nvme1n1", "nvme1n1p1", "sda", "sda2"))


@pytest.mark.parametrize(
    "point",
    [
        POD,
        STAGED,
        POD.replace("/var/lib/kubelet", "/var/lib/k0s/kubelet"),
        POD.replace("/var/lib/kubelet", "/var/snap/microk8s/common/var/lib/kubelet"),
        POD.replace("/var/lib/kubelet", "/data/k8s"),
        STAGED.replace("/var/lib/kubelet", "/mnt/kube"),
        "/var/lib/longhorn/disks/0",
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/aabb/rootfs",
    ],
)
def test_volumes_of_pods(tmp_path: Path, point: str) -> None:
    """A device that is mounted only where the kubelet or a storage system puts volumes is none of the node's."""
    host = Host(tmp_path)
    host.disk("sda1", "8:1")
    host.disk("sdb", "8:16")
    host.mount("8:1", "/")
    host.mount("8:16", point)
    assert host.read() == Disks(("sda", "sda1"), ("sdb",))


def test_a_disk_of_the_node_in_a_pod(tmp_path: Path) -> None:
    """A folder of the node's disk that is mounted into a pod makes the disk no volume."""
    host = Host(tmp_path)
    host.disk("sda1", "8:1")
    host.mount("8:1", POD.replace("csi", "empty-dir"))
    host.mount("8:1", "/")
    assert host.read() == Disks(("sda", "sda1"))


def test_network_block_devices(tmp_path: Path) -> None:
    """Ceph, NBD, iSCSI and NVMe over a network are volumes wherever they are mounted, except at the root."""
    host = Host(tmp_path)
    host.disk("rbd0", "252:0", "virtual")
    host.disk("sdc", "8:32", "platform/host7/session1/target7:0:0")
    host.disk("nvme2n1", "259:2", "virtual/nvme-fabrics")
    (host.sys / "devices/virtual/nvme-fabrics/block/nvme2n1/device").mkdir()
    (host.sys / "devices/virtual/nvme-fabrics/block/nvme2n1/device/transport").write_text("tcp\n")
    for number, point in (("252:0", "/mnt/a"), ("8:32", "/mnt/b"), ("259:2", "/mnt/c")):
        host.mount(number, point)
    assert host.read() == Disks((), ("nvme2n1", "rbd0", "sdc"))
    host.mount("8:32", "/")
    assert host.read() == Disks(("sdc",), ("nvme2n1", "rbd0"))


def test_without_sys(tmp_path: Path) -> None:
    """The names in the table count where /sys has no numbers: btrfs, older kernels, /proc/1/mounts alone."""
    host = Host(tmp_path)
    host.mount("0:31", "/", "/dev/sda3", "btrfs")
    host.mount("259:1", "/data", "/dev/nvme0n1p2")
    assert host.read() == Disks(("nvme0n1", "nvme0n1p2", "sda", "sda3"))
    (host.proc / "1/mountinfo").unlink()
    (host.proc / "1/mounts").write_text(
        f"/dev/sda3 / btrfs rw 0 0\n/dev/sdb {POD} ext4 rw 0 0\nproc /proc proc rw 0 0\n"
    )
    assert host.read() == Disks(("sda", "sda3"), ("sdb",))


def test_a_mapped_device_by_its_name(tmp_path: Path) -> None:
    """A device that the table calls /dev/mapper/NAME has the kernel's name dm-N."""
    host = Host(tmp_path)
    host.disk("dm-3", "253:3", "virtual", slaves=("sdd1",))
    (host.sys / "devices/virtual/block/dm-3/dm").mkdir()
    (host.sys / "devices/virtual/block/dm-3/dm/name").write_text("vg-data\n")
    host.mount("0:40", "/data", "/dev/mapper/vg-data", "btrfs")
    assert host.read() == Disks(("dm-3", "sdd", "sdd1"))


def test_no_table(tmp_path: Path) -> None:
    """Without a mount table nothing is known."""
    assert Host(tmp_path).read() == Missing(MissingReason.NOT_INSTALLED, f"{tmp_path}/proc/1/mounts does not exist")


@given(st.binary(max_size=300))
def test_any_table(tmp_path_factory: pytest.TempPathFactory, table: bytes) -> None:
    """Whatever the table holds, reading it raises nothing."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "1").mkdir()
    (folder / "1/mountinfo").write_bytes(b"29 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + table)
    disks = MountedDisks(folder, folder).read()
    assert isinstance(disks, Disks)
    assert {"sda", "sda1"} <= set(disks.of_node)


# -- what lines mean by them -------------------------------------------------------------------------------------------

KNOWN = Disks(("dm-0", "nvme0n1", "nvme0n1p1", "sda", "sda1"), ("sdb", "nvme5n1"))


def found(line: str, disks: Reading[Disks] = KNOWN) -> Finding:
    """The only finding of a line on a node with these disks."""
    event = kernel_log_parser().feed(KernelRecord(line, START))
    assert event is not None
    judge = Judge(Settings(), boot_id="boot-1", time=START)
    judge.set_readings(MONITOR, KernelLogStatus("kmsg", disks=disks), START)
    (finding,) = (each for each in judge.judge_events([event], START) if isinstance(each, Finding))
    return finding


@pytest.mark.parametrize(
    "line",
    [
        "EXT4-fs (sda1): Remounting filesystem read-only",
        "XFS (dm-0): Filesystem has been shut down due to log error (0x2).",
        "BTRFS info (device nvme0n1p1: state E): forced readonly",
        "Aborting journal on device sda1-8.",
        "XFS (sda): Filesystem has been shut down due to log error (0x2).",
    ],
)
def test_a_filesystem_of_the_node(line: str) -> None:
    """A filesystem of the node that is read-only takes the node out of service."""
    finding = found(line)
    assert (finding.code, finding.severity, finding.component) == ("host.disk_readonly", Severity.CRITICAL, NODE)
    assert "of the node" in finding.message


@pytest.mark.parametrize(
    ("line", "disks", "reason"),
    [
        ("EXT4-fs (sdb): Remounting filesystem read-only", KNOWN, "mounted as a volume of pods"),
        ("EXT4-fs (sdz): Remounting filesystem read-only", KNOWN, "no filesystem of the node"),
        ("EXT4-fs (sda1): Remounting filesystem read-only", Missing(MissingReason.NO_PERMISSION), "not known"),
        ("XFS (rbd0): Filesystem has been shut down due to log error (0x2).", KNOWN, "network block device"),
        ("Aborting journal on device sdb-8.", KNOWN, "mounted as a volume of pods"),
        ("I/O error, dev sdb, sector 0 op 0x0:(READ)", KNOWN, "mounted as a volume of pods"),
        ("nvme nvme5: I/O 12 QID 3 timeout, aborting", KNOWN, "mounted as a volume of pods"),
    ],
)
def test_a_volume(line: str, disks: Reading[Disks], reason: str) -> None:
    """A volume of a pod, and a device that is not known to be the node's, is a warning that ends by itself."""
    finding = found(line, disks)
    assert (finding.code, finding.severity) == ("host.volume_errors", Severity.WARNING)
    assert reason in finding.message
    tracked = tracker()
    tracked.apply([finding], START, "boot-1")
    assert tracked.quarantine().findings == ()
    tracked.apply([], START + timedelta(seconds=601), "boot-1")
    assert tracked.active() == ()


@pytest.mark.parametrize(
    ("disk", "severity"),
    [("sda1", "critical"), ("dm-0", "critical"), ("nvme0n1p2", "critical"), ("sdb", "warning"), ("nvme1n1", "warning")],
)
def test_a_line_alone(disk: str, severity: str) -> None:
    """Without a node, a whole disk, often a volume of pods, gives a warning, and a partition a critical event."""
    event = kernel_log_parser().feed(KernelRecord(f"EXT4-fs ({disk}): Remounting filesystem read-only", START))
    assert event is not None
    assert (event.finding, event.severity) == ("host.disk_readonly", severity)


@pytest.mark.parametrize("line", ["I/O error, dev sda, sector 0", "nvme nvme0: I/O 12 QID 3 timeout, aborting",
                                  "I/O error, dev sdz, sector 0"])  # fmt: skip
def test_errors_of_a_disk(line: str) -> None:
    """Errors of the node's disks, and of local disks that are not mounted, stay errors of a disk."""
    assert found(line).code == "host.io_errors"


def test_without_a_node() -> None:
    """Where no node was read, as in an older capture, the line alone counts."""
    status = KernelLogStatus("kmsg")
    assert found("EXT4-fs (sda1): Remounting filesystem read-only", status.disks).code == "host.disk_readonly"
