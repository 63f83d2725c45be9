"""Kernel messages out of every format that logs come in."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhealth.kernel_log.formats import classify, message, records
from gpuhealth.monitors.registry import kernel_log_parser

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus."
BOOTED = datetime(2026, 11, 22, tzinfo=UTC)
UNIX = 1_795_311_827

FORMATS = {
    "bare": XID,
    "raw record": f"3,1234,123456789,-;{XID}",
    "raw record with caller": f"3,1234,123456789,-,caller=T77;{XID}",
    "raw record of a writer": f"11,1234,123456789,-;{XID}",
    "dmesg": f"[  123.456789] {XID}",
    "dmesg with caller": f"[  123.456789][   T77] {XID}",
    "dmesg of 2.40 with caller": f"[  123.456789] [   T77] {XID}",
    "dmesg -T with caller": f"[Sun Nov 22 01:43:47 2026] [   T77] {XID}",
    "dmesg iso with caller": f"2026-11-22T01:43:47,123456+00:00 [    C2] {XID}",
    "dmesg -e with caller": f"[Nov22 01:43] [   T77] {XID}",
    "dmesg -x with caller": f"kern  :err   : [  123.456789] [   T77] {XID}",
    "dmesg -d": f"[  123.456789 <    0.000012>] {XID}",
    "dmesg -T": f"[Sun Nov 22 01:43:47 2026] {XID}",
    "dmesg iso": f"2026-11-22T01:43:47,123456+00:00 {XID}",
    "dmesg -e": f"[Nov22 01:43] {XID}",
    "dmesg -H": f"[  +0.000012] {XID}",
    "dmesg -x": f"kern  :err   : [  123.456789] {XID}",
    "dmesg -x -T": f"kern  :err   : [Sun Nov 22 01:43:47 2026] {XID}",
    "dmesg -x -t": f"kern  :err   : {XID}",
    "dmesg -x iso": f"kern  :err   : 2026-11-22T01:43:47,123456+00:00 {XID}",
    "dmesg -r": f"<3>[  123.456789] {XID}",
    "dmesg in colour": f"\x1b[32m[  123.456789] \x1b[0m\x1b[31m{XID}\x1b[0m",
    "syslog": f"Nov 22 01:43:47 gpu-17 kernel: {XID}",
    "syslog of a single-digit day": f"Nov  2 01:43:47 gpu-17 kernel: {XID}",
    "syslog with the kernel's time": f"Nov 22 01:43:47 gpu-17 kernel: [  123.456789] {XID}",
    "syslog with priority": f"<3>Nov 22 01:43:47 gpu-17 kernel: [  123.456789] {XID}",
    "rfc5424": f"<3>1 2026-11-22T01:43:47.123456+00:00 gpu-17 kernel - - - {XID}",
    "rfc5424 with data": f'<3>1 2026-11-22T01:43:47.123456Z gpu-17 kernel - - [meta sequenceId="1"] {XID}',
    "rsyslog iso": f"2026-11-22T01:43:47.123456+00:00 gpu-17 kernel: {XID}",
    "rsyslog iso with the kernel's time": f"2026-11-22T01:43:47.123456+00:00 gpu-17 kernel: [  123.456789] {XID}",
    "journalctl short": f"Nov 22 01:43:47 gpu-17 kernel: {XID}",
    "journalctl short-precise": f"Nov 22 01:43:47.123456 gpu-17 kernel: {XID}",
    "journalctl short-iso": f"2026-11-22T01:43:47+0000 gpu-17 kernel: {XID}",
    "journalctl short-iso-precise": f"2026-11-22T01:43:47.123456+00:00 gpu-17 kernel: {XID}",
    "journalctl short-full": f"Sun 2026-11-22 01:43:47 UTC gpu-17 kernel: {XID}",
    "journalctl short-monotonic": f"[  123.456789] gpu-17 kernel: {XID}",
    "journalctl short-unix": f"{UNIX}.123456 gpu-17 kernel: {XID}",
    "journald json": json.dumps({"_TRANSPORT": "kernel", "PRIORITY": "3", "MESSAGE": XID, "_HOSTNAME": "gpu-17"}),
    "journald json by identifier": json.dumps({"SYSLOG_IDENTIFIER": "kernel", "MESSAGE": XID}),
    "journald json bytes": json.dumps({"_TRANSPORT": "kernel", "MESSAGE": list(XID.encode())}),
    "journald json bytes, close": json.dumps(
        {"MESSAGE": [*XID.encode()], "_TRANSPORT": "kernel"}, separators=(",", ":")
    ),
    "kernel alone": f"kernel: {XID}",
    "second line of a record": f"               {XID}",
}  # fmt: skip

OTHERS = {
    "a program's syslog": f"Nov 22 01:43:47 gpu-17 python[123]: {XID}",
    "a program's syslog with priority": f"<11>Nov 22 01:43:47 gpu-17 python[123]: {XID}",
    "a program's iso": f"2026-11-22T01:43:47.123456+00:00 gpu-17 python[123]: {XID}",
    "a program's rfc5424": f"<11>1 2026-11-22T01:43:47.123456+00:00 gpu-17 python 123 - - {XID}",
    "a program's unix": f"{UNIX}.123456 gpu-17 python[123]: {XID}",
    "a program's full": f"Sun 2026-11-22 01:43:47 UTC gpu-17 python[123]: {XID}",
    "a program's monotonic": f"[  123.456789] gpu-17 python[123]: {XID}",
    "a daemon's raw record": f"30,1234,123456789,-;{XID}",
    "a daemon's dmesg -x": f"daemon:info  : [  123.456789] {XID}",
    "a program's json": json.dumps({"_TRANSPORT": "syslog", "SYSLOG_IDENTIFIER": "python", "MESSAGE": XID}),
    "one that calls itself kernel": json.dumps({"_TRANSPORT": "stdout", "SYSLOG_IDENTIFIER": "kernel", "MESSAGE": XID}),
    "a quotation": f"[  123.456789] python: I saw {XID}",
    "a quotation by systemd": f"Nov 22 01:43:47 gpu-17 kernel: systemd[1]: I saw {XID}",
    "a tag": f" MESSAGE={XID}",
}


def classified(lines: Iterable[bytes | str]) -> list[dict[str, Any]]:
    """The events of a log."""
    return list(classify(lines, kernel_log_parser()))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("binary", [False, True], ids=["text", "bytes"])
def test_every_format(name: str, binary: bool) -> None:
    """Every format, as text or bytes, yields the same event with its line number."""
    line = FORMATS[name]
    lines: list[bytes | str] = ["usb 1-1: new device\n", f"{line}\n"]
    found = classified([each.encode() for each in lines if isinstance(each, str)] if binary else lines)
    assert found == [
        {
            "number": 2,
            "line": line,
            "kind": "xid",
            "code": 79,
            "pci": "0000:3b:00",
            "pid": 1234,
            "process": "python",
            "severity": "critical",
            "action": "reboot_node",
            "finding": "xid.79",
        }
    ]


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_kernel_did_not_write(name: str) -> None:
    """A program that mentions an XID is nothing."""
    assert classified([OTHERS[name]]) == []


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("raw record", 123.456789),
        ("dmesg", 123.456789),
        ("dmesg -T", 3600 + 43 * 60 + 47),
        ("dmesg iso", 3600 + 43 * 60 + 47.123456),
        ("rsyslog iso", 3600 + 43 * 60 + 47.123456),
        ("journalctl short-iso", 3600 + 43 * 60 + 47),
        ("rfc5424", 3600 + 43 * 60 + 47.123456),
    ],
)
def test_times(name: str, seconds: float) -> None:
    """A record has the time that its line names."""
    (record,) = records([FORMATS[name]], BOOTED)
    assert record.time == BOOTED + timedelta(seconds=seconds)
    assert record.text == XID


def test_times_that_are_not_there() -> None:
    """A time since boot needs the boot's, a syslog date has no year: such a record has no time."""
    assert [record.time for record in records([FORMATS["dmesg"], FORMATS["syslog"], XID])] == [None] * 3
    (entry,) = records([json.dumps({"_TRANSPORT": "kernel", "MESSAGE": XID, "__REALTIME_TIMESTAMP": f"{UNIX}000000"})])
    assert entry.time == datetime.fromtimestamp(UNIX, UTC)


