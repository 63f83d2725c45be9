"""PCI addresses: whatever form they are pasted in, there is one that they are kept in."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpuhealth.model.pci import PciAddress, PciSlot, function_zero, parse_address, slot, slot_of


class Numbers(NamedTuple):
    """What an address is made of."""

    domain: int
    bus: int
    device: int
    function: int

    @property
    def address(self) -> str:
        """As sysfs names it."""
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


ANY = st.builds(
    Numbers,
    st.one_of(st.just(0), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)
FORMS: dict[str, Callable[[Numbers], str]] = {
    "sysfs, lspci -D": lambda n: n.address,
    "nvidia-smi": lambda n: f"{n.domain:08X}:{n.bus:02X}:{n.device:02X}.{n.function}",
    "nvmlPciInfo.busId in lower case": lambda n: f"{n.domain:08x}:{n.bus:02x}:{n.device:02x}.{n.function}",
    "upper case": lambda n: n.address.upper(),
    "the kernel log, with a function": lambda n: f"PCI:{n.address}",
    "short domain": lambda n: f"{n.domain:x}:{n.bus:02x}:{n.device:02x}.{n.function}",
    "spaces around": lambda n: f" \t{n.address} ",
    "the end of a line": lambda n: f"{n.address}\r\n",
}
WITHOUT_FUNCTION: dict[str, Callable[[Numbers], str]] = {
    "the driver's lines": lambda n: f"PCI:{n.domain:04x}:{n.bus:02x}:{n.device:02x}",
    "the driver's lines, long": lambda n: f"PCI:{n.domain:08X}:{n.bus:02X}:{n.device:02X}",
    "slot": lambda n: f"{n.domain:04x}:{n.bus:02x}:{n.device:02x}",
}
WITHOUT_DOMAIN: dict[str, Callable[[Numbers], str]] = {
    "lspci": lambda n: f"{n.bus:02x}:{n.device:02x}.{n.function}",
    "lspci in upper case": lambda n: f"{n.bus:02X}:{n.device:02X}.{n.function}",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(numbers=ANY)
@example(numbers=Numbers(0x10000, 0x3B, 0, 0))  # of a virtual machine, or behind Intel VMD
def test_every_form_is_the_same_address(form: Callable[[Numbers], str], numbers: Numbers) -> None:
    """Case, a longer or shorter domain, the driver's prefix and white space change nothing."""
    assert parse_address(form(numbers)) == numbers.address


@pytest.mark.parametrize("form", WITHOUT_FUNCTION.values(), ids=WITHOUT_FUNCTION)
@given(numbers=ANY)
def test_without_a_function_it_is_function_zero(form: Callable[[Numbers], str], numbers: Numbers) -> None:
    """As the driver means it, which names a GPU without one."""
    assert parse_address(form(numbers)) == numbers._replace(function=0).address


@pytest.mark.parametrize("form", WITHOUT_DOMAIN.values(), ids=WITHOUT_DOMAIN)
@given(numbers=ANY)
def test_without_a_domain_it_is_domain_zero(form: Callable[[Numbers], str], numbers: Numbers) -> None:
    """As lspci means it on a machine with one domain."""
    assert parse_address(form(numbers)) == numbers._replace(domain=0).address


@given(numbers=ANY)
def test_slots(numbers: Numbers) -> None:
    """An address is a slot and a function, and function zero of its slot is in the same slot."""
    address = parse_address(numbers.address)
    assert address is not None
    place = slot_of(address)
    assert address == f"{place}.{numbers.function}"
    assert slot_of(function_zero(place)) == place
    assert (function_zero(place) == address) == (numbers.function == 0)
    assert slot(f"{numbers.domain:08X}", f"{numbers.bus:02X}", f"{numbers.device:02X}") == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0000:3b:00.8",
        "0000:3b:20.0",
        "0000:3b:0.0",
        "0000:3b:00.00",
        "0000:3b",
        "3b",
        "GPU-8a5ff9c8-1b2c-4d3e-9f00-0123456789ab",
        "000000000:3b:00.0",
        "0000:3b:00.0 NVIDIA H100",
        "0000:3b:00.0\n0000:3c:00.0",
        "0000-3b-00.0",
        "0000:3g:00.0",
        "00:11:22:33:44:55",
        "0000:3b:00.0.0",
        "\N{ARABIC-INDIC DIGIT ZERO}000:3b:00.0",
        "0000:\N{FULLWIDTH DIGIT THREE}b:00.0",
        "PCI:",
        "PCI:PCI:0000:3b:00.0",
        "-1:3b:00.0",
        "23:59:59",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """A device has two digits and is below 20, a function one below 8; nothing stands before or behind."""
    assert parse_address(text) is None


PASTED = st.from_regex(r"(PCI:)?([0-9a-fA-F]{1,9}:){0,3}[0-2]?[0-9a-f]{1,2}(\.[0-9])?", fullmatch=True)


@given(st.one_of(st.text(max_size=24), PASTED))
def test_any_text_is_an_address_in_one_form_or_none(text: str) -> None:
    """What is accepted gets the form of sysfs, and is accepted again as it is."""
    address = parse_address(text)
    if address is not None:
        assert re.fullmatch(r"([0-9a-f]{4}|[1-9a-f][0-9a-f]{4,7}):[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", address)
        assert parse_address(address) == address


def test_the_slot_of_a_line() -> None:
    """A line without a domain is of domain 0; the same device in two lines is one slot."""
    assert slot(None, "3B", "00") == slot("0000", "3b", "00") == PciSlot("0000:3b:00")
    assert slot("", "3b", "00") == slot_of(PciAddress("0000:3b:00.0"))
