"""Kernel messages out of every format that logs come in."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import log_formats
from testing.kernel_lines import LINES
from testing.log_formats import MESSAGE, text
from testing.pasted_log_lines import FORMS
from testing.real_log_lines import LINES as REAL_LINES
from testing.real_log_lines import RealLine

from gpuhealth.kernel_log.formats import KernelLogText
from gpuhealth.monitors.registry import kernel_log_parser

NAMED = [(group, name) for group, forms in log_formats.ALL.items() for name in forms]
FACTS = {
    "kind": "xid",
    "code": 79,
    "pci": "0000:01:00",
    "pid": 6755,
    "process": "python",
    "severity": "critical",
    "action": "reboot_node",
    "finding": "xid.79",
}


def read(lines: Iterable[bytes | str]) -> tuple[list[dict[str, Any]], int]:
    """The events of a log, and how many lines were not understood."""
    log = KernelLogText(kernel_log_parser())
    return [found.described() for found in log.events(lines)], log.unread


def findings(text: str) -> list[str]:
    """The findings of a text."""
    return [event["finding"] for event in read(text.split("\n"))[0]]


@pytest.mark.parametrize(("group", "name"), NAMED)
@pytest.mark.parametrize("binary", [False, True], ids=["text", "bytes"])
def test_every_format(group: str, name: str, binary: bool) -> None:
    """Every format, as text or bytes, yields the same event, and nothing is left that was not understood."""
    written = f"usb 1-1: new device\n{text(log_formats.ALL[group][name])}\nusb 1-2: new device"
    lines: list[bytes | str] = [*written.split("\n")]
    found, unread = read([line.encode() if isinstance(line, str) else line for line in lines] if binary else lines)
    facts = {key: FACTS[key] for key in FACTS if group != "damaged" or key not in ("pid", "process")}
    assert [{key: event[key] for key in facts} for event in found] == [facts]
    assert unread == 0
    assert 2 <= found[0]["number"] < len(lines)


@pytest.mark.parametrize("form", FORMS)
def test_pasted_lines(form: str) -> None:
    """A message is found behind any prefix with which people paste it, and every line is understood."""
    found, unread = read(text(form).split("\n"))
    assert [(event["finding"], event["pci"], unread) for event in found] == [("xid.79", "0000:01:00", 0)]


@pytest.mark.parametrize("name", log_formats.MENTIONS)
def test_what_the_kernel_did_not_write(name: str) -> None:
    """A sentence, source code or a program's log line that mentions an XID is no event, and not reported as unread."""
    found, unread = read(text(log_formats.MENTIONS[name]).split("\n"))
    assert [event for event in found if event["kind"] == "xid"] == []
    assert unread == 0


@pytest.mark.parametrize("name", log_formats.REFUSED)
def test_what_is_refused(name: str) -> None:
    """A whole message that cannot be attributed to the kernel is no event, and counts as not understood."""
    assert read(text(log_formats.REFUSED[name]).split("\n")) == ([], 1)


@pytest.mark.parametrize("line", REAL_LINES, ids=lambda line: line.source)
def test_real_lines(line: RealLine) -> None:
    """Published lines have the finding and the device that their authors saw."""
    found, _ = read(line.text.split("\n"))
    assert [(event["finding"], event["pci"]) for event in found] == ([(line.finding, line.pci)] if line.finding else [])


def test_unread_lines_are_counted() -> None:
    """Lines with an XID or SXid in an unknown form are counted, and the first is kept."""
    log = KernelLogText(kernel_log_parser())
    lines = [
        "x",
        f"~~%%{MESSAGE}",
        "nvidia-nvswitch0?SXid (PCI:0000:a9:00.0): 12028, x",
        "Xid 79",
        "NVRM: Xid (PCI:0000:0",
    ]
    assert list(log.events(lines)) == []
    assert (log.unread, log.first_unread) == (3, (2, f"~~%%{MESSAGE}"))


def test_details_of_an_sxid_are_not_events() -> None:
    """Three lines of one SXid are one event, and none of them counts as not understood."""
    head = "[    1.000000] nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 12028, "
    found, unread = read(
        [f"{head}Non-fatal, Link 32 text", f"{head}Severity 0 Engine instance 32", f"{head}Data {{0x00000000}}"]
    )
    assert ([event["number"] for event in found], unread) == ([1], 0)


