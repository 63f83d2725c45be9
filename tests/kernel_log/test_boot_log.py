"""The log of one boot: what is recent, which earlier faults are kept, and how many."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gpuhealth.kernel_log.boot_log import MAX_EARLIER, BootLog
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.monitors.registry import kernel_log_parser

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
LOST = "NVRM: Xid (PCI:{}): 79, GPU has fallen off the bus."


def record(text: str, seconds: float) -> KernelRecord:
    """A record of so many seconds after the begin of what is recent."""
    return KernelRecord(text, BEGIN + timedelta(seconds=seconds))


def read(*records: KernelRecord) -> BootLog:
    """The log with these records."""
    log = BootLog(kernel_log_parser(), BEGIN)
    log.add(records)
    return log


def test_what_is_recent_and_what_is_kept() -> None:
    """Every recent event counts, in order; of earlier ones only those that a reset or a reboot ends."""
    lost = LOST.format("0000:01:00")
    log = read(
        record(lost, -9.0),
        record("NVRM: Xid (PCI:0000:01:00): 31, pid=1, name=x, MMU Fault", -8.0),
        record("EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0", -7.0),
        record("EXT4-fs (sda1): Remounting filesystem read-only", -6.0),
        record("NVRM: Xid (PCI:0000:01:00): 31, pid=1, name=x, MMU Fault", 0.0),
        record(lost, 1.0),
        KernelRecord(lost),
    )
    assert [fault.event.finding for fault in log.earlier] == ["xid.79", "host.disk_readonly"]
    assert [event.finding for event in log.recent] == ["xid.31", "xid.79", "xid.79"]


def test_a_repeated_fault_is_kept_once_with_its_last_time() -> None:
    """Of repetitions the last one is kept, and an end between them does not end it."""
    lost = LOST.format("0000:01:00")
    loaded = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.183.01"
    (fault,) = read(record(lost, -9.0), record(loaded, -8.0), record(lost, -7.0)).earlier
    assert (fault.event.time, fault.ended) == (BEGIN - timedelta(seconds=7.0), False)
    (fault,) = read(record(lost, -9.0), record(lost, -8.0), record(loaded, 5.0)).earlier
    assert fault.ended


def test_a_flood_is_bounded() -> None:
    """Of more different faults than can be real the newest are kept."""
    addresses = [f"{number:04x}:01:00" for number in range(MAX_EARLIER + 5)]
    log = read(*(record(LOST.format(address), -9.0) for address in addresses))
    assert [fault.event.pci for fault in log.earlier] == addresses[5:]
