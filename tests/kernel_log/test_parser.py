"""Kernel-log lines and what they mean."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testing.benign_lines import BENIGN_LINES
from testing.kernel_lines import LINES, SXID

from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.monitors.nvidia.nvml.child import XidSeen
from gpuhealth.monitors.nvidia.probe import event_of
from gpuhealth.monitors.registry import kernel_log_parser
from gpuhealth.runtime.text import printable

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
    *BENIGN_LINES,
]


def fed(*lines: str) -> list[KernelEvent | None]:
    """What one log's parser makes of each line."""
    log = kernel_log_parser()
    return [log.feed(KernelRecord(line)) for line in lines]


@pytest.mark.parametrize(("line", "kind", "finding", "severity", "action", "more"), LINES)
def test_lines(line: str, kind: str, finding: str, severity: str, action: str, more: dict[str, object]) -> None:
    """Each line that the driver or the kernel writes has its meaning."""
    (event,) = fed(line)
    assert event is not None
    assert (event.kind, event.finding, event.severity, event.action) == (kind, finding, severity, action)
    assert {name: getattr(event, name) for name in more} == more
    assert event.meaning
    assert event.line == printable(line)
    may_matter = kernel_log_parser().may_matter
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


UNSUPPORTED = ("NVRM: The NVIDIA GPU 000a:00:00.0 (PCI ID: 10de:2330)",
               "NVRM: installed in this system is not supported by the",
               "NVRM: NVIDIA 580.126.09 driver release.")  # fmt: skip
INVALID_BAR = ("NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:",
               "NVRM: BAR1 is 0M @ 0x0 (PCI:0000:05:00.0)")  # fmt: skip
FIRMWARE = ("NVRM: GPU0 _kgspFwContainerVerifyVersion: GSP firmware image version mismatch: got version 570.172.08,"
            " expected version 570.190", "NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x61:0x0:1)")  # fmt: skip


def test_a_gpu_that_the_driver_does_not_support() -> None:
    """The address is in the first line of the message, what is wrong in the second: other software helps."""
    *before, unsupported, last = fed(*UNSUPPORTED)
    assert (before, last) == ([None], None)
    assert unsupported is not None
    assert (unsupported.finding, unsupported.action, unsupported.pci) == (
        "driver.init_failed", "update_software", "000a:00:00"
    )  # fmt: skip


def test_a_bar_that_is_invalid() -> None:
    """The two lines are one event, of the GPU in the second."""
    first, second = fed(*INVALID_BAR)
    assert first is None
    assert second is not None
    assert (second.finding, second.pci) == ("driver.init_failed", "0000:05:00")


def test_firmware_of_another_version() -> None:
    """A GPU that fails after the driver has complained about its firmware needs other software; any other a reboot."""
    mismatch, failed = fed(*FIRMWARE)
    assert mismatch is not None
    assert failed is not None
    assert (mismatch.finding, mismatch.action) == ("driver.init_failed", "update_software")
    assert (failed.finding, failed.action, failed.pci) == ("driver.init_failed", "update_software", "0000:02:00")
    (alone,) = fed(FIRMWARE[1])
    assert alone is not None
    assert alone.action == "reboot_node"


NAME = "\x1b[2J\x07\u202e\n"
"""The name of a program that clears the screen, rings, and turns what follows around."""


@pytest.mark.parametrize(
    "line",
    [
        f"NVRM: Xid (PCI:0000:3b:00): 13, pid=12, name={NAME}, text",
        f"{NAME}[12]: segfault at 0 ip 0 sp 0 error 4 in {NAME}[7f00+1000]",
        f"INFO: task {NAME}:12 blocked for more than 120 seconds.",
        f"watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [{NAME}:12]",
        f"Out of memory: Killed process 12 ({NAME}) total-vm:1kB, anon-rss:1kB",
        f"Memory failure: 0x12: Sending SIGBUS to {NAME}:12 due to hardware memory corruption",
        f"NVRM: API mismatch: the client '{NAME}' (pid 12) has version 1",
        "I/O error, dev \x1b[2J, sector 0 op 0x0:(READ)",
    ],
)
def test_events_are_printable(line: str) -> None:
    """No control character of a name reaches a terminal, a Node or a log by way of an event."""
    (event,) = fed(line)
    assert event is not None
    assert event.line == printable(line)
    assert all(text.isprintable() for text in (event.line, event.meaning, event.process or "", event.disk))


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
    event = event_of(XidSeen(79, "00000000:3B:00.0", "GPU-1", 0.0))
    assert (event.kind, event.finding, event.severity, event.line) == ("xid", "xid.79", "critical", "")
    assert event.pci == "0000:3b:00"
    unplaced = event_of(XidSeen(154, "", "", 0.0))
    assert (unplaced.severity, unplaced.pci) == ("warning", None)


WORDS = st.sampled_from(
    ["NVRM: ", "Xid (", "PCI:", "0000:3b:00", "): ", "79", ", ", "pid=", "name=", "SXid (", "nvidia-nvswitch0: ",
     "GPU-I:", "Link ", "(0x", "0x1 ", "Fatal, ", "XC0 i0 ", "fallen off the bus", "74, ", "145, ", "154, ", "to 0x",
     "²", "٣", "\n", "\x00", "EDAC MC0: 1 UE ", "I/O error, dev ", "mlx5_core ", "segfault at "]
)  # fmt: skip


@given(st.sampled_from([line for line, *_ in LINES]), st.data())
def test_no_mutation_of_a_line_is_too_much(line: str, data: st.DataObject) -> None:
    """A line that is cut, mixed with another or changed in the middle raises nothing, alone or in a message."""
    parser = kernel_log_parser()
    for _ in range(3):
        at, size = data.draw(st.integers(0, len(line))), data.draw(st.integers(0, 40))
        insert = data.draw(st.one_of(WORDS, st.text(max_size=4), st.sampled_from([each for each, *_ in LINES])))
        line = f"{line[:at]}{insert}{line[at + size :]}"
        event = parser.feed(KernelRecord(line))
        assert event is None or event.line.isprintable()


@given(st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=30).map("".join))
@example("NVRM: Xid (PCI:0000:3b:00): 79, pid=²,")
@example("NVRM: Xid (PCI:0000:3b:00 GPU-I:9999): 999999, pid=99999999999999999999, name=")
def test_no_text_is_too_much(text: str) -> None:
    """Whatever the kernel log holds, reading it raises nothing."""
    kernel_log_parser().feed(KernelRecord(text))


@given(
    st.text(string.ascii_letters + string.digits + " .:[]-_", min_size=1, max_size=40).filter(
        lambda prefix: not prefix.isspace()
    ),
    st.sampled_from([line for line, kind, *_ in LINES if kind in ("xid", "sxid", "nvrm", "edac", "mce", "oom")]),
)
def test_a_line_that_only_mentions_an_xid(prefix: str, line: str) -> None:
    """A message that quotes an event anywhere but at its start is no event."""
    assert fed(prefix + line) == [None]


def test_names_of_programs_control_no_terminal() -> None:
    """Control characters in the name of a program are escaped in the event: it is shown, journalled and published."""
    escape, end = "\x1b[31m", "\x85"
    (event,) = fed(f"NVRM: Xid (PCI:0000:3b:00): 13, pid=1, name={escape}{end}, Graphics Exception")
    assert event is not None
    assert (event.finding, event.process) == ("xid.13", r"\x1b[31m\x85")
    (killed,) = fed(f"Out of memory: Killed process 12 ({escape}) total-vm:1kB")
    assert killed is not None
    assert all(text.isprintable() for text in (event.line, killed.line, killed.meaning, killed.process or ""))