def test_events_of_one_line() -> None:
    """A structured record may hold several lines of a log."""
    lines = [f"[    1.0] {MESSAGE}", "[    2.0] usb 1-1: new device", f"[    3.0] {MESSAGE}"]
    assert findings(json.dumps({"stdout": "\n".join(lines)})) == ["xid.79"] * 2
    assert findings(json.dumps([{"message": MESSAGE}, {"message": MESSAGE, "ident": "python"}])) == ["xid.79"]


def test_the_writer_is_named_before_or_after() -> None:
    """In a record over several lines the identifier of the writer counts wherever it stands."""
    fields = ["_TRANSPORT=syslog", f"MESSAGE={MESSAGE}"]
    for order in (fields, fields[::-1]):
        assert findings("\n".join(order)) == []
        assert findings("\n".join(order).replace("=syslog", "=kernel")) == ["xid.79"]


def test_a_raw_record_is_unescaped() -> None:
    """What the kernel escaped in a raw record is read as it was written; its tags are no messages."""
    raw = MESSAGE.replace("python", "p\\x2cy")
    found, unread = read([f"3,77,5000000,-;{raw}", " SUBSYSTEM=pci", f" DEVICE={MESSAGE}"])
    assert ([event["number"] for event in found], unread) == ([1], 0)


def test_the_first_line_after_a_crash() -> None:
    """The zeros that a crash leaves in a log file do not hide the line behind them."""
    line = f"Mar  7 10:11:12 node1 kernel: {MESSAGE}"
    (found,), _ = read([b"\0" * 4096 + line.encode() + b"\n"])
    assert (found["finding"], found["line"]) == ("xid.79", line)


def test_dmesg_lists_a_record_over_several_lines() -> None:
    """The indented lines that follow belong to the kernel, and the event is that of the last line."""
    lines = [
        "[ 1843.308145] NVRM: The NVIDIA GPU 0000:b3:00.0",
        "               NVRM: (PCI ID: 10de:26b5) installed in this system has",
        "               NVRM: fallen off the bus and is not responding to commands.",
    ]
    (found,), _ = read(lines)
    assert (found["number"], found["kind"], found["finding"], found["pci"]) == (3, "nvrm", "xid.79", "0000:b3:00")


def test_journald_keeps_them_in_one_message() -> None:
    """A multi-line kernel record in one JSON message is one event, also as bytes."""
    message = "NVRM: The NVIDIA GPU 0000:b3:00.0\nNVRM: (PCI ID: 1:2) installed in this system has\nNVRM: fallen off the bus and is not responding"  # noqa: E501 - one message
    for value in (message, list(message.encode())):
        (found,), _ = read([json.dumps({"_TRANSPORT": "kernel", "MESSAGE": value})])
        assert found["pci"] == "0000:b3:00"


@pytest.mark.parametrize(
    "line",
    [
        "<3>" * 5000 + "x NVRM",
        "kern  :err   : " * 5000 + "~NVRM",
        "[" * 100_000 + "NVRM",
        "1:" * 50_000 + "~NVRM",
        "a " * 50_000 + "NVRM",
        "a.b/" * 25_000 + "NVRM",
        "Mar 7 " * 20_000 + "NVRM",
        "&lt;" * 30_000 + "NVRM",
        "\r" * 10_000 + "~NVRM",
        '{"MESSAGE": ' * 5000 + "NVRM",
        '{"m": "' * 5000 + "NVRM",
        '{"_TRANSPORT": "kernel", "MESSAGE": [300, "x"], "NVRM": 1}',
        '{"_TRANSPORT": ["kernel"], "MESSAGE": "NVRM: Xid"}',
        "\x00\x01NVRM\ud800",
    ],
    ids=lambda line: f"{line[:12]!r}",
)
def test_hostile_lines(line: str) -> None:
    """Lines made to break a parser do not."""
    assert read([line])[0] == []


@given(st.lists(st.one_of(st.binary(max_size=80), st.text(max_size=80)), max_size=20))
def test_no_input_is_too_much(lines: list[bytes | str]) -> None:
    """Whatever a file holds, reading it raises nothing and finds no XID."""
    assert [event for event in read(lines)[0] if event["kind"] in ("xid", "sxid")] == []


