"""Kernel-log lines and what they mean."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpuhealth.catalog.kernel_lines import KernelLog, may_matter, nvml_xid_event
from gpuhealth.model import KernelEvent, KernelRecord

LOST = "GPU has fallen off the bus."
SXID = "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): "

# line, kind, finding, severity, action, and what else must be in the event
LINES: list[tuple[str, str, str, str, str, dict[str, object]]] = [
    (f"NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, {LOST}", "xid", "xid.79", "critical", "reboot_node",
     {"code": 79, "pci": "0000:3b:00", "pid": 1234, "process": "python"}),
    (f"NVRM: Xid (PCI:0000:2b:00): 79, {LOST}", "xid", "xid.79", "critical", "reboot_node",
     {"pci": "0000:2b:00", "pid": None, "process": None}),
    (f"NVRM: Xid (PCI:0000:5D:00): 79, pid='<unknown>', name=<unknown>, {LOST}", "xid", "xid.79", "critical",
     "reboot_node", {"pci": "0000:5d:00", "pid": None, "process": None}),
    (f"NVRM: Xid (PCI:0000:5d:00): 79, pid=<n/a>, name=<unknown>, {LOST}", "xid", "xid.79", "critical",
     "reboot_node", {"pid": None, "process": None}),
    ("NVRM: Xid (PCI:0000:5d:00): 79", "xid", "xid.79", "critical", "reboot_node", {"pci": "0000:5d:00"}),
    ("NVRM: Xid (0000:03:00): 14, Channel 00000001", "xid", "xid.14", "info", "none", {"pci": "0000:03:00"}),
    ("NVRM: Xid (PCI:00000000:3B:00.0): 13, pid=1, name=a b, text, more", "xid", "xid.13", "warning",
     "restart_workload", {"pci": "0000:3b:00", "pid": 1, "process": "a b"}),
    ("NVRM: Xid (PCI:00010000:3B:00): 13, text", "xid", "xid.13", "warning", "restart_workload",
     {"pci": "10000:3b:00"}),
    ("NVRM: Xid (PCI:0001:3b:00): 13, text", "xid", "xid.13", "warning", "restart_workload", {"pci": "0001:3b:00"}),
    ("NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, name=x, Contained: CE User Channel (0x9). RST: No, D-RST: No",
     "xid", "xid.94", "warning", "restart_workload", {"gpu_instance": 5, "compute_instance": None, "pid": 7194}),
    ("NVRM: Xid (PCI:0000:01:00 GPU-I:10 GPU-CI:01): 94, pid=7194, Contained", "xid", "xid.94", "warning",
     "restart_workload", {"gpu_instance": 10, "compute_instance": 1, "pid": 7194, "process": None}),
    ("NVRM: Xid (PCI:0000:5d:00): 95, pid=7194, name=x, Uncontained: LTC TAG (0x2, 0x1). RST: Yes, D-RST: No", "xid",
     "xid.95", "critical", "reset_gpu", {}),
    ("NVRM: Xid (PCI:0000:5d:00): 63, pid=1896, Row Remapper: New row marked for remapping, reset gpu to activate.",
     "xid", "xid.63", "info", "none", {"pid": 1896}),
    ("NVRM: Xid (PCI:0000:5d:00): 64, pid='<unknown>', name=<unknown>, Row Remapper Error: (0x1) - All reserved rows",
     "xid", "xid.64", "critical", "reset_gpu", {}),
    ("NVRM: Xid (PCI:0000:5d:00): 119, pid=9, name=nvidia-smi, Timeout waiting for RPC from GSP! (0x2080014b 0x5).",
     "xid", "xid.119", "critical", "reset_gpu", {"process": "nvidia-smi"}),
    ("NVRM: Xid (PCI:0000:5d:00): 45, pid=9, name=python3, Ch 00000001 caused by previous Xid 149", "xid", "xid.45",
     "warning", "restart_workload", {}),
    ("NVRM: Xid (PCI:0000:5d:00): 45, pid=9, name=python3, Ch 00000001", "xid", "xid.45", "warning",
     "restart_workload", {}),
    ("NVRM: Xid (PCI:0000:5d:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
     "xid", "xid.154", "critical", "reboot_node", {}),
    ("NVRM: Xid (PCI:0000:5d:00): 154, pid=5, name=y, GPU recovery action changed from 0x1 (GPU Reset Required) to"
     " 0x0 (None)", "xid", "xid.154", "info", "none", {}),
    (f"NVRM: GPU 0000:18:00.0: {LOST}", "nvrm", "xid.79", "critical", "reboot_node",
     {"pci": "0000:18:00", "code": None}),
    ("NVRM: GPU at 0000:18:00.0 has fallen off the bus.", "nvrm", "xid.79", "critical", "reboot_node",
     {"pci": "0000:18:00"}),
    ("NVRM: The NVIDIA GPU 0000:b3:00.0\nNVRM: (PCI ID: 10de:26b5) installed in this system has\nNVRM: fallen off the"
     " bus and is not responding to commands.", "nvrm", "xid.79", "critical", "reboot_node", {"pci": "0000:b3:00"}),
    ("NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x62:0x55:1860)", "nvrm", "driver.init_failed", "critical",
     "reboot_node", {"pci": "0000:3b:00"}),
    ("NVRM: RmInitAdapter failed! (0x26:0xffff:1290)", "nvrm", "driver.init_failed", "critical", "reboot_node", {}),
    ("NVRM: The NVIDIA probe routine failed for 1 device(s).", "nvrm", "driver.init_failed", "critical",
     "reboot_node", {}),
    ("NVRM: None of the NVIDIA devices were initialized.", "nvrm", "driver.init_failed", "critical", "reboot_node", {}),
    ("NVRM: API mismatch: the client has the version 535.54.03, but", "nvrm", "driver.client_mismatch", "warning",
     "update_software", {}),
    ("NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot to recover.", "nvrm",
     "driver.needs_reboot", "critical", "reboot_node", {}),
    ("NVRM: GPU0 _issueRpcAndWait: rpcSendMessage failed with status 0x0000000f for fn 78!", "nvrm", "driver.errors",
     "warning", "contact_support", {}),
    ("NVRM: knvlinkDiscoverPostRxDetLinks_GH100: Getting peer0's postRxDetLinkMask failed!", "nvrm", "driver.errors",
     "warning", "contact_support", {}),
    (f"{SXID}12028, Non-fatal, Link 32 egress non-posted PRIV error (First)", "sxid", "sxid.12028", "warning", "none",
     {"code": 12028, "pci": "0000:a9:00", "link": 32}),
    (f"{SXID}10001, Non-fatal, words, instance=3, chiplet=1", "sxid", "sxid.10001", "info", "none", {"link": None}),
    (f"{SXID}10004, NVSWITCH Temperature 105C | TSENSE WARN Threshold 100C", "sxid", "sxid.10004", "critical",
     "inspect_hardware", {"link": None}),
    (f"{SXID}26006, SOE HALTED", "sxid", "sxid.26006", "critical", "reset_gpu", {}),
    ("nvidia 0000:3b:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)", "aer",
     "pcie.aer_correctable_rate", "info", "none", {"pci": "0000:3b:00"}),
    ("nvidia 0000:3b:00.0: PCIe Bus Error: severity=Correctable, type=Data Link Layer, (Transmitter ID)", "aer",
     "pcie.aer_correctable_rate", "info", "none", {"pci": "0000:3b:00"}),
    ("pcieport 0000:00:1c.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, id=00e0(Requester)",
     "aer", "pcie.aer_uncorrectable", "critical", "inspect_hardware", {"pci": "0000:00:1c"}),
    ("pcieport 0000:00:1c.0: AER: Uncorrectable (Non-Fatal) error message received from 0000:3b:00.0", "aer",
     "pcie.aer_uncorrectable", "critical", "inspect_hardware", {"pci": "0000:3b:00"}),
    ("pcieport 0000:00:1c.0: AER: Multiple Corrected error received: 0000:3b:00.0", "aer",
     "pcie.aer_correctable_rate", "info", "none", {"pci": "0000:3b:00"}),
    ("pcieport 10000:e0:06.0: AER: Corrected error received: 10000:e1:00.0", "aer", "pcie.aer_correctable_rate",
     "info", "none", {"pci": "10000:e1:00"}),
    ("pcieport 0000:00:01.0: DPC: containment event, status:0x1f01 source:0x0000", "aer", "pcie.aer_uncorrectable",
     "critical", "inspect_hardware", {"pci": "0000:00:01"}),
    ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0 (channel:0)", "edac", "host.memory_edac",
     "info", "none", {}),
    ("EDAC MC1: 1 UE memory scrubbing error on CPU_SrcID#1", "edac", "host.memory_edac", "critical",
     "inspect_hardware", {}),
    ("Memory failure: 0x12345: Sending SIGBUS to python:77 due to hardware memory corruption", "edac",
     "host.memory_edac", "critical", "inspect_hardware", {"pid": 77, "process": "python"}),
    ("mce: [Hardware Error]: Machine check events logged", "mce", "host.mce", "warning", "none", {}),
    ("mce: [Hardware Error]: CPU 0: Machine Check Exception: 5 Bank 4: be00000000800400", "mce", "host.mce",
     "critical", "inspect_hardware", {}),
    ("{1}[Hardware Error]: event severity: corrected", "mce", "host.mce", "info", "none", {}),
    ("{2}[Hardware Error]: event severity: fatal", "mce", "host.mce", "critical", "inspect_hardware", {}),
    ("INFO: task kworker/u8:3:123 blocked for more than 120 seconds.", "hung_task", "host.hung_task", "warning", "none",
     {"pid": 123, "process": "kworker/u8:3"}),
    ("INFO: task python:9 blocked in I/O wait for more than 120 seconds.", "hung_task", "host.hung_task", "warning",
     "none", {"pid": 9}),
    ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:1234]", "soft_lockup", "host.soft_lockup", "warning",
     "none", {"pid": 1234, "process": "python"}),
    ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 3", "soft_lockup", "host.soft_lockup", "critical",
     "reboot_node", {}),
    ("rcu: INFO: rcu_sched self-detected stall on CPU", "soft_lockup", "host.soft_lockup", "warning", "none", {}),
    ("Out of memory: Killed process 1234 (python) total-vm:1kB, anon-rss:2kB", "oom", "host.oom", "warning",
     "restart_workload", {"pid": 1234, "process": "python"}),
    ("Memory cgroup out of memory: Killed process 1234 (python) total-vm:1kB", "oom", "host.oom", "info", "none",
     {"pid": 1234}),
    ("EXT4-fs (sda1): Remounting filesystem read-only", "fs_readonly", "host.disk_readonly", "critical",
     "inspect_hardware", {}),
    ("XFS (nvme0n1p1): Filesystem has been shut down due to log error (0x2).", "fs_readonly", "host.disk_readonly",
     "critical", "inspect_hardware", {}),
    ("BTRFS info (device sda1: state E): forced readonly", "fs_readonly", "host.disk_readonly", "critical",
     "inspect_hardware", {}),
    ("Aborting journal on device sda1-8.", "fs_readonly", "host.disk_readonly", "critical", "inspect_hardware", {}),
    ("blk_update_request: I/O error, dev sda, sector 123 op 0x0:(READ) flags 0x0", "io_error", "host.io_errors",
     "warning", "inspect_hardware", {}),
    ("I/O error, dev nvme0n1, sector 0 op 0x0:(READ)", "io_error", "host.io_errors", "warning", "inspect_hardware", {}),
    ("critical medium error, dev sdb, sector 7", "io_error", "host.io_errors", "warning", "inspect_hardware", {}),
    ("Buffer I/O error on dev sda1, logical block 0, async page read", "io_error", "host.io_errors", "warning",
     "inspect_hardware", {}),
    ("nvme nvme0: I/O 12 QID 3 timeout, aborting", "io_error", "host.io_errors", "warning", "inspect_hardware", {}),
    ("nvme nvme0: controller is down; will reset: CSTS=0xffffffff", "io_error", "host.io_errors", "warning",
     "inspect_hardware", {}),
    ("EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2", "io_error", "host.io_errors", "warning",
     "inspect_hardware", {}),
    ("XFS (dm-0): metadata I/O error in \"xfs_trans\" at daddr 0x1", "io_error", "host.io_errors", "warning",
     "inspect_hardware", {}),
    ("md/raid1:md0: Disk failure on sdb1, disabling device.", "io_error", "host.io_errors", "warning",
     "inspect_hardware", {}),
    ("pt_main_thread[253]: segfault at 7f79 ip 00007f7c sp 00007f7c error 4 in libnccl.so.2[7f7c7ac00000+d3d3000]",
     "segfault", "host.segfault", "info", "none", {"pid": 253, "process": "pt_main_thread"}),
    ("mlx5_core 0000:9a:00.0: Port module event[error]: module 0, Cable error, Bus stuck", "mlx5",
     "infiniband.errors", "warning", "inspect_hardware", {"pci": "0000:9a:00"}),
    ("mlx5_core 0000:9a:00.0: poll_health:800:(pid 0): device's health compromised - reached miss count", "mlx5",
     "infiniband.errors", "critical", "inspect_hardware", {"pci": "0000:9a:00"}),
    ("mlx5_core 0000:9a:00.0 ens1f0np0: Link down", "link", "nic.down", "warning", "inspect_hardware",
     {"pci": "0000:9a:00", "link": None}),
    ("mlx5_core 0000:9a:00.0 ibp154s0: Link down", "link", "infiniband.down", "warning", "inspect_hardware", {}),
    ("igb 0000:01:00.0 eth0: igb: eth0 NIC Link is Down", "link", "nic.down", "warning", "inspect_hardware", {}),
    ("e1000e: eth0 NIC Link is Up 1000 Mbps Full Duplex", "link", "nic.down", "info", "none", {}),
    ("bond0: (slave eth1): link status definitely down, disabling slave", "link", "nic.down", "warning",
     "inspect_hardware", {}),
]  # fmt: skip

NOTHING = [
    "",
    "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.65.06",
    "NVRM: GPU at PCI:0000:3b:00: GPU-b850f46d-d5ea-c752-ddf3-c4453e44d3f7",
    "NVRM: Xid (PCI:0000:3b:00): ",
    "NVRM: Xid (PCI:0000:3b:00): x79, text",
    "NVRM: Xid (PCI:0000:3b): 79, text",
    "NVRM: Xid 79",
    "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): garbled, Fatal",
    f"{SXID}12028, Severity 0 Engine instance 32 Sub-engine instance 00",
    f"{SXID}12028, Data {{0x00000000, 0x00000000}}",
    "nvidia-nvlink: Nvlink Core is being initialized, major device number 234",
    "python: my log NVRM: Xid (PCI:0000:3b:00): 79, text",
    "systemd[1]: Started NVRM: Xid (PCI:0000:3b:00): 79 watcher.",
    "audit: EDAC MC0: 1 UE memory read error on CPU",
    "mlx5_core 0000:9a:00.0: firmware version: 22.31.1014",
    "mce: [Hardware Error]: TSC 0 ADDR 0",
    "EXT4-fs (sda1): re-mounted 1234 ro. Quota mode: none.",
    "I/O error, dev fd0, sector 0 op 0x0:(READ)",
    "ata1: SATA link down (SStatus 0 SControl 300)",
    "The link is down",
    "nvidia-uvm: Loaded the UVM driver, major device number 511.",
    "fallen off the bus and is not responding to commands.",
]


def fed(*lines: str) -> list[KernelEvent | None]:
    """What one log's parser makes of each line."""
    log = KernelLog()
    return [log.feed(KernelRecord(line)) for line in lines]


