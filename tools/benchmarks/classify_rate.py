"""How many lines of a kernel log one core classifies in a second, from a file to JSON lines."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import msgspec

from gpuhealth.kernel_log.formats import KernelLogText
from gpuhealth.monitors.registry import kernel_log_parser

_LINES = 300_000
_ORDINARY = (
    "[{seconds:12.6f}] eth0: renamed from veth{number:x}",
    "[{seconds:12.6f}] IPv6: ADDRCONF(NETDEV_CHANGE): cali{number:x}: link becomes ready",
    '[{seconds:12.6f}] audit: type=1400 audit(1763.{number}): apparmor="STATUS" operation="profile_replace"',
    "[{seconds:12.6f}] overlayfs: upperdir is in-use as upperdir/workdir of another mount, number {number}",
    "Nov 22 01:43:47 gpu-node-17 systemd[1]: run-containerd-runc-k8s.io-{number}.mount: Deactivated successfully.",
    "Nov 22 01:43:47 gpu-node-17 kernel: [{seconds:12.6f}] docker0: port {number}(veth) entered blocking state",
    "6,{number},{seconds:.0f}000000,-;usb 1-{number}: new high-speed USB device number 5 using xhci_hcd",
)
_XID = (
    "[{seconds:12.6f}] NVRM: Xid (PCI:0000:{bus:02x}:00): 79, pid={number}, name=python, GPU has fallen off the bus.",
    "Nov 22 01:43:47 gpu-node-17 kernel: [{seconds:12.6f}] NVRM: Xid (PCI:0000:{bus:02x}:00): 13, pid={number},"
    " name=python3, Graphics SM Warp Exception on (GPC 3, TPC 1, SM 1): Out Of Range Address",
    "3,{number},{seconds:.0f}000000,-;NVRM: Xid (PCI:0000:{bus:02x}:00 GPU-I:05): 94, pid={number}, name=x, Contained",
    "2026-11-22T01:43:47.123456+00:00 gpu-node-17 kernel: NVRM: Xid (PCI:0000:{bus:02x}:00): 45, pid={number},"
    " name=python3, Ch 00000001",
)


def _write(path: Path, forms: tuple[str, ...]) -> None:
    chance = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for number in range(_LINES):
            file.write(chance.choice(forms).format(seconds=number / 7, number=number, bus=chance.randrange(256)) + "\n")


def _rate(path: Path, out: Path) -> float:
    encode = msgspec.json.Encoder().encode
    began = time.process_time()
    with path.open("rb") as lines, out.open("wb") as results:
        for found in KernelLogText(kernel_log_parser()).events(lines):
            results.write(encode(found.described()) + b"\n")
    return _LINES / (time.process_time() - began)


def run(_: float = 0.0) -> tuple[dict[str, float], dict[str, object]]:
    """The best of three runs of each kind of log, in lines per second of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        ordinary, xids, out = (Path(folder, name) for name in ("ordinary.log", "xid.log", "out.jsonl"))
        _write(ordinary, _ORDINARY)
        _write(xids, _XID)
        figures = {
            "ordinary_lines_per_s": max(_rate(ordinary, out) for _ in range(3)),
            "xid_lines_per_s": max(_rate(xids, out) for _ in range(3)),
        }
    return figures, {"lines": _LINES, "runs": 3}


if __name__ == "__main__":
    print(msgspec.json.encode(run()).decode())
