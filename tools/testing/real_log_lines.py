"""Lines of kernel logs as people have published them: the source, the line, the finding and the device."""

from __future__ import annotations

from typing import NamedTuple

# ruff: noqa: E501 - one line is one entry


class RealLine(NamedTuple):
    """One published line, or several, with what it means; an empty finding if it means nothing to us."""

    source: str
    text: str
    finding: str
    pci: str | None = None


_LOST = "GPU has fallen off the bus."
# fmt: off
LINES = (
    RealLine("vllm-project/vllm#40652, Talos", "192.168.0.9: kern: warning: [2026-04-22T21:25:20.505406921Z]: NVRM: Xid (PCI:0000:48:00): 62, 00002740 00002b08 00001126 0000117a 0000279f 0002a91a 00000011 00000000", "xid.62", "0000:48:00"),
    RealLine("leptonai/gpud#870, fault injector", "syslog:err   : 2025-05-27T04:18:56,089671+00:00 NVRM: Xid (PCI:0000:04:00): 79, GPU has fallen off the bus", "xid.79", "0000:04:00"),
    RealLine("leptonai/gpud#46", "> [Fri Aug 30 11:43:09 2024] NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp Exception on (GPC 7, TPC 7, SM 0): Illegal Instruction Parameter", "xid.13", "0000:cb:00"),
    RealLine("microsoft/pai#4344", "38.773115] NVRM: RmInitAdapter failed! (0x26:0xffff:1127)", "driver.init_failed"),
    RealLine("NVIDIA/open-gpu-kernel-modules#1010, Norwegian", f"april 24 16:22:15 fedora kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=vivaldi-bin, {_LOST}", "xid.79", "0000:01:00"),
    RealLine("NVIDIA/gpu-operator#610, Chinese", f"11月 15 14:15:47 node1 kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, {_LOST}", "xid.79", "0000:01:00"),
    RealLine("a Chinese account of an Ubuntu server", f"6月 28 02:52:53 jjf-Super-Server kernel: NVRM: Xid (PCI:0000:c2:00): 79, pid='<unknown>', name=<unknown>, {_LOST}", "xid.79", "0000:c2:00"),
    RealLine("lnls-dig/bpm-gw#73, Portuguese dmesg -T", f"[Ter Set 19 06:01:41 2017] NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, {_LOST}", "xid.79", "0000:01:00"),
    RealLine("a German journal in Markdown", f"    Okt 06 17:59:27 balrog kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=1122, {_LOST}", "xid.79", "0000:01:00"),
    RealLine("the pager of journalctl cuts a line", " archlinux kernel: NVRM: Xid (PCI:0000:08:00): 13, pid='', name=, Graphi>", "xid.13", "0000:08:00"),
    RealLine("NVIDIA/open-gpu-kernel-modules#1150", "kernel: NVRM: Xid (PCI:0000:dc:00): 45, pid=1818990, name=python3, Ch 00000001 caused by previous Xid 149", "xid.45", "0000:dc:00"),
    RealLine("journalctl -o short-unix in a test of a tool", f"1759600000.5 host kernel: NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', {_LOST}", "xid.79", "0000:01:00"),
    RealLine("Bumblebee-Project/Bumblebee#677", "[24128.828315] NVRM: Xid (PCI:0000:01:00): 32, Channel ID 00000000 intr 00004000", "xid.32", "0000:01:00"),
    RealLine("docs.nvidia.com/deploy/xid-errors", "NVRM: Xid (0000:03:00): 14, Channel 00000001", "xid.14", "0000:03:00"),
    RealLine("NVIDIA/NVSentinel, end-to-end tests", "kernel: [123.456789] nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 20009, Non-fatal, Link 28 RX Short Error Rate", "sxid.20009", "0000:c3:00"),
    RealLine("a fabric manager's log", "[2026-07-15T04:18:55.513286+00:00] nvidia-nvswitch0: SXid (PCI:0000:59:00.0): 23001, Fatal, Link 12 Always Fatal", "sxid.23001", "0000:59:00"),
    RealLine("NVIDIA/NVSentinel#155", "[ 1843.308145] NVRM: The NVIDIA GPU 0000:b3:00.0\n               NVRM: (PCI ID: 10de:26b5) installed in this system has\n               NVRM: fallen off the bus and is not responding to commands.", "xid.79", "0000:b3:00"),
    RealLine("systemd splits off what a program calls itself in /dev/kmsg", '{"MESSAGE":"Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.","_TRANSPORT":"kernel","SYSLOG_IDENTIFIER":"NVRM","PRIORITY":"4"}', "xid.79", "0000:01:00"),
    RealLine("docs.fluentbit.io, in_kmsg", f'[0] kernel: [1463421823, {{"priority"=>3, "sequence"=>1814, "sec"=>11706, "usec"=>732233, "msg"=>"NVRM: Xid (PCI:0000:01:00): 79, pid=1, name=x, {_LOST}"}}]', "xid.79", "0000:01:00"),
    RealLine("a log of a training run quotes a line of its own tool", "[gpu-health] [WARN] GPU-e11dfcca-7c93-959a-b8fd-5cfe0839b163: XID: NVRM: Xid (PCI:0000:00:06): 31, pid=79749, name=exe, Ch 0000000a", ""),
    RealLine("a quiz", "  {q:\"dmesg shows 'NVRM: Xid (PCI:0000:83:00): 48'. What does XID 48 indicate and what is the first action?\",", ""),
    RealLine("a runbook", "| `dmesg` 里有 `NVRM: Xid (PCI:...): 79` | 经典 Xid 79 = GPU fall off the bus |", ""),
    RealLine("a comment in a shell script", '      # Typical NVRM format: "NVRM: Xid (PCI:0000:0f:00): 119, pid=..., ...".', ""),
    RealLine("a test in Python", '        RuntimeError("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"),', ""),
    RealLine("a test in Rust", '    const XID: &str = "1759600000.5 host kernel: NVRM: Xid (PCI:0000:01:00): 79, x";', ""),
)
# fmt: on