@pytest.mark.parametrize(("line", "kind", "finding", "severity", "action", "more"), LINES)
def test_lines(line: str, kind: str, finding: str, severity: str, action: str, more: dict[str, object]) -> None:
    """Each line that the driver or the kernel writes has its meaning."""
    (event,) = fed(line)
    assert event is not None
    assert (event.kind, event.finding, event.severity, event.action) == (kind, finding, severity, action)
    assert {name: getattr(event, name) for name in more} == more
    assert event.meaning
    assert event.line == line
    assert all(may_matter(prefix + line) for prefix in ("", "[  1.000000] ", "Nov 22 01:00:00 host kernel: "))


@pytest.mark.parametrize("line", NOTHING)
def test_lines_that_mean_nothing(line: str) -> None:
    """Ordinary lines, details of the line before, lines that quote, and halves of lines are nothing."""
    assert fed(line) == [None]


@pytest.mark.parametrize(
    "lines",
    [
        ("NVRM: The NVIDIA GPU 0000:b3:00.0", "NVRM: (PCI ID: 10de:26b5) installed in this system has",
         "NVRM: fallen off the bus and is not responding to commands."),
        ("NVRM: The NVIDIA GPU 0000:b3:00.0", "(PCI ID: 10de:26b5) installed in this system has",
         "fallen off the bus and is not responding to commands."),
        ("NVRM: The NVIDIA GPU 0000:b3:00.0 (PCI ID: 10de:1e07) installed in this",
         "NVRM: system has fallen off the bus and is not responding to commands."),
        ("NVRM: The NVIDIA GPU 0000:b3:00.0", "usb 1-1: new device", "NVRM: (PCI ID: 10de:26b5) installed",
         "NVRM: fallen off the bus and is not responding to commands."),
    ],
)  # fmt: skip
def test_one_message_over_several_lines(lines: tuple[str, ...]) -> None:
    """The message is one event, of the GPU in its first line, whatever others write between."""
    *before, last = fed(*lines, "usb 1-1: another")[:-1]
    assert before == [None] * len(before)
    assert last is not None
    assert (last.kind, last.finding, last.pci) == ("nvrm", "xid.79", "0000:b3:00")


