"""A node whose kernel reports XIDs, for tests of what is made of them."""

from __future__ import annotations

from datetime import datetime, timedelta

from gpuhealth.model.finding import Finding, Outcome
from gpuhealth.model.kernel_event import KernelEvent, KernelLogStatus, KernelRecord
from gpuhealth.model.missing import UNREAD, Missing, Reading
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.kernel_log.monitor import MONITOR as KERNEL_LOG
from gpuhealth.monitors.nvidia.checks.xid import CHECK
from gpuhealth.monitors.nvidia.monitor import MONITOR
from gpuhealth.monitors.nvidia.readings import NvidiaReadings, NvmlReadings, PciDevice, Release
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.monitors.settings import Settings
from testing.readings import START, gpu

READ = KernelLogStatus("kmsg")
SETTINGS = Settings()


class Node:
    """A node with GPUs at 0000:01:00 and on, whose kernel writes lines."""

    def __init__(self, log: Reading[KernelLogStatus] = READ) -> None:
        self.gpus = [gpu(0), gpu(1)]
        self.away: Missing | None = None  # why NVML does not answer
        self.release: Release | None = None
        self.bus: Reading[tuple[PciDevice, ...]] = UNREAD
        self.memory = Memory()
        self._parser = kernel_log_parser()
        self._log = log

    def says(self, *lines: str, after: float = 0.0) -> list[Outcome]:
        """What is made of lines that are logged together, so many seconds after the start."""
        when = START + timedelta(seconds=after)
        events = [event for line in lines if (event := self._parser.feed(KernelRecord(line, when)))]
        return [each for each in self.judged(*events, when=when) if each.code != "xid"]

    def judged(self, *events: KernelEvent, when: datetime = START) -> list[Outcome]:
        """What is made of events."""
        judge = Judge(SETTINGS, self.memory, boot_id="boot", time=when)
        judge.set_readings(KERNEL_LOG, self._log, when)
        nvml = NvmlReadings(answered=True, problem=self.away, gpus=() if self.away else tuple(self.gpus))
        judge.set_readings(MONITOR, NvidiaReadings(nvml=nvml, pci=self.bus, release=self.release), when)
        return list(CHECK.run(judge.context(MONITOR, events)))

    def finds(self, *lines: str, after: float = 0.0) -> list[Finding]:
        """The findings among them."""
        return [each for each in self.says(*lines, after=after) if isinstance(each, Finding)]


def line(
    code: int,
    bus: int = 1,
    pid: int = 100,
    text: str = "text",
    domain: int = 0,
    instance: str = "",
    name: str = "python",
) -> str:
    """A line of an XID on the GPU at that bus."""
    return f"NVRM: Xid (PCI:{domain:04x}:{bus:02x}:00{instance}): {code}, pid={pid}, name={name}, {text}"