def test_a_raw_record_in_full() -> None:
    """Sequence and level are kept; what the kernel escaped is as it was written."""
    lines = ["3,77,5000000,-;one\\x0atwo \\xc3\\xa9 \\x5cx", " SUBSYSTEM=pci", " DEVICE=+pci:0000:3b:00.0"]
    (record,) = records(lines, BOOTED)
    assert (record.text, record.sequence, record.priority) == ("one\ntwo é \\x", 77, 3)
    assert record.time == BOOTED + timedelta(seconds=5)


def test_the_first_line_after_a_crash() -> None:
    """The zeros that a crash leaves in a log file do not hide the line behind them."""
    (found,) = classified([b"\0" * 4096 + FORMATS["syslog"].encode() + b"\n"])
    assert (found["finding"], found["line"]) == ("xid.79", FORMATS["syslog"])


def test_dmesg_lists_a_record_over_several_lines() -> None:
    """The indented lines that follow belong to the kernel, and the event is that of the last line."""
    lines = [
        "[ 1843.308145] NVRM: The NVIDIA GPU 0000:b3:00.0",
        "               NVRM: (PCI ID: 10de:26b5) installed in this system has",
        "               NVRM: fallen off the bus and is not responding to commands.",
    ]
    (found,) = classified(lines)
    assert (found["number"], found["kind"], found["finding"], found["pci"]) == (3, "nvrm", "xid.79", "0000:b3:00")


