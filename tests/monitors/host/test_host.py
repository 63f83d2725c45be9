"""Disks of the host: which mounts are looked at, how full they may be, and what cannot be read."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.simnode import QUICK, SimulatedNode
from testing.waiting import wait_for

from gpuhealth.model.component import NODE, Component, Kind
from gpuhealth.model.finding import Clean, Finding, NotChecked
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.host.monitor import MONITOR
from gpuhealth.monitors.host.probe import mounts, read_disks
from gpuhealth.monitors.host.readings import HostReadings, Space
from gpuhealth.monitors.judge import Judge
from gpuhealth.monitors.settings import Settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROOT = Component(Kind.MOUNT, "/")
EMPTY = Space(1000 << 30, 900 << 30, 1000, 900)

# Mount tables of a GPU node of a cloud, a workstation with ZFS and snaps, and a node with a bind mount and a blank.
CLOUD = b"""\
/dev/root / ext4 rw,relatime,discard 0 0
devtmpfs /dev devtmpfs rw,nosuid,noexec,relatime,size=1056k 0 0
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
tmpfs /run tmpfs rw,nosuid,nodev,size=213968k,mode=755,inode64 0 0
/dev/nvme0n1p15 /boot/efi vfat rw,relatime,fmask=0077,dmask=0077 0 0
/dev/md127 /var/lib/kubelet xfs rw,noatime,attr2,inode64,logbufs=8,prjquota 0 0
/dev/md127 /var/lib/kubelet/pods/0f/volumes/a xfs rw,noatime,attr2,inode64 0 0
/dev/nvme2n1 /var/lib/kubelet/plugins/kubernetes.io/csi/ebs.csi.aws.com/5e/globalmount ext4 rw,relatime 0 0
/dev/nvme2n1 /var/lib/kubelet/pods/0f/volumes/kubernetes.io~csi/pvc-1/mount ext4 rw,relatime 0 0
fs-1.fsx.amazonaws.com@tcp:/x /shared lustre rw,flock,lazystatfs 0 0
10.0.0.4:/export /home nfs4 rw,vers=4.1,hard,proto=tcp 0 0
overlay /run/containerd/x/rootfs overlay rw,relatime,lowerdir=/a:/b 0 0
"""
DESKTOP = b"""\
rpool/ROOT/ubuntu / zfs rw,relatime,xattr,posixacl 0 0
rpool/docker/1f /var/lib/docker/zfs/graph/1f zfs rw,relatime,xattr 0 0
/dev/loop3 /snap/core20/1974 squashfs ro,nodev,relatime 0 0
/dev/loop9 /mnt/image ext4 rw,relatime 0 0
/dev/sr0 /media/cdrom iso9660 ro,nosuid,nodev 0 0
/dev/sdb1 /mnt/old ext4 ro,relatime 0 0
"""
ODD = (
    b"/dev/sda1 /data/with\\040blank ext4 rw 0 0\n/dev/sda1\n\n"
    b"/dev/sdc /\xff\xfe btrfs rw,compress 0 0\n/dev/sdd /\x1b[2J\xc2\x85 xfs rw 0 0\n"
)


def table(tmp_path: Path, text: bytes) -> Path:
    """A /proc with this mount table."""
    (tmp_path / "proc" / "1").mkdir(parents=True)
    (tmp_path / "proc" / "1" / "mounts").write_bytes(text)
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("text", "points"),
    [
        (CLOUD, ["/", "/boot/efi", "/var/lib/kubelet"]),
        (DESKTOP, ["/"]),
        (ODD, ["/\\x1b[2J\\x85", "/data/with blank", "/\\xdcff\\xdcfe"]),
        (b"", []),
    ],
)
def test_local_disks_that_are_written_are_read(tmp_path: Path, text: bytes, points: list[str]) -> None:
    """Each local disk is read once, at its shortest mount point; network, pseudo and read-only mounts are not."""
    readings = read_disks(table(tmp_path, text), tmp_path)
    assert isinstance(readings, HostReadings)
    assert list(readings.disks) == points


def test_space_is_that_of_the_mount_below_the_root(tmp_path: Path) -> None:
    """The space is what statvfs(3) returns for the mount point below the folder where the host's root is mounted."""
    (tmp_path / "var/lib/kubelet").mkdir(parents=True)
    readings = read_disks(table(tmp_path, CLOUD), tmp_path)
    assert isinstance(readings, HostReadings)
    status = os.statvfs(tmp_path / "var/lib/kubelet")
    space = readings.disks["/var/lib/kubelet"]
    assert isinstance(space, Space)
    assert space.total_bytes == status.f_blocks * status.f_frsize
    assert space.total_inodes == status.f_files
    missing = readings.disks["/boot/efi"]
    assert isinstance(missing, Missing)
    assert missing.reason is MissingReason.NOT_INSTALLED


def test_without_a_mount_table_nothing_is_read(tmp_path: Path) -> None:
    """A mount table that cannot be read is a reason, and no empty list of disks."""
    assert read_disks(tmp_path, tmp_path) == Missing(MissingReason.NOT_INSTALLED, f"{tmp_path}/1/mounts does not exist")