def test_an_unfinished_message_is_forgotten() -> None:
    """A tail long after the head belongs to something else."""
    events = fed("NVRM: The NVIDIA GPU 0000:b3:00.0", *["usb"] * 50, "NVRM: fallen off the bus and is not responding")
    assert events == [None] * 52


def test_other_lines_within_the_message_are_events_of_their_own() -> None:
    """An XID between the lines is not lost."""
    events = fed("NVRM: The NVIDIA GPU 0000:b3:00.0", "NVRM: Xid (PCI:0000:3b:00): 13, x", "fallen off the bus and is"
                 " not responding")  # fmt: skip
    assert [event and event.finding for event in events] == [None, "xid.13", "xid.79"]


def test_nvml_events() -> None:
    """An XID that came through NVML without a text has its bucket's meaning."""
    event = nvml_xid_event(79, "0000:3b:00")
    assert (event.kind, event.finding, event.severity, event.line) == ("xid", "xid.79", "critical", "")
    assert nvml_xid_event(154, None).severity == "warning"


WORDS = st.sampled_from(
    ["NVRM: ", "Xid (", "PCI:", "0000:3b:00", "): ", "79", ", ", "pid=", "name=", "SXid (", "nvidia-nvswitch0: ",
     "GPU-I:", "Link ", "(0x", "0x1 ", "Fatal, ", "XC0 i0 ", "fallen off the bus", "74, ", "145, ", "154, ", "to 0x",
     "²", "٣", "\n", "\x00", "EDAC MC0: 1 UE ", "I/O error, dev ", "mlx5_core ", "segfault at "]
)  # fmt: skip


@given(st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=30).map("".join))
@example("NVRM: Xid (PCI:0000:3b:00): 79, pid=²,")
@example("NVRM: Xid (PCI:0000:3b:00 GPU-I:9999): 999999, pid=99999999999999999999, name=")
def test_no_text_is_too_much(text: str) -> None:
    """Whatever the kernel log holds, reading it raises nothing."""
    KernelLog().feed(KernelRecord(text))


@given(
    st.text(string.ascii_letters + string.digits + " .:[]-_", min_size=1, max_size=40).filter(
        lambda prefix: not prefix.isspace()
    ),
    st.sampled_from([line for line, kind, *_ in LINES if kind in ("xid", "sxid", "nvrm", "edac", "mce", "oom")]),
)
def test_a_line_that_only_mentions_an_xid(prefix: str, line: str) -> None:
    """A message that quotes an event anywhere but at its start is no event."""
    assert fed(prefix + line) == [None]
