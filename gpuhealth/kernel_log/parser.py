"""From records of the kernel log to events: the one place where kernel text gets a meaning."""

from __future__ import annotations

from gpuhealth.kernel_log import user_text
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.kernel_log import patterns as host_lines
from gpuhealth.monitors.nvidia.catalog import log_lines as nvidia_lines
from gpuhealth.monitors.nvidia.catalog import xid

_LOST_LINES_APART = 16
"""How many records of others may stand between the lines of one message of the driver."""


def may_matter(text: str) -> bool:
    """Whether a line, with or without a log's prefix, can mean anything: cheap, and never wrongly false.

    Nearly all lines of a log mean nothing; this is what makes reading them cheap. Plain substring tests are several
    times faster here than one regular expression with alternatives.
    """
    return (
        "NVRM" in text
        or "rror" in text  # PCIe Bus Error, AER, [Hardware Error], I/O error, EXT4-fs error, medium error, mlx5
        or "vidia-nv" in text
        or "mlx5_core" in text
        or "ink " in text  # Link is Down, link status
        or "EDAC" in text
        or "nvme" in text
        or "blocked " in text
        or "lockup" in text
        or "LOCKUP" in text
        or "segfault" in text
        or "process " in text  # Killed process
        or "ead-only" in text
        or "eadonly" in text
        or "hut down" in text
        or "hutting down" in text
        or "stall" in text
        or "fallen off" in text
        or "DPC: " in text
        or "Memory failure" in text
        or "Aborting journal" in text
        or "Disk failure" in text
    )


class KernelLog:
    """Reads one kernel log, record by record; remembers only the lines of a message that is not yet whole."""

    def __init__(self, driver: int | None = None) -> None:
        self.driver = driver  # branch of the NVIDIA driver (570, 575 …), once it is known
        self._lost: str | None = None  # address in the first line of "The NVIDIA GPU ... fallen off the bus"
        self._apart = 0

    def feed(self, record: KernelRecord) -> KernelEvent | None:
        """The event of this record, if it means something. Never raises, whatever the text."""
        text = record.text
        if self._lost is not None:
            self._count_apart()
        if not may_matter(text):
            return None
        if text.startswith("NVRM: Xid (") and (event := nvidia_lines.xid_event(record, self.driver)):
            return None if user_text.file_first(text) else event
        if form := user_text.event_form(text):
            return host_lines.user_event(record, form)
        # Most records mean nothing: it is cheaper to ask last whether what seems to mean something holds a user's text.
        lost = self._lost
        event = self._by_patterns(record)
        if (event is not None or self._lost != lost) and user_text.recognise(text):
            self._lost = lost
            return None
        return event

    def _by_patterns(self, record: KernelRecord) -> KernelEvent | None:
        text = record.text
        if self._lost is not None and (event := self._lost_continued(record)):
            return event
        if text.startswith(("NVRM: ", "nvidia-nv")):
            if text.startswith("nvidia-nvswitch") and ": SXid (" in text:
                return nvidia_lines.sxid_event(record)
            event = nvidia_lines.nvrm_event(record)
            if event is None and (head := nvidia_lines.lost_head(text)):
                self._lost, self._apart = head, 0
            return event
        return host_lines.host_event(record)

    def _lost_continued(self, record: KernelRecord) -> KernelEvent | None:
        assert self._lost is not None
        if nvidia_lines.is_lost_tail(record.text):
            event = nvidia_lines.lost_event(record, self._lost)
            self._lost = None
            return event
        return None

    def _count_apart(self) -> None:
        """Another record, or the last of the message; after too many the message is forgotten."""
        self._apart += 1
        if self._apart > _LOST_LINES_APART + 1:
            self._lost = None


def nvml_xid_event(code: int, pci: str | None, gpu_instance: int | None = None) -> KernelEvent:
    """The event of an XID that NVML tells of, which comes without text; for nodes whose kernel log cannot be read."""
    found = xid.assess(code, "")
    return KernelEvent(
        kind="xid",
        line="",
        finding=f"xid.{code}",
        severity=found.severity,
        action=found.action,
        code=code,
        pci=pci,
        gpu_instance=gpu_instance,
        meaning=found.meaning,
    )
