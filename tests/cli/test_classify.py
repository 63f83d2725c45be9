"""`gpuhealth classify`: lines in, one JSON object out for each that means something."""

import json
import subprocess
from pathlib import Path

import pytest
from testing.command import Node, Run
from testing.processes import COMMAND

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
