"""Oopses, lockups and hung tasks, which are messages of many lines."""

from __future__ import annotations

import pytest

from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.registry import kernel_log_parser

# open-gpu-kernel-modules issue 276, kernel 5.15; shortened
X86 = """\
BUG: kernel NULL pointer dereference, address: 0000000000000fa8
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 112897067 P4D 112897067 PUD 112898067 PMD 0
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 7 PID: 689 Comm: systemd-udevd Tainted: G           O      5.15.41-gentoo #1
RIP: 0010:nvlogInit+0x6/0xd0 [nvidia]
Code: 02 00 00 48 c7 c2 50 92 27 a0 b9 04 00 00 00 49 c7 c0 99 1a 2a a0 41 b9 51 00
Call Trace:
 <TASK>
 nvidia_init_module+0x1a/0x600 [nvidia]
 do_one_initcall+0x41/0x1d0"""
# nvidia-docker issue 377, kernel 3.10
OLD_X86 = """\
BUG: unable to handle kernel NULL pointer dereference at 0000000000000340
IP: [<ffffffffc075549f>] _nv011745rm+0x1f/0x170 [nvidia]
PGD 0
Oops: 0000 [#1] SMP
Modules linked in: nvidia_uvm(POE) nvidia(POE)"""
OLD_RIP = """\
general protection fault: 0000 [#1] SMP
Modules linked in: nvidia_uvm(POE) nvidia(POE) ip_tables
CPU: 2 PID: 4121 Comm: python Tainted: P           OE  ------------   3.10.0-957.el7.x86_64 #1
task: ffff9a8b2f1c6180 ti: ffff9a8b1ad34000 task.ti: ffff9a8b1ad34000
RIP: 0010:[<ffffffffc0a12345>]  [<ffffffffc0a12345>] uvm_gpu_release+0x15/0x30 [nvidia_uvm]"""
ARM64 = """\
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008
Mem abort info:
  ESR = 0x0000000096000004
  EC = 0x25: DABT (current EL), IL = 32 bits
Internal error: Oops: 0000000096000004 [#1] SMP
Modules linked in: nvidia_uvm(POE) nvidia(POE)
CPU: 12 PID: 3201 Comm: python Tainted: P           OE      6.8.0-1021-nvidia-64k #23
pstate: 63400009 (nZCv daif +PAN -UAO +TCO +DIT -SSBS BTYPE=--)
pc : uvm_va_block_cpu_fault+0x1c/0x4c0 [nvidia_uvm]
lr : uvm_vm_fault+0x54/0x90 [nvidia_uvm]"""
# k8s-device-plugin issue 941
GPF = """\
general protection fault, probably for non-canonical address 0x25b5f6bb1a24827e: 0000 [#1] SMP NOPTI
CPU: 2 PID: 4121 Comm: python Tainted: P           OE      6.8.0-41-generic #41
RIP: 0010:_nv045796rm+0x2c/0x40 [nvidia 5e0d1c2b3a4f5e6d7c8b9a0f1e2d3c4b5a697887]"""
# vgpu_unlock-rs issue 7
ELSEWHERE = """\
BUG: kernel NULL pointer dereference, address: 0000000000000008
Oops: 0000 [#1] SMP PTI
CPU: 19 PID: 3230 Comm: kvm Tainted: P           O      5.15.30-2-pve #1
RIP: 0010:__gup_longterm_locked+0x128/0x430
Modules linked in: nvidia_uvm(PO) nvidia(PO) [last unloaded: nvidia]
Call Trace:
 nvidia_vgpu_vfio_pin+0x1/0x2 [nvidia_vgpu_vfio]"""


def fed(text: str) -> list[KernelEvent]:
    """The events of the lines."""
    parser = kernel_log_parser()
    return [event for line in text.split("\n") if (event := parser.feed(KernelRecord(line)))]


@pytest.mark.parametrize(
    ("text", "module"),
    [(X86, "nvidia"), (OLD_X86, "nvidia"), (OLD_RIP, "nvidia_uvm"), (ARM64, "nvidia_uvm"), (GPF, "nvidia")],
    ids=["x86", "old x86", "old RIP", "arm64", "protection fault"],
)
def test_an_oops_in_the_driver_is_critical(text: str, module: str) -> None:
    """The line with the instruction pointer says in which module of the driver it was: the node needs a reboot."""
    events = fed(text)
    assert {event.finding for event in events} == {"host.kernel_oops"}
    assert {event.action for event in events} == {"reboot_node"}
    (critical,) = (event for event in events if event.severity == "critical")
    assert f"({module})" in critical.meaning


def test_an_oops_elsewhere_is_a_warning() -> None:
    """Loaded modules, and the driver in the stack of another module's oops, are no evidence against the driver."""
    events = fed(ELSEWHERE)
    assert [(event.finding, event.severity) for event in events] == [("host.kernel_oops", "warning")] * 2


@pytest.mark.parametrize("module", ["nvidia_drm", "nvidia_modeset", "nvidia_peermem", "gdrdrv"])
def test_modules_of_the_driver(module: str) -> None:
    """All modules that handle GPUs count, and no other whose name is similar."""
    head = "Oops: 0000 [#1] SMP\nRIP: 0010:f+0x1/0x2 "
    assert fed(f"{head}[{module}]")[-1].severity == "critical"
    for other in ("nvidia_wmi_ec_backlight", "nvidia_cspmu", "nvidiafb", "nvme", "nouveau"):
        assert len(fed(f"{head}[{other}]")) == 1, other


def test_a_pointer_long_after_an_oops() -> None:
    """A register dump of something else later in the log does not make an earlier oops worse."""
    assert len(fed("Oops: 0000 [#1] SMP\n" + "x\n" * 40 + "RIP: 0010:f+0x1/0x2 [nvidia]")) == 1


def test_a_task_that_hangs_in_the_driver() -> None:
    """The stack below a hung task says that it waits in the driver: only a reboot ends that."""
    head = (
        "INFO: task nvidia-smi:4711 blocked for more than 120 seconds.\ntask:nvidia-smi state:D\nCall Trace:\n <TASK>"
    )
    stack = "\n __schedule+0x2cd/0x8b0\n schedule+0x63/0x110\n rwsem_down_write_slowpath+0x2d7/0x6e0\n{}"
    inside = fed(head + stack.format(" os_acquire_rwlock_write+0x35/0x50 [nvidia]\n nvidia_open+0x1/0x2 [nvidia]"))
    assert [(event.finding, event.action) for event in inside] == [
        ("host.hung_task", "none"),
        ("host.hung_task", "reboot_node"),
    ]
    assert "(nvidia)" in inside[1].meaning
    assert len(fed(head + stack.format(" nfs_wait_bit_killable+0x35/0x50 [nfs]"))) == 1
    assert len(fed(head + stack.format(" ? _nv045796rm+0x2c/0x40 [nvidia]"))) == 1, "left over on the stack"


def test_a_cpu_that_is_stuck_in_the_driver() -> None:
    """The instruction pointer below a soft lockup says that the CPU is stuck in the driver."""
    head = "watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:1234]\nModules linked in: nvidia(POE)\nRIP: 0010:"
    inside = fed(f"{head}_nv012345rm+0x1/0x2 [nvidia]")
    assert [(event.finding, event.action) for event in inside] == [
        ("host.cpu_lockup", "none"),
        ("host.cpu_lockup", "reboot_node"),
    ]
    assert len(fed(f"{head}native_queued_spin_lock_slowpath+0x1/0x2")) == 1
