"""Lines of kernel logs from public reports, as pasted or as their viewers show them, with severity and action."""

from __future__ import annotations

from typing import NamedTuple

# ruff: noqa: E501 - one line is one entry


class Report(NamedTuple):
    """A line, or the lines of one message, and the worst event in it."""

    text: str
    finding: str = ""  # empty: no event
    severity: str = ""
    action: str = ""
    pci: str | None = None


# fmt: off
REPORTS = (
    Report("192.168.0.9: kern: warning: [2026-04-22T21:25:20.505406921Z]: NVRM: Xid (PCI:0000:48:00): 62, 00002740 00002b08 00001126 0000117a 0000279f 0002a91a 00000011 00000000", "xid.62", "critical", "reset_gpu", "0000:48:00"),  # vllm-project/vllm#40652
    Report("kern: warning: [2025-03-07T10:11:12.123456789Z]: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),  # vllm-project/vllm#40652
    Report("syslog:err   : 2025-05-27T04:18:56,089671+00:00 NVRM: Xid (PCI:0000:04:00): 79, GPU has fallen off the bus", "xid.79", "critical", "reboot_node", "0000:04:00"),  # leptonai/gpud#870
    Report("38.773115] NVRM: RmInitAdapter failed! (0x26:0xffff:1127)", "driver.init_failed", "critical", "reboot_node"),  # microsoft/pai#4344
    Report("/var/log/syslog:Mar  7 10:11:12 node1 kernel: [12345.678901] NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("[pod/dmesg-x7k/tail] [12345.678901] NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("2025-03-07T10:11:12.123456789Z [12345.678901] NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("{\"priority\":4,\"sequence\":1234,\"sec\":12345,\"usec\":678901,\"msg\":\"NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.\"}", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("Mar  7 10:11:12 node1 kern.warn kernel: [12345.678901] NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("2025 Mar  7 10:11:12 node1 kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("ip-10-0-0-1.ec2.internal kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("\"[12345.678901] NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.\"", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("2025-03-07 10:11:12 node1 kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("2025-03-07T10:11:12+0000 node1 kernel[0]: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("<4>Mar  7 10:11:12 kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("april 24 16:22:15 node1 kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=vivaldi-bin, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),  # NVIDIA/open-gpu-kernel-modules#1010
    Report("11月 15 14:15:47 node1 kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),  # NVIDIA/gpu-operator#610
    Report("mars 12 10:11:12 node1 kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("[mer. mars 12 10:11:12 2025] NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("ven. 2025-03-07 10:11:12 CET node1 kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("[Ter Set 19 06:01:41 2017] NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),  # lnls-dig/bpm-gw#73
    Report("_TRANSPORT=kernel\nMESSAGE=NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("data: {\"_TRANSPORT\":\"kernel\",\"MESSAGE\":\"NVRM: Xid (PCI:0000:01:00): 79, pid=6755, name=python, GPU has fallen off the bus.\"}", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("{\"MESSAGE\":\"Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.\",\"_TRANSPORT\":\"kernel\",\"SYSLOG_IDENTIFIER\":\"NVRM\",\"PRIORITY\":\"4\"}", "xid.79", "critical", "reboot_node", "0000:01:00"),
    Report("EXT4-fs (sdb): Remounting filesystem read-only", "host.disk_readonly", "warning", "inspect_hardware"),  # longhorn/longhorn#6651
    Report("EXT4-fs (rbd1): Remounting filesystem read-only", "host.volume_errors", "warning", "none"),
    Report("XFS (rbd0): Filesystem has been shut down due to log error (0x2).", "host.volume_errors", "warning", "none"),
    Report("mlx5_core 0000:5c:00.0: mlx5_pcie_event:299:(pid 268269): Detected insufficient power on the PCIe slot (27W).", "infiniband.errors", "warning", "inspect_hardware", "0000:5c:00"),  # leptonai/gpud#348
    Report("mlx5_core 0000:0f:00.0: device's health compromised - reached miss count", "infiniband.errors", "critical", "inspect_hardware", "0000:0f:00"),
    Report("igb 0000:41:00.0 enp65s0f0: igb: enp65s0f0 NIC Link is Up 1000 Mbps", "nic.down", "info", "none", "0000:41:00"),
    Report("[373871.354096] NVRM: nvAssertOkFailedNoLog: Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x00000062) returned from status @ kernel_channel.c:2827", "driver.errors", "warning", "reset_gpu"),  # kubernetes-sigs/dra-driver-nvidia-gpu#982
    Report("[ 1.0] NVRM: _kgspIsHeartbeatTimedOut: Heartbeat timed out, currentTimeMs 709957545 heartbeat 105067568 diff 8025 timeout 5200", "driver.errors", "warning", "reset_gpu"),  # NVIDIA/open-gpu-kernel-modules#1080
    Report("NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:\nNVRM: BAR1 is 0M @ 0x0 (PCI:0000:05:00.0)\nnvidia: probe of 0000:05:00.0 failed with error -1", "driver.init_failed", "critical", "reboot_node", "0000:05:00"),
    Report("[ 1.0] nvidia 0000:05:00.0: probe with driver nvidia failed with error -1", "driver.init_failed", "critical", "reboot_node", "0000:05:00"),
    Report("[ 1.0] nvidia 0000:3b:00.0: Unable to change power state from D3cold to D0, device inaccessible", "driver.errors", "warning", "reboot_node", "0000:3b:00"),
    Report("[ 1.0] NVRM: kgspBootstrap_GH100: GSP-FMC reported an error while attempting to boot GSP: 0xb\n[ 1.0] NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x62:0x55:1861)", "driver.init_failed", "critical", "reboot_node", "0000:02:00"),  # NVIDIA/open-gpu-kernel-modules#1120
    Report("[ 1.0] NVRM: _kgspFwContainerVerifyVersion: GSP firmware image version mismatch: got version 570.172.08, expected version 570.190\n[ 1.0] NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x61:0x0:1)", "driver.init_failed", "critical", "update_software"),
    Report("NVRM: The NVIDIA GPU 000a:00:00.0 (PCI ID: 10de:2330)\nNVRM: installed in this system is not supported by the\nNVRM: NVIDIA 580.126.09 driver release.\nNVRM: The NVIDIA probe routine failed for 1 device(s).", "driver.init_failed", "critical", "update_software", "000a:00:00"),  # NVIDIA/aicr#1858
    Report("BUG: kernel NULL pointer dereference, address: 00000000000000a8\nOops: 0000 [#1] PREEMPT SMP NOPTI\nRIP: 0010:uvm_hmm_unregister_gpu+0x51/0x3a0 [nvidia_uvm]", "host.kernel_oops", "critical", "reboot_node"),  # NVIDIA/open-gpu-kernel-modules#1082
    Report("BUG: unable to handle kernel NULL pointer dereference at 0000000000000340\nIP: [<ffffffffc075549f>] _nv011745rm+0x1f/0x170 [nvidia]", "host.kernel_oops", "critical", "reboot_node"),  # NVIDIA/nvidia-docker#377
    Report("[ 1.0] NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)", "xid.154", "critical", "reboot_node", "0000:01:00"),
    Report("[ 1.0] NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (PF FLR)", "xid.154", "critical", "reset_gpu", "0000:01:00"),  # NVIDIA/open-gpu-kernel-modules#1284
    Report("[ 1.0] NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (Node Reboot Required)", "xid.154", "critical", "reboot_node", "0000:01:00"),
    Report("[ 1.0] NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", "xid.154", "info", "none", "0000:01:00"),
    Report("[ 1.0] NVRM: Xid (PCI:0000:01:00): 120, GSP task exception: load access page fault (cause:0xd) @ pc:0x13636b2", "xid.120", "critical", "reset_gpu", "0000:01:00"),  # NVIDIA/open-gpu-kernel-modules#1284
    Report("[ 1.0] NVRM: Xid (PCI:0000:01:00): 120, GSP task watchdog timeout @ pc:0x1b66396, partition:4#0, task:3, gfid: 0", "xid.120", "critical", "reset_gpu", "0000:01:00"),  # NVIDIA/open-gpu-kernel-modules#1307
    Report("[ 1.0] NVRM: Xid (PCI:0000:04:00): 69, pid=1, name=x, Class Error: ChId 0042, Class 0000c9c0, Offset 00000204, Data 00000000, ErrorCode 0000000c", "xid.69", "warning", "restart_workload", "0000:04:00"),  # NVIDIA/k8s-device-plugin#189
    Report("[ 1.0] NVRM: Xid (PCI:0000:04:00): 94, pid=7194, name=x, Contained: CE User Channel (0x9). RST: No, D-RST: No", "xid.94", "warning", "restart_workload", "0000:04:00"),  # NVIDIA/gpu-operator#1065
    Report("[ 1.0] NVRM: Xid (PCI:0000:04:00): 68, pid=1, name=ffmpeg, NVDEC0 Exception", "xid.68", "warning", "restart_workload", "0000:04:00"),  # NVIDIA/k8s-device-plugin#945
    Report("[ 1.0] NVRM: Xid (PCI:25bed32b:00:00): 79, GPU has fallen off the bus.", "xid.79", "critical", "reboot_node", "25bed32b:00:00"),  # NVIDIA/nvidia-docker#377
    Report("[   38.773764] NVRM: rm_init_adapter failed for device bearing minor number 0", "driver.init_failed", "critical", "reboot_node"),  # microsoft/pai#4344
    Report("[ 1.0] NVRM: GPU0 nvAssertOkFailedNoLog: Assertion failed: Out of memory [NV_ERR_NO_MEMORY] (0x00000051) returned from pmaAllocatePages"),
    Report("[ 1.0] nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping further processing"),  # leptonai/gpud#46
    Report("[ 1.0] mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link ACTIVE"),  # leptonai/gpud#1209
    Report("[ 1.0] NVRM: GPU Board Serial Number: 0"),  # NVIDIA/open-gpu-kernel-modules#1010
    Report("[ 1.0] NVRM: gpuClearFbhubPoisonIntrForBug2924523_GA100: FBHUB Interrupt detected. Clearing it."),  # NVIDIA/nvtrust#77
    Report("[ 1.0] nvme nvme1: using unchecked data buffer"),
)
# fmt: on