def test_journald_keeps_them_in_one_message() -> None:
    """A multi-line kernel record in one JSON message is one event."""
    text = "NVRM: The NVIDIA GPU 0000:b3:00.0\nNVRM: (PCI ID: 1:2) installed in this system has\nNVRM: fallen off the bus and is not responding"  # noqa: E501 - one message
    (found,) = classified([json.dumps({"_TRANSPORT": "kernel", "MESSAGE": text})])
    assert found["pci"] == "0000:b3:00"


def test_details_of_an_sxid_are_not_events() -> None:
    """Three lines of one SXid are one event."""
    head = "[    1.000000] nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 12028, "
    lines = [f"{head}Non-fatal, Link 32 text", f"{head}Severity 0 Engine instance 32", f"{head}Data {{0x00000000}}"]
    assert [found["number"] for found in classified(lines)] == [1]


@pytest.mark.parametrize(
    "line",
    [
        "<3>" * 5000 + XID,
        "kern  :err   : " * 5000 + XID,
        "[" * 100_000 + "NVRM",
        '{"MESSAGE": ' * 5000 + "NVRM",
        '{"_TRANSPORT": "kernel", "MESSAGE": [300, "x"], "NVRM": 1}',
        '{"_TRANSPORT": ["kernel"], "MESSAGE": "NVRM: Xid"}',
        "\x00\x01NVRM\ud800",
    ],
    ids=["priorities", "levels", "brackets", "json", "no bytes", "list", "surrogate"],
)
def test_hostile_lines(line: str) -> None:
    """Lines made to break a parser do not."""
    assert classified([line]) == []


@given(st.lists(st.one_of(st.binary(max_size=80), st.text(max_size=80)), max_size=20))
def test_no_input_is_too_much(lines: list[bytes | str]) -> None:
    """Whatever a file holds, reading it raises nothing."""
    classified(lines)
    list(records(lines, BOOTED))


PARTS = st.sampled_from(
    ["<3>", "[  1.0] ", "6,1,2,-;", "Nov 22 01:43:47 h ", "kernel: ", "2026-13-45T99:99:99Z ", "kern  :err   : ", XID,
     "{", '"MESSAGE":', "\\xff", " ", "1 ", "[Sun Nov 99 01:43:47 9999] ", "999999999999.9 "]
)  # fmt: skip


@given(st.lists(PARTS, max_size=8).map("".join))
def test_no_mixture_is_too_much(line: str) -> None:
    """Prefixes of all formats in any order raise nothing."""
    classified([line])
    list(records([line], BOOTED))
    message(line)
