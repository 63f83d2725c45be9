"""Odd trees of /dev, /sys and /proc, through the probes that read them and the checks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from testing.readings import START, gpu, nvml, remembering

from fuzzing import mutate
from fuzzing.target import encoded, require, require_printable
from gpuhealth.model.kernel_event import KernelLogStatus
from gpuhealth.model.missing import Missing
from gpuhealth.model.tracker import FindingTracker
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.host import probe as host_probe
from gpuhealth.monitors.host.monitor import MONITOR as HOST
from gpuhealth.monitors.judge import Judge, tracker_rules
from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
from gpuhealth.monitors.monitor import MetricsContext
from gpuhealth.monitors.nvidia.devices import KernelModuleProbe, ProcessProbe, device_nodes, live_pids
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.pci import PciProbe
from gpuhealth.monitors.nvidia.readings import NvidiaReadings
from gpuhealth.monitors.readings import NodeReadings, decode
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.condition import summary
from gpuhealth.runtime.files import boot_id

_GPUS = 4
_DEVICES = "sys/bus/pci/devices"
_MOUNTS = (
    "/dev/sda1 / ext4 rw,relatime 0 0\n/dev/sdb /data xfs rw 0 0\ntank/data /tank zfs rw 0 0\nproc /proc proc rw 0 0\n"
    "/dev/sdc /var/lib/kubelet/pods/x/volumes/y ext4 rw 0 0\n"
    "10.0.0.1:/x /nfs nfs4 rw 0 0\n/dev/sdd /with\\040blank ext4 rw 0 0\n"
)
_WORDS = (
    b"0x10de\n", b"0x030200\n", b"0x068000\n", b"\\040", b"\\777", b"\\012", b" ext4 rw 0 0\n", b"/dev/sde ",
    b"TOTAL_ERR_COR 3\n", b"TOTAL_ERR_COR -1\n",
    b"TOTAL_ERR_COR 99999999999999999999999999\n", "TOTAL_ERR_COR ²\n".encode(), b"nv-fabricmanager", b"\xff\xfe",
    b"\x00", b"x" * 5000, b"/../../..",
)  # fmt: skip


def _files() -> dict[str, bytes]:
    files = {
        "proc/1/mounts": _MOUNTS.encode(),
        "proc/1/comm": b"systemd\n",
        "proc/4711/comm": b"nv-fabricmanage\n",
        "proc/sys/kernel/random/boot_id": b"11111111-2222-3333-4444-555555555555\n",
        "sys/module/nvidia/version": b"550.54.15\n",
    }
    for index in range(_GPUS):
        folder = f"{_DEVICES}/{gpu(index).pci}"
        files |= {f"{folder}/vendor": b"0x10de\n", f"{folder}/device": b"0x2330\n", f"{folder}/class": b"0x030200\n"}
        for kind, total in (("correctable", "COR"), ("nonfatal", "NONFATAL"), ("fatal", "FATAL")):
            files[f"{folder}/aer_dev_{kind}"] = f"RxErr 0\nTOTAL_ERR_{total} 0\n".encode()
        files[f"dev/nvidia{index}"] = b""
    for name, device_class in (("0000:aa:00.0", b"0x068000\n"), ("0000:00:1c.0", b"0x060400\n")):
        files |= {
            f"{_DEVICES}/{name}/vendor": b"0x10de\n",
            f"{_DEVICES}/{name}/device": b"0x22a3\n",
            f"{_DEVICES}/{name}/class": device_class,
        }
    return files


_FILES = _files()
_FOLDERS = sorted({str(parent) for name in _FILES for parent in Path(name).parents if str(parent) != "."})


class Change(msgspec.Struct):
    """One change of the tree."""

    kind: str  # write, remove, folder, link, add
    path: str
    data: bytes = b""  # content; target of a link; name of what is added


class Target:
    """A case is a list of changes of the trees of a healthy node with four GPUs."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self._root = Path(self._folder.name)
        self._settings = Settings()
        self._write(_FILES)
        self._honest = [gpu(index) for index in range(_GPUS)]

    def _write(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            path = self._root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def make(self, chance: random.Random) -> bytes:
        """Files with other content, missing, of another type, or additional ones."""
        changes = []
        for _ in range(chance.choice((1, 1, 2, 4))):
            path = chance.choice([*_FILES]) if chance.random() < 0.9 else chance.choice(_FOLDERS)
            roll = chance.random()
            if roll < 0.55 and path in _FILES:
                changes.append(Change("write", path, mutate.mutate_bytes(_FILES[path], chance, _WORDS)))
            elif roll < 0.7:
                changes.append(Change("remove", path))
            elif roll < 0.78:
                changes.append(Change("folder", path))
            elif roll < 0.86:
                changes.append(
                    Change(
                        "link",
                        path,
                        chance.choice((b"nowhere", b".", b"/dev/null", b"/proc/self/mem", os.fsencode(path))),
                    )
                )
            else:
                name = mutate.mutate_bytes(
                    chance.choice((b"nvidia9", b"0000:bb:00.0", b"4712", b"nvidia_uvm", b"1")), chance
                )
                name = name.replace(b"/", b"_").replace(b"\0", b"_")[:200]
                changes.append(Change("add", chance.choice(_FOLDERS), name))
        return msgspec.json.encode(changes)

    def check(self, case: bytes) -> int:
        """Each odd file costs its own reading; a GPU that one tree lacks is missed."""
        changes = msgspec.json.decode(case, type=list[Change])
        try:
            for change in changes:
                self._apply(change)
            readings = self._read()
            self._check_readings(readings, changes)
        finally:
            self._restore(changes)
        return 1

    def _apply(self, change: Change) -> None:
        path = self._root / change.path
        if change.kind == "add":
            if path.is_dir() and change.data not in (b"", b".", b".."):
                added = path / os.fsdecode(change.data)
                if not added.is_symlink() and not added.exists():
                    added.touch()
            return
        if change.kind == "write":
            if path.parent.is_dir() and not path.is_dir() and not path.is_symlink():
                path.write_bytes(change.data)
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():
            path.unlink()
        if path.parent.is_dir() and not path.parent.is_symlink():
            if change.kind == "folder":
                path.mkdir()
            elif change.kind == "link":
                path.symlink_to(os.fsdecode(change.data))

    def _restore(self, changes: list[Change]) -> None:
        for change in changes:
            path = self._root / change.path
            if change.kind == "add":
                with contextlib.suppress(OSError):
                    (path / os.fsdecode(change.data)).unlink()
                continue
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.is_dir() and change.path in _FILES:
                shutil.rmtree(path)
        touched = [change.path for change in changes if change.kind != "add"]
        self._write(
            {
                name: text
                for name, text in _FILES.items()
                if any(name == at or name.startswith(f"{at}/") for at in touched)
            }
        )

    def _read(self) -> dict[str, Any]:
        root = self._root
        pci = PciProbe(root / "sys")
        first, second = pci.read(), pci.read()
        require(first == second, "two scans of the same bus differ")
        gpus = nvml(*self._honest, driver_version="550.54.15")
        return {
            "boot_id": boot_id(root / "proc"),
            "host": host_probe.read_disks(root / "proc", root),
            "nvidia": NvidiaReadings(
                nvml=gpus,
                pci=second,
                device_nodes=device_nodes(root / "dev"),
                kernel_module=KernelModuleProbe(root / "sys").read(),
                live_pids=live_pids(root / "proc", [4711, 4712]),
                fabric_manager_running=ProcessProbe(root / "proc", "nv-fabricmanager").read(),
            ),
        }

    def _check_readings(self, read: dict[str, Any], changes: list[Change]) -> None:
        nvidia: NvidiaReadings = read["nvidia"]
        require_printable(read["boot_id"], "the boot id", 100)
        whole = NodeReadings(
            node="a", time=START, boot_id=read["boot_id"], monitors={"nvidia": nvidia, "host": read["host"]}
        )
        text = encoded(whole, 1 << 20)
        require(msgspec.json.encode(decode(text)) == text, "a capture changes the readings")
        verdict = self._judged(nvidia, read["host"])
        for finding in verdict.findings:
            require_printable(finding.message, f"the message of {finding.code}", 5000)
        require_printable(summary(verdict).message, "the condition's message")
        encoded(verdict, 1 << 20)
        gone = {change.path for change in changes if change.kind in ("remove", "folder", "link")}
        if not isinstance(nvidia.pci, Missing) and any(f"{_DEVICES}/{each.pci}" in gone for each in self._honest):
            listed = {device.address for device in nvidia.pci if device.is_gpu}
            if listed and len(listed) < _GPUS:
                require(verdict.verdict is not State.HEALTHY, "healthy although a GPU is not on the bus")
        if any(f"dev/nvidia{index}" == path for index in range(_GPUS) for path in gone if "folder" not in path):
            nodes = () if isinstance(nvidia.device_nodes, Missing) else nvidia.device_nodes
            if 0 < len(nodes) < _GPUS:
                require(verdict.verdict is not State.HEALTHY, "healthy although a device node is missing")

    def _judged(self, nvidia: NvidiaReadings, host: Any) -> Verdict:
        judge = Judge(self._settings, remembering(), boot_id="boot-1", time=START)
        tracker = FindingTracker(tracker_rules(self._settings), one_look=True)
        readings: tuple[tuple[Any, Any], ...] = ((KERNEL_LOG, KernelLogStatus("kmsg")), (NVIDIA, nvidia), (HOST, host))
        for monitor, values in readings:
            tracker.apply_round(monitor.name, judge.round(monitor, values, START), judge.facts())
        require(not judge.failures, f"checks failed: {dict(judge.failures)}")
        for monitor, values in readings:
            for collect in monitor.metrics.values():
                if not isinstance(values, Missing) and monitor is HOST:
                    [*collect(_metrics_context(values, self._settings))]
        return tracker.verdict(judge.facts())

    def close(self) -> None:
        """Removes the folder with the trees of /dev, /sys and /proc."""
        self._folder.cleanup()


def _metrics_context(values: Any, settings: Settings) -> Any:
    return MetricsContext(readings=values, last_readings=values, settings=settings, probe=None)  # type: ignore[arg-type]
