"""How the output reads: at a terminal, in a pipe, narrow and wide, with and without colour."""

import os
import pty
import re
import struct
import subprocess
import termios
from fcntl import ioctl

import pytest
from testing.command import Node, Run
from testing.processes import COMMAND


@pytest.fixture
def sick_node(gpu_node: Node) -> Node:
    """Three different findings on a node with eight GPUs."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("ecc_uncorrectable", gpu=5)
    gpu_node.simulator.inject("persistence_off")
    gpu_node.simulator.inject("lost", gpu=3)
    return gpu_node


def at_terminal(node: Node, width: int, *arguments: str, **more: str) -> str:
    """The output of the command at a terminal of this width."""
    ours, its = pty.openpty()
    ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    env = node.env(TERM="xterm-256color", **more)
    with subprocess.Popen([COMMAND, *arguments], env=env, stdin=its, stdout=its, stderr=subprocess.PIPE) as process:
        os.close(its)
        shown = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # EIO: the other side is closed
                break
            if not data:
                break
            shown += data
        assert process.stderr
        assert process.stderr.read() == b""
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def without_colour(text: str) -> str:
    """The text without escape sequences."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


@pytest.mark.parametrize("width", [80, 200])
def test_terminal(sick_node: Node, width: int) -> None:
    """At a terminal the output is coloured and no line is wider than it, down to 80 columns."""
    shown = at_terminal(sick_node, width, "check")
    assert "\x1b[" in shown
    lines = without_colour(shown).splitlines()
    assert max(len(line) for line in lines) <= width
    assert [line for line in lines if line != line.rstrip()] == []
    assert "CRITICAL  gpu.lost" in lines


def test_no_color(sick_node: Node) -> None:
    """NO_COLOR removes all escape sequences."""
    assert "\x1b" not in at_terminal(sick_node, 80, "check", NO_COLOR="1")


def test_force_color(sick_node: Node) -> None:
    """FORCE_COLOR colours a pipe; NO_COLOR takes precedence."""
    assert "\x1b[" in sick_node.run("check", FORCE_COLOR="1").out
    assert "\x1b" not in sick_node.run("check", FORCE_COLOR="1", NO_COLOR="1").out


def test_pipe(sick_node: Node) -> None:
    """In a pipe there is no colour, and a message stays on one line, however long."""
    said = sick_node.run("check")
    assert "\x1b" not in said.out
    assert any("run a burn-in. If it comes back on the same GPU" in line for line in said.out.splitlines())
    assert [line for line in said.out.splitlines() if line != line.rstrip()] == []


def test_columns_of_a_pipe(sick_node: Node) -> None:
    """COLUMNS also wraps output into a pipe."""
    assert max(map(len, sick_node.run("check", COLUMNS="80").out.splitlines())) <= 80


def test_same_findings_stand_together(sick_node: Node) -> None:
    """Seven GPUs with the same warning are one paragraph; an unreadable GPU is one line of the coverage."""
    said = sick_node.run("check")
    assert said.out.count("WARNING  persistence.off") == 1
    assert said.out.count("persistence mode is off") == 7
    assert sum("GPU is lost (15) (GPU 3): " in line for line in said.out.splitlines()) == 1


def test_verbose(sick_node: Node) -> None:
    """--verbose adds meanings, full uuids and the list of checks; a time common to all findings is printed once."""
    short, long = sick_node.run("check").out, sick_node.run("check", "--verbose").out
    assert "meaning" not in short
    assert "  meaning " in long
    assert long.count("\n  seen ") == long.count("\n  meaning ") == 3
    assert re.search(r"GPU-[0-9a-f]{8}-[0-9a-f]{4}-", long)
    assert not re.search(r"GPU-[0-9a-f]{8}-[0-9a-f]{4}-", short)


def test_log_text_cannot_steer_the_terminal(gpu_node: Node) -> None:
    """Escape sequences in the kernel log are printed in escaped form."""
    gpu_node.log("NVRM: Xid (PCI:0000:61:00): 79, name=\x1b[2J\x07x, GPU has fallen off the bus.")
    said = gpu_node.run("check")
    assert said.code == 2
    assert "\x1b" not in said.out
    assert "\\x1b[2J" in said.out


@pytest.mark.parametrize("arguments", [["check"], ["check", "--json"], ["--help"]])
def test_reader_that_goes_away(gpu_node: Node, arguments: list[str]) -> None:
    """A reader that closes the pipe ends the command without a message."""
    with subprocess.Popen(
        [COMMAND, *arguments], env=gpu_node.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_terminal_without_unicode(gpu_node: Node) -> None:
    """A terminal without a degree sign gets a question mark instead."""
    said = gpu_node.run("check", PYTHONIOENCODING="ascii")
    assert (said.code, said.err) == (0, "")
    assert "30 ?C" in said.out


def test_a_hanging_driver_is_shown_at_a_terminal(gpu_node: Node) -> None:
    """While the driver hangs, a terminal shows what the command is waiting for."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("hang")
    gpu_node.configure("nvml: {warn_after: 1s, critical_after: 3s}")
    ours, its = pty.openpty()
    with subprocess.Popen([COMMAND, "check"], env=gpu_node.env(), stdout=subprocess.DEVNULL, stderr=its) as process:
        os.close(its)
        try:
            assert process.wait(timeout=300) == 2
            shown = os.read(ours, 1 << 16).decode()
        finally:
            gpu_node.simulator.release()
    os.close(ours)
    assert re.search(r"waiting for NVML … [12] s \(at most 3 s\)", shown)


def test_help_is_plain_and_complete(run: Run) -> None:
    """The help lists every command; without arguments it is printed too, with exit code 3."""
    said = run("--help")
    assert said.code == 0
    for command in ("check", "classify", "explain", "capture", "events", "agent"):
        assert f"\n  {command} " in said.out
    assert run().code == 3


def test_version(run: Run) -> None:
    """--version prints name and version."""
    assert re.fullmatch(r"gpuhealth \d+\.\d+\.\d+\n", run("--version").out)


def test_unknown_command(run: Run) -> None:
    """A misspelt command is an error that names a similar one."""
    said = run("chek")
    assert said.code == 3
    assert said.err == "gpuhealth: No such command 'chek'. Did you mean 'check'?\n"


def test_colour_stays_with_the_word(sick_node: Node) -> None:
    """Only the state is coloured, not the sentence after it."""
    shown = at_terminal(sick_node, 200, "check")
    assert re.search("\x1b\\[1;31mUNHEALTHY\x1b\\[0m: \\d", shown)


def test_addresses_do_not_split_a_reason(gpu_node: Node) -> None:
    """Eight GPUs that sysfs does not show share one line of the coverage."""
    (gpu_node.folder / "empty/bus/pci/devices").mkdir(parents=True)
    said = gpu_node.run("check", GPUHEALTH_ROOTS__SYS=str(gpu_node.folder / "empty"))
    assert sum("pcie.aer_uncorrectable" in line for line in said.out.splitlines()) == 1
