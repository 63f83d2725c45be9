"""The block devices with mounted filesystems: those of the node itself, and those of volumes of pods.

From the mount table of the node's first process, /proc/1/mountinfo, and from /sys. Lines of the kernel log name
devices, not filesystems, and a disk of the node and a volume of a pod may have the same kind of name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gpuhealth.model.kernel_event import Disks
from gpuhealth.model.missing import Reading
from gpuhealth.monitors.kernel_log.disk_lines import NETWORK
from gpuhealth.runtime.files import file_missing

_ESCAPE = re.compile(r"\\([0-7]{3})")
"""A blank, tab, newline or backslash in a path is written in octal: proc_pid_mountinfo(5)."""
_OF_PODS = re.compile(
    r"/kubelet/(?:pods|plugins)(?:/|$)"  # also below /var/lib/k0s, /var/snap/microk8s/common/var/lib
    r"|/kubernetes\.io[~/]"  # volumes and plugins below a kubelet folder of any name (kubelet --root-dir)
    r"|/pods/[0-9a-f-]{32,36}/volume"
    r"|^/var/lib/longhorn(?:/|$)"  # its disks hold replicas of volumes
    r"|^/(?:run|var/run)/(?:containerd|crio|k3s)/"  # root filesystems of containers
)
_SYSTEM = frozenset({"/", "/usr", "/var", "/var/lib", "/var/lib/kubelet", "/var/lib/containerd", "/etc", "/boot"})
"""Where a network block device is a disk of the node itself: its root may be on iSCSI."""
_PARTITION = re.compile(
    r"(?P<disk>(?:nvme\d+n\d+|mmcblk\d+|md\d+|nbd\d+|rbd\d+)(?=p\d)|(?:sd|vd|xvd|hd)[a-z]{1,4}(?=\d))"
)
_NAME = re.compile(r"[\w.!@+-]{1,64}", re.ASCII)
_MAX_DEPTH = 8  # of devices built on devices (LVM on RAID on partitions …)


class _Mount(NamedTuple):
    number: str  # major:minor
    source: str  # such as /dev/sda1
    point: str


class MountedDisks:
    """Reads the devices. The table is parsed again only when it has changed."""

    def __init__(self, proc: Path, sys: Path) -> None:
        self._tables = (proc / "1" / "mountinfo", proc / "1" / "mounts")
        self._block = sys / "class" / "block"
        self._numbers = sys / "dev" / "block"
        self._table = b""
        self._disks = Disks()

    def read(self) -> Reading[Disks]:
        """The devices by their use."""
        try:
            table = self._read_table()
        except OSError as error:
            return file_missing(error)
        if table != self._table:
            self._table, self._disks = table, self._sorted(_mounts(table))
        return self._disks

    def _read_table(self) -> bytes:
        try:
            return self._tables[0].read_bytes()
        except FileNotFoundError:
            return self._tables[1].read_bytes()

    def _sorted(self, mounts: Iterable[_Mount]) -> Disks:
        of_node: set[str] = set()
        of_pods: set[str] = set()
        names: dict[tuple[str, str], frozenset[str]] = {}
        for mount in mounts:
            device = mount.number, mount.source
            if device not in names:
                names[device] = self._names(mount)
            found = names[device]
            outside = mount.point not in _SYSTEM and self._is_remote(found)
            (of_pods if outside or _OF_PODS.search(mount.point) else of_node).update(found)
        return Disks(tuple(sorted(of_node)), tuple(sorted(of_pods - of_node)))

    def _names(self, mount: _Mount) -> frozenset[str]:
        """The device of a mount, its disk, and the devices that it is built on."""
        name = self._name_of(mount.number)
        if not name and mount.source.startswith("/dev/"):  # btrfs has numbers of its own
            name = self._mapped(mount.source.removeprefix("/dev/"))
        found: set[str] = set()
        if name != "root":
            self._add(name, found)
        return frozenset(found)

    def _name_of(self, number: str) -> str:
        """The kernel's name of the device with this number; empty if there is none."""
        try:
            return (self._numbers / number).readlink().name if number else ""
        except OSError:
            return ""

    def _mapped(self, source: str) -> str:
        """The kernel's name of a device below /dev/mapper; that of any other is the last part of its path."""
        kind, _, name = source.rpartition("/")
        if kind != "mapper":
            return name
        for label in self._block.glob("dm-*/dm/name"):
            try:
                if label.read_text().strip() == name:
                    return label.parent.parent.name
            except OSError:
                continue
        return name

    def _add(self, name: str, found: set[str], depth: int = 0) -> None:
        if not _NAME.fullmatch(name) or name in found or depth > _MAX_DEPTH:
            return
        found.add(name)
        parts = [each.name for each in _entries(self._block / name / "slaves")]
        if disk := _PARTITION.match(name):
            parts.append(disk["disk"])
        for part in parts:
            self._add(part, found, depth + 1)

    def _is_remote(self, names: frozenset[str]) -> bool:
        return any(NETWORK.match(name) or self._is_fabric(name) for name in names)

    def _is_fabric(self, name: str) -> bool:
        """Whether a disk is an iSCSI one, or NVMe over a network (/sys/class/nvme/nvmeN/transport)."""
        link = self._block / name
        try:
            path = str(link.resolve(strict=True))
            if "/session" in path:
                return True
            transport = link / "device" / "transport"
            return transport.is_file() and transport.read_text().strip() not in ("pcie", "")
        except OSError:
            return False


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _mounts(table: bytes) -> Iterator[_Mount]:
    """The lines of a mountinfo or mounts table; one that is neither is left out."""
    for line in table.decode(errors="surrogateescape").split("\n"):
        fields = [_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), field) for field in line.split(" ")]
        if "-" in fields[6:] and len(fields) > (dash := fields.index("-", 6)) + 2:
            yield _Mount(fields[2], fields[dash + 2], fields[4])
        elif len(fields) in (6, 4) and fields[0].startswith("/dev/"):
            yield _Mount("", fields[0], fields[1])