@given(st.binary())
def test_any_mount_table_can_be_read(text: bytes) -> None:
    """Whatever bytes are in a mount table, reading it raises nothing."""
    assert all(len(mount) == 4 for mount in mounts(text))


@given(st.binary())
def test_any_name_of_a_mount_can_be_shown(tmp_path_factory: pytest.TempPathFactory, name: bytes) -> None:
    """Whatever bytes are in the name of a mount, its readings are printable and can be sent as JSON."""
    line = b"/dev/sda1 /" + name.replace(b" ", b"").replace(b"\n", b"") + b" ext4 rw 0 0\n"
    folder = tmp_path_factory.getbasetemp() / "mount-names"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1/mounts").write_bytes(line)
    readings = read_disks(folder, folder)
    assert isinstance(readings, HostReadings)
    assert all(point.isprintable() for point in readings.disks)
    assert msgspec.json.decode(msgspec.json.encode(readings), type=HostReadings) == readings


def judged(disks: dict[str, Any] | Missing, **settings: Any) -> dict[tuple[str, Component], Any]:
    """The outcomes of a round with these disks, by code and component."""
    readings = disks if isinstance(disks, Missing) else HostReadings(disks)
    judge = Judge(Settings.model_validate({"host": settings}), time=NOW)
    outcomes = judge.round(MONITOR, readings, NOW)
    return {(outcome.code, outcome.component): outcome for outcome in outcomes}


def test_a_full_disk_fires_and_clears() -> None:
    """A disk with less space than the kubelet's limit is a warning on its mount, which names limit and reading."""
    full = msgspec.structs.replace(EMPTY, free_bytes=99 << 30)
    found = judged({"/": full})["host.disk_full", ROOT]
    assert isinstance(found, Finding)
    assert found.message == "/: 9.9 % free (99.0 of 1000.0 GiB)"
    assert found.evidence.threshold == "10 %"
    edge = msgspec.structs.replace(EMPTY, free_bytes=100 << 30)
    assert judged({"/": edge})["host.disk_full", ROOT] == Clean("host.disk_full", ROOT)
    assert isinstance(judged({"/": full}, disk_free_percent=5)["host.disk_full", ROOT], Clean)


def test_few_inodes_fire_and_clear() -> None:
    """A disk with few free inodes is a warning; one whose filesystem has no fixed number of them is clean."""
    few = msgspec.structs.replace(EMPTY, free_inodes=49)
    assert isinstance(judged({"/": few})["host.inodes", ROOT], Finding)
    assert isinstance(judged({"/": EMPTY})["host.inodes", ROOT], Clean)
    unlimited = msgspec.structs.replace(EMPTY, total_inodes=0, free_inodes=0)
    assert isinstance(judged({"/": unlimited})["host.inodes", ROOT], Clean)


def test_an_empty_filesystem_is_clean() -> None:
    """A filesystem of no size, as some drivers report, is not full."""
    assert isinstance(judged({"/": Space(0, 0, 0, 0)})["host.disk_full", ROOT], Clean)


def test_what_cannot_be_read_is_not_checked() -> None:
    """A mount that cannot be read is not checked, the others are; without any reading the node is not checked."""
    denied = Missing(MissingReason.NO_PERMISSION, "no")
    outcomes = judged({"/": EMPTY, "/data": denied})
    data = Component(Kind.MOUNT, "/data")
    assert outcomes["host.disk_full", data] == NotChecked("host.disk_full", data, denied)
    assert isinstance(outcomes["host.disk_full", ROOT], Clean)
    late = Missing(MissingReason.TIMEOUT, "late")
    assert judged(late)["host.inodes", NODE] == NotChecked("host.inodes", NODE, late)


def test_an_agent_finds_a_full_disk(tmp_path: Path) -> None:
    """A full disk degrades the node and leaves it in service; the finding clears when the disk is unmounted."""
    root = tmp_path / "host"
    (root / "data").mkdir(parents=True)
    host = {"root": str(root), "disk_free_percent": 100}  # any disk is fuller than that
    node = SimulatedNode(tmp_path / "node", settings=QUICK | {"host": host})
    mounts = Path(node.settings["roots"]["proc"]) / "1/mounts"
    mounts.write_text("/dev/sda1 /data ext4 rw 0 0\n")
    with node:
        wait_for("the finding", lambda: "host.disk_full" in node.findings())
        degraded = '{component="/data",kind="mount",parent="",verdict="degraded"}'
        assert node.metric(f"gpuhealth_component_verdict{degraded}") == 1
        assert node.metric('gpuhealth_verdict{verdict="degraded"}') == 1
        assert (node.metric('gpuhealth_host_disk_free_ratio{mount="/data"}') or 0.0) < 1
        done = node.command("check", "--json")
        assert [each["component"] for each in json.loads(done.stdout)["findings"]] == [{"kind": "mount", "id": "/data"}]
        mounts.write_text("")
        wait_for("the end of the finding", lambda: "host.disk_full" not in node.findings())
        assert node.metric('gpuhealth_verdict{verdict="healthy"}') == 1
