"""`gpuhealth explain`: whatever is pasted is explained, or the near words are named."""

import pytest
from testing.command import Node, Run

from gpuhealth.model.codes import CODES
from gpuhealth.monitors.registry import code_of, monitors

LINE = (
    "Jan  5 03:12:44 node kernel: NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, GPU has fallen off the bus."
)


@pytest.mark.parametrize("words", [["79"], ["xid", "79"], ["xid.79"], ["XID79"], ["Xid: 79"], ["xid 79"]])
def test_xid(run: Run, words: list[str]) -> None:
    """An XID in any spelling: meaning, cause, action, finding, clearing rule, and how to change its policy."""
    said = run("explain", *words)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("XID 79  ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS")
    for label in ("meaning", "cause", "action", "finding", "clears", "change"):
        assert f"\n  {label} " in said.out
    assert "[reboot_node]" in said.out
    assert "the node is quarantined and drained" in said.out


def test_xid_of_a_program(run: Run) -> None:
    """An XID that a program can cause never quarantines a node, and the explanation says so."""
    said = run("explain", "31")
    assert said.code == 0
    assert "never quarantines a node by itself" in said.out
    assert "the node stays in service" in said.out


@pytest.mark.parametrize("number", ["74", "149"])
def test_xid_of_nvlink(run: Run, number: str) -> None:
    """For an XID whose hex words decide the severity, the explanation asks for the whole line."""
    said = run("explain", number)
    assert "explain the whole line" in said.out


@pytest.mark.parametrize("words", [["12028"], ["sxid", "12028"], ["sxid.12028"], ["SXid: 12028"]])
def test_sxid(run: Run, words: list[str]) -> None:
    """A number of five digits is an SXid."""
    said = run("explain", *words)
    assert said.code == 0
    assert said.out.startswith("SXid 12028  ")


def test_every_finding_code_is_explained(run: Run) -> None:
    """The listing of everything has a line and a meaning for every code of every check."""
    said = run("explain", "*")
    assert said.code == 0
    codes = [code for monitor in monitors() for check in monitor.checks for code in check.codes]
    for code in (*codes, *CODES.defined()):
        assert f"\n{code.name} " in f"\n{said.out}"
        assert code.meaning in said.out


def test_finding_code(run: Run) -> None:
    """A finding code: meaning, action and consequences."""
    said = run("explain", "ecc.uncorrectable")
    assert said.code == 0
    code = code_of("ecc.uncorrectable")
    assert code.meaning in said.out
    assert code.advice in said.out
    assert "the node is quarantined and drained" in said.out


@pytest.mark.parametrize("pattern", ["thermal", "thermal.*"])
def test_pattern_lists(run: Run, pattern: str) -> None:
    """A subject or a pattern lists its codes."""
    said = run("explain", pattern)
    assert said.code == 0
    assert [line.split()[0] for line in said.out.splitlines()[::2]] == ["thermal.gpu", "thermal.memory"]


def test_log_line(run: Run) -> None:
    """A log line: device and process, then the XID behind it."""
    said = run("explain", LINE)
    assert said.code == 0
    assert "PCI 0000:3b:00" in said.out
    assert "python3 (pid 1234)" in said.out
    assert "XID 79" in said.out


@pytest.mark.parametrize(
    "line",
    [
        "192.168.0.9: kern: warning: [2026-04-22T21:25:20.505406921Z]: NVRM: Xid (PCI:0000:3b:00): 79, pid=1, x",
        '{"MESSAGE":"Xid (PCI:0000:3b:00): 79, GPU has fallen","_TRANSPORT":"kernel","SYSLOG_IDENTIFIER":"NVRM"}',
        "_TRANSPORT=kernel\nMESSAGE=NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
        "11月 15 14:15:47 node1 kernel: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
        "> `[12345.678901] NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.`",
    ],
)
def test_log_lines_of_every_format(run: Run, line: str) -> None:
    """A line is explained in every format that `classify` reads."""
    said = run("explain", line)
    assert said.code == 0
    assert "PCI 0000:3b:00" in said.out
    assert "XID 79" in said.out


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        (
            "mlx5_core 0000:5c:00.0: mlx5_pcie_event:299:(pid 26): Detected insufficient power on the PCIe slot (27W).",
            "infiniband.errors",
        ),
        ("mlx5_core 0000:0f:00.0: device's health compromised - reached miss count", "infiniband.errors"),
        ("igb 0000:41:00.0 enp65s0f0: igb: enp65s0f0 NIC Link is Up 1000 Mbps", "nic.down"),
    ],
)
def test_log_line_of_a_network_adapter(run: Run, line: str, finding: str) -> None:
    """A line of a network adapter is explained (the first: leptonai/gpud#348)."""
    said = run("explain", line)
    assert said.code == 0
    assert finding in said.out


def test_log_line_without_quotes(node: Node) -> None:
    """A line that the shell has split into words is joined again."""
    assert "XID 79" in node.run("explain", *LINE.split()).out


def test_settings_change_the_answer(node: Node, run: Run) -> None:
    """The policy in the settings is part of the explanation."""
    node.configure("findings: {ecc.uncorrectable: {quarantine: false}}")
    assert "your policy  quarantine: false" in run("explain", "ecc.uncorrectable").out


def test_broken_settings_do_not_keep_from_an_answer(node: Node, run: Run) -> None:
    """Unreadable settings are reported, and do not prevent the explanation."""
    node.configure("nonsense: 1")
    said = run("explain", "ecc.uncorrectable")
    assert said.code == 0
    assert "meaning" in said.out
    assert "nonsense is not a known setting" in said.err


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("xid 999", "XID 999 is not in the catalogue"),
        ("sxid 99999", "SXid 99999 is not in the catalogue"),
        ("ecc.uncorectable", "did you mean ecc.uncorrectable"),
        ("usb 1-1: new high-speed USB device", "gpuhealth does not know this log line"),
        ("", "is not an XID, SXid or finding code"),
    ],
)
def test_unknown(run: Run, word: str, near: str) -> None:
    """An unknown subject is an error of one sentence with similar names, and exit code 3."""
    said = run("explain", word)
    assert (said.code, said.out) == (3, "")
    assert said.err.count("\n") == 1
    assert near in said.err


def test_80_columns(node: Node) -> None:
    """An explanation fits 80 columns."""
    assert max(map(len, node.run("explain", "xid.48", COLUMNS="80").out.splitlines())) <= 80