DATES = st.sampled_from(
    ["2025-03-07T10:11:12Z ", "2025-03-07 10:11:12.123+0100 ", "Mar  7 10:11:12 ", "7. März 10:11:12 ", "1741342272.5 ",
     "мар 07 10:11:12 ", "11月 15 14:15:47 ", "[Fri Mar  7 10:11:12 2025] ", "Fri 2025-03-07 10:11:12 CET ", ""]
)  # fmt: skip
OUTER = st.lists(
    st.sampled_from(
        ["\ufeff", "> ", '"', "- ", "| ", "gpu-17: ", "/var/log/syslog:12:", "kern.log-7-", "[pod/a-1/b] ", "node1 | ",
         "2025-03-07T10:11:12.1Z stdout F ", "[1,0]<stdout>:", '{job="kern"} ', "\x1b[31m", "`", "    "]
    ),
    max_size=4,
).map("".join)  # fmt: skip
HOSTS = st.sampled_from(["gpu-17", "ip-10-0-0-1.ec2.internal", "2001:db8::17", "10.0.0.1", "node1.x.y"])
INNER = st.sampled_from(
    ["{date}{host} kernel: ", "{date}{host} kernel: [  123.456789] ", "[  123.456789] ", "[12345.678901][  T77] ",
     "kern  :err   : [  123.456789] ", "<4>[  123.456789] ", "kern: warning: [2025-03-07T10:11:12.1Z]: ",
     "{date}{host} kern.warn kernel: ", "[123.456789] {host} kernel: "]
)  # fmt: skip
MESSAGES = [(line, kind, finding) for line, kind, finding, *_ in LINES if "\n" not in line]


@given(OUTER, INNER, DATES, HOSTS, st.sampled_from(MESSAGES))
def test_prefixes_change_nothing(outer: str, inner: str, date: str, host: str, message: tuple[str, str, str]) -> None:
    """A message behind any mixture of prefixes is the same event as without one."""
    line, kind, finding = message
    prefix = outer + inner.replace("{date}", date).replace("{host}", host)
    (bare,), _ = read([line])
    (found,), unread = read([prefix + line])
    assert (found["kind"], found["finding"], unread) == (kind, finding, 0)
    same = ("code", "pci", "pid", "severity", "action")
    assert [found[key] for key in same] == [bare[key] for key in same]


WORDS = st.sampled_from(
    ["we", "saw", "that", "the", "GPU", "on", "node", "had", "an", "error", "yesterday", "what", "does", "this", "mean",
     "and", "it", "said", "Xid", "XID", "NVRM:", "kernel", "dmesg", "79", "NVRM", "Xid:", "driver", "please", "also"]
)  # fmt: skip


@given(st.lists(WORDS, min_size=2, max_size=8), st.lists(WORDS, max_size=8))
def test_sentences_are_silent(before: list[str], after: list[str]) -> None:
    """A sentence that mentions an XID or quotes the head of a message is no event."""
    for mention in ("Xid 79", "XID 79", "NVRM: Xid (PCI:0000:3b:00): 79"):
        assert findings(" ".join([*before, "a", "b", mention, *after])) == []


PARTS = st.sampled_from(
    ["<3>", "[  1.0] ", "6,1,2,-;", "Nov 22 01:43:47 h ", "kernel: ", "2026-13-45T99:99:99Z ", "kern  :err   : ",
     MESSAGE, "{", '"MESSAGE":', "\\xff", " ", "1 ", "[Sun Nov 99 01:43:47 9999] ", "999999999999.9 ", "\n", "}", "'",
     "    MESSAGE=", "_TRANSPORT=kernel\n", "NVRM: X", "id (", "\r", "&lt;", '=>"', "[{", "\0"]
)  # fmt: skip


@given(st.lists(PARTS, max_size=12).map("".join))
def test_no_mixture_is_too_much(written: str) -> None:
    """Parts of all formats in any order raise nothing."""
    read(written.split("\n"))


@pytest.mark.parametrize(
    "following",
    [f"3,9,12345678,-;{MESSAGE}", f"[    9.000001] {MESSAGE}", f"Mar  7 10:11:12 node1 kernel: {MESSAGE}", MESSAGE],
)
def test_a_line_that_was_cut_before_another_message(following: str) -> None:
    """A line that was cut after its address takes nothing from the next message, and is counted as not understood."""
    found, unread = read(["2026-11-22T01:43:47,123456+00:00 NVRM: Xid (PCI:0000:3B:00): ", following])
    assert [(event["finding"], event["pci"], event["number"]) for event in found] == [("xid.79", "0000:01:00", 2)]
    assert unread == 1


def test_a_line_that_was_cut_before_an_ordinary_record() -> None:
    """The number of another record is no XID."""
    found, unread = read(["[    9.000001] NVRM: Xid (PCI:0000:3B:00): ", "6,10,12345678,-;usb 1-1: new device"])
    assert (found, unread) == ([], 1)
