"""`gpuhealth classify`: lines in, one JSON object out for each that means something."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from testing.command import Node, Run
from testing.processes import COMMAND

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

XID = "[ 1234.567890] NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, GPU has fallen off the bus."
NOISE = "[ 1234.000000] usb 1-1: new high-speed USB device number 2 using xhci_hcd"
KEYS = ["number", "line", "kind", "code", "pci", "pid", "process", "severity", "action", "finding"]


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_standard_input(node: Node, arguments: list[str]) -> None:
    """Lines with a known meaning are printed with their number, and others are not."""
    said = node.run("classify", *arguments, stdin=f"{NOISE}\n{XID}\n{NOISE}\n")
    assert (said.code, said.err) == (0, "")
    (found,) = map(json.loads, said.out.splitlines())
    assert list(found) == KEYS
    assert (found["number"], found["kind"], found["code"], found["pci"]) == (2, "xid", 79, "0000:3b:00")
    assert (found["line"], found["severity"], found["action"]) == (XID, "critical", "reboot_node")


def test_file(run: Run, tmp_path: Path) -> None:
    """A file may have lines that are not UTF-8, and a last line without a newline."""
    log = tmp_path / "log"
    log.write_bytes(b"\xff\xfe\n\n" + XID.encode())
    said = run("classify", log)
    assert [json.loads(line)["number"] for line in said.out.splitlines()] == [3]


def test_nothing_is_found(run: Run) -> None:
    """A log without known lines prints nothing, and is no error."""
    assert run("classify", stdin=NOISE) == (0, "", "")


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_file_that_cannot_be_read(run: Run, tmp_path: Path, name: str) -> None:
    """An unreadable file is an error of one sentence with exit code 3."""
    said = run("classify", tmp_path / name)
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith(f"gpuhealth: cannot read {tmp_path / name}: ")
    assert said.err.count("\n") == 1


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "two gz": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd.compress,
    "gz of zst": lambda data: gzip.compress(zstd.compress(data)),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "UTF-16, big end first": lambda data: codecs.BOM_UTF16_BE + data.decode().encode("utf-16-be"),
    "UTF-16 without BOM": lambda data: data.decode().encode("utf-16-le"),
    "UTF-32": lambda data: data.decode().encode("utf-32"),
    "gz of UTF-16": lambda data: gzip.compress(data.decode().encode("utf-16")),
}


@pytest.mark.parametrize("form", COMPRESSED)
def test_compressed_and_wide(node: Node, tmp_path: Path, form: str) -> None:
    """A compressed log, or one in UTF-16, is read like the text in it, from a file and from standard input."""
    log = tmp_path / "log"
    log.write_bytes(COMPRESSED[form](f"{NOISE}\n{XID}\n".encode()))
    with log.open("rb") as opened:
        for arguments, stdin in (([log], subprocess.DEVNULL), ([], opened)):
            done = subprocess.run([COMMAND, "classify", *arguments], env=node.env(), stdin=stdin, capture_output=True)
            assert (done.returncode, done.stderr) == (0, b"")
            (found,) = map(json.loads, done.stdout.splitlines())
            assert (found["number"], found["line"]) == (2, XID)


def _tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("log"))
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"LPKSHHRH" + bytes(100), "this is a journal file, not the text of a log: use journalctl"),
        (_tar(), "this is a tar archive"),
        (gzip.compress(_tar()), "this is a tar archive"),
        (b"PK\x03\x04" + bytes(100), "this is a zip archive"),
        (gzip.compress(XID.encode() * 100)[:-20], "its compressed data is damaged or cut"),
        (gzip.compress(XID.encode())[:4] + b"x" * 100, "its compressed data is damaged or cut"),
        (lzma.compress(XID.encode())[:-20], "its compressed data is damaged or cut"),
        (zstd.compress(XID.encode() * 100)[:-5], "its compressed data is damaged or cut"),
        (zstd.compress(XID.encode())[:4] + b"x" * 100, "its compressed data is damaged or cut"),
    ],
    ids=["journal", "tar", "tar.gz", "zip", "gz cut", "gz damaged", "xz cut", "zstd cut", "zstd damaged"],
)
def test_no_text(run: Run, tmp_path: Path, data: bytes, reason: str) -> None:
    """A binary file, or damaged data, is an error of one sentence with what it is, and exit code 3."""
    log = tmp_path / "log"
    log.write_bytes(data)
    said = run("classify", log)
    assert said.code == 3
    assert said.err.startswith(f"gpuhealth: cannot read {log}: {reason}")
    assert said.err.count("\n") == 1


def test_zstd_without_its_package(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where zstd cannot be decompressed, the error names the package and another way."""
    monkeypatch.setitem(sys.modules, "backports" if sys.version_info < (3, 14) else "compression", None)
    log = tmp_path / "log"
    log.write_bytes(zstd.compress(XID.encode()))
    said = run("classify", log)
    assert (said.code, said.out) == (3, "")
    assert "use zstd -dc FILE | gpuhealth classify" in said.err


def test_lines_that_are_not_understood(run: Run) -> None:
    """Lines with an XID in an unknown form are reported in one sentence, after all that was found, with exit code 3."""
    odd = f"~~\x07{XID.replace('[', '~')}{'x' * 300}"
    said = run("classify", stdin=f"{XID}\n{NOISE}\n{odd}\n{odd}\n")
    assert said.code == 3
    assert [json.loads(line)["number"] for line in said.out.splitlines()] == [1]
    assert said.err.startswith(
        "gpuhealth: 2 lines with an XID or SXid could not be understood; the first is line 3: ~~"
    )
    assert said.err.count("\n") == 1
    assert "\x07" not in said.err
    assert len(said.err) < 250


def test_sentences_are_silent(run: Run) -> None:
    """A sentence about an XID is neither a result nor an error."""
    assert run("classify", stdin="What does NVRM: Xid (PCI:0000:01:00): 79 mean?\n") == (0, "", "")


def test_slow_input_is_answered_at_once(node: Node) -> None:
    """With an open pipe as input, the result of a line is written before the next line arrives."""
    with subprocess.Popen(
        [COMMAND, "classify"], env=node.env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        for number in range(1, 4):
            process.stdin.write(f"{XID}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["number"] == number
        process.stdin.close()
    assert process.returncode == 0


def test_reader_that_goes_away(node: Node, tmp_path: Path) -> None:
    """A reader that closes the pipe, as in `classify | head`, causes no message."""
    log = tmp_path / "log"
    log.write_text(f"{XID}\n" * 20_000)
    with subprocess.Popen(
        [COMMAND, "classify", log], env=node.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_lines_longer_than_a_chunk(run: Run) -> None:
    """A line that arrives in many pieces is read as one line."""
    said = run("classify", stdin=f"{'x' * 1_000_000}\n{XID}\n")
    assert [json.loads(line)["number"] for line in said.out.splitlines()] == [2]


def test_a_broken_configuration_does_not_matter(node: Node, run: Run) -> None:
    """Classifying a log needs no settings."""
    node.configure("nonsense: 1")
    assert run("classify", stdin=XID).code == 0
