"""The hex words of NVLink XIDs."""

import csv
from pathlib import Path

import pytest

from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.nvidia.catalog import nvlink_xid as nvlink
from gpuhealth.monitors.nvidia.catalog import policy, xid
from gpuhealth.monitors.nvidia.catalog.table import rows

DATA = Path(nvlink.__file__).parent
ROWS = list(rows("nvlink5.csv"))
BITS = [(int(row["register"]), int(bit), row["class"]) for row in rows("xid74.csv") for bit in row["bits"].split()]


def line(unit: str, interrupt: int, status: int, word: str = "Nonfatal") -> str:
    """What follows the number in a line of XID 144 to 150."""
    return f"{unit} {word} XC0 i0 Link 12 ({interrupt:#010x} {status:#010x} 0x00000000 0x00000000)"


def test_all_rows_are_there() -> None:
    """The decode table has its 95 rows, and every line of the file is a row or a comment that names a source."""
    assert len(ROWS) == 95
    text = (DATA / "nvlink5.csv").read_text()
    assert "source" in text.split("xid,unit")[0]
    assert len(list(csv.reader(text.splitlines()))) == 95 + 1 + sum(each.startswith("#") for each in text.splitlines())


@pytest.mark.parametrize("layout", ["v1", "v2"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['xid']}-{row['unit']}-{row['status']}")
def test_every_row_decodes(row: dict[str, str], layout: str) -> None:
    """A line built from a row gives the row's bucket, in both layouts, with and without knowing the driver."""
    interrupt = int(row[layout].replace("-", "0"), 2)
    status = int((row["status"] or "0x0").split("/")[-1], 16)
    expected = policy.of_bucket(row["bucket"])
    for unit in row["unit"].split("/"):
        for driver in (570 if layout == "v1" else 580, None):
            found = xid.assess(int(row["xid"]), line(unit, interrupt, status), driver)
            assert (found.severity, found.action) == (expected.severity, expected.action), (unit, driver)
            assert found.link == 12


@pytest.mark.parametrize("layout", ["v1", "v2"])
@pytest.mark.parametrize("row", [row for row in ROWS if row["second_v1"]], ids=lambda row: row["status"])
def test_the_second_pattern(row: dict[str, str], layout: str) -> None:
    """Where the longer pattern matches, its bucket holds."""
    interrupt = int(row[f"second_{layout}"].replace("-", "0"), 2)
    driver = 570 if layout == "v1" else 580
    assert nvlink.bucket_5(145, "RLW_RXPIPE", interrupt, int(row["status"], 16), driver) == row["second_bucket"]


def test_lines_seen_in_the_field() -> None:
    """Whole lines of real machines."""
    assert (
        xid.assess(145, "RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 0x00000008 0x00000001 0x0)").severity == "info"
    )
    peer = xid.assess(149, "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x025001c6 0x00000000 0x00000000)")
    assert (peer.severity, peer.action, peer.link) == (Severity.CRITICAL, Action.RESET_GPU, 0)
    assert xid.assess(149, "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x026001c6 0x00000000 0x0)").severity == "info"
    unlinked = xid.assess(149, "NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000 0x00000000)")
    assert (unlinked.severity, unlinked.link) == (Severity.CRITICAL, None)


def test_the_worst_of_several_status_bits() -> None:
    """Two bits of a status word that each have a row count as the worse of the two."""
    interrupt = int(ROWS[0]["v2"].replace("-", "0"), 2)
    assert nvlink.bucket_5(144, "SAW_MVB", interrupt, 0x3, 580) == "RESET_GPU"


def test_without_a_row_the_printed_word_counts() -> None:
    """An unlisted reason is critical when the driver calls it fatal, else a warning for the vendor."""
    assert xid.assess(149, line("NETIR_LINK_EVT", 0x3F0001C6, 0, "Fatal")).severity is Severity.CRITICAL
    assert xid.assess(149, line("NETIR_LINK_EVT", 0x3F0001C6, 0, "Nonfatal")).action is Action.CONTACT_SUPPORT


@pytest.mark.parametrize(("register", "bit", "kind"), BITS)
def test_every_bit_of_74(register: int, bit: int, kind: str) -> None:
    """Each register bit of XID 74 alone gives what its class says."""
    words = ["0x0"] * 7
    words[register - 1] = hex(1 << bit)
    found = xid.assess(74, f"NVLink: fatal error detected on link 14({', '.join(words)})")
    expected = {
        "ignore": (Severity.INFO, Action.NONE),
        "secondary": (Severity.WARNING, Action.CONTACT_SUPPORT),
        "repeat": (Severity.WARNING, Action.CONTACT_SUPPORT),
        "signal": (Severity.WARNING, Action.INSPECT_HARDWARE),
        "hardware": (Severity.CRITICAL, Action.INSPECT_HARDWARE),
        "reset": (Severity.CRITICAL, Action.RESET_GPU),
    }[kind]
    assert (found.severity, found.action, found.link) == (*expected, 14)


def test_the_worst_bit_of_74_wins() -> None:
    """A hardware bit among others that do not matter is critical; a bit nobody has described is for the vendor."""
    both = xid.assess(74, "NVLink: fatal error detected on link 6(0x800101, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)")
    assert both.severity is Severity.CRITICAL
    unlisted = xid.assess(74, "NVLink: fatal error detected on link 6(0x0, 0x4, 0x0, 0x0, 0x0, 0x0, 0x0)")
    assert (unlisted.severity, unlisted.action) == (Severity.WARNING, Action.CONTACT_SUPPORT)
    assert xid.assess(74, "NVLink: fatal error detected on link 6").severity is Severity.WARNING
