"""Extracts one value from an NVML answer, or rejects it. Runs in the child process only.

A driver or binding of another version may return anything: a float for a count, text that is not UTF-8, an empty
structure, a temperature of 4 billion degrees. Every function here returns a plausible value of exactly the declared
type or raises; the caller turns that into a `Missing` for this one reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.nvml import abi

_REASONS = {
    abi.NOT_SUPPORTED: MissingReason.NOT_SUPPORTED,
    abi.NO_PERMISSION: MissingReason.NO_PERMISSION,
    abi.DRIVER_NOT_LOADED: MissingReason.NOT_LOADED,
    abi.LIBRARY_NOT_FOUND: MissingReason.NOT_INSTALLED,
    abi.LIB_RM_VERSION_MISMATCH: MissingReason.MISMATCH,
    abi.CORRUPTED_INFOROM: MissingReason.CORRUPTED_INFOROM,
    abi.GPU_IS_LOST: MissingReason.GPU_LOST,
    abi.RESET_REQUIRED: MissingReason.RESET_REQUIRED,
    abi.INSUFFICIENT_POWER: MissingReason.DRIVER_ERROR,
    abi.TIMEOUT: MissingReason.DRIVER_ERROR,
    abi.IRQ_ISSUE: MissingReason.DRIVER_ERROR,
    abi.OPERATING_SYSTEM: MissingReason.DRIVER_ERROR,
    abi.MEMORY: MissingReason.DRIVER_ERROR,
    abi.GPU_NOT_FOUND: MissingReason.DRIVER_ERROR,
    abi.UNKNOWN: MissingReason.DRIVER_ERROR,
}

_VALUE_FIELD = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
_LONGEST_TEXT = 256
_LONGEST_SHOWN = 80
_LARGEST_KNOWN_CODE = 999


class UnexpectedAnswerError(Exception):
    """The type or size of an answer is not that of the call."""


def missing(error: pynvml.NVMLError, call: str) -> Missing:
    """The reason for an NVML return code of any value."""
    code = error.value
    reason = _REASONS.get(code, MissingReason.ERROR)
    if reason is MissingReason.NOT_SUPPORTED:
        return NOT_SUPPORTED
    # pynvml keeps the text of every code that it was asked for: with any code of 32 bits that would be a leak.
    text = _text_of(error) if 0 <= code <= _LARGEST_KNOWN_CODE else "unknown return code"
    return Missing(reason, f"{call}: {text} ({code})")


def unexpected(error: Exception, call: str) -> Missing:
    """The reason for a call that raised something other than an NVML return code, or returned an unexpected value."""
    what = str(error) if isinstance(error, UnexpectedAnswerError) else f"{type(error).__name__}: {_text_of(error)}"
    return Missing(MissingReason.ERROR, f"{call}: {what}")


def _text_of(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the binding looks unknown codes up in the library, which may raise anything
        return type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_SHOWN])


def refuse(value: Any, wanted: str) -> UnexpectedAnswerError:
    """The error for a value that is not what is wanted, such as "a whole number"."""
    # No object address in it: a message that changes in every round is logged in every round.
    plain = isinstance(value, int | float | str | bytes | None)
    shown = ascii(value)[:_LONGEST_SHOWN] if plain else type(value).__name__
    return UnexpectedAnswerError(f"{shown} is not {wanted}")


def whole(value: Any) -> int:
    """A whole number of at most 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 64:
        raise refuse(value, "a whole number")
    return value


def within(least: int, most: int, what: str) -> Callable[[Any], int]:
    """Converts to a whole number from `least` to `most`, and rejects others with `what` it should be."""

    def convert(value: Any) -> int:
        if not least <= whole(value) <= most:
            raise refuse(value, f"{what} from {least} to {most}")
        return int(value)

    return convert


# Wider than any GPU will reach, and narrower than what a broken answer gives: all bits set, a negative number as an
# unsigned one, the bits of a double.
celsius = within(-60, 200, "a temperature in °C")
margin = within(-200, 200, "a distance in °C")
milliwatts = within(0, 20_000_000, "a power in mW")
megahertz = within(0, 100_000, "a clock in MHz")
percent = within(0, 100, "a share in percent")
size = within(0, 1 << 50, "a size in bytes")
bus_bits = within(0, 1 << 16, "a width in bits")
lanes = within(0, 32, "a number of lanes")
generation = within(0, 16, "a generation")
flag_number = within(0, 1, "a flag")
error_count = within(0, (1 << 31) - 1, "a number of errors")
link_errors = within(0, 1 << 48, "a number of errors")
nanoseconds = within(0, 1 << 62, "a time in ns")
rows = within(0, 1 << 20, "a number of rows or banks")
pages = within(0, 1 << 12, "a number of pages")
pid = within(0, (1 << 31) - 1, "a process id")
number_32 = within(0, (1 << 32) - 1, "a number")
small_number = within(0, 255, "a number")
link_state = within(0, 3, "the state of an NVLink")
return_code = within(0, _LARGEST_KNOWN_CODE, "a return code")
clock_reasons = within(0, (1 << 16) - 1, "a set of clock event reasons")
xid = within(1, 9999, "an XID")


def flag(value: Any) -> bool:
    """0 or 1 as a boolean."""
    return bool(flag_number(value))


def text(value: Any) -> str:
    """Printable text of at most 256 characters."""
    decoded = value.decode() if isinstance(value, bytes) else value
    if not isinstance(decoded, str) or not decoded.isprintable() or len(decoded) > _LONGEST_TEXT:
        raise refuse(value, f"printable text of at most {_LONGEST_TEXT} characters")
    return decoded


def name(value: Any) -> str:
    """Non-empty printable text: a uuid, a model, a version."""
    given = text(value)
    if not given:
        raise refuse(value, "a name")
    return given


def field(value: Any) -> int | float:
    """The number in an nvmlFieldValue_t, by its value type; a double stays a float.

    Raises NVMLError if the field has a return code of its own.
    """
    if code := whole(value.nvmlReturn):
        raise pynvml.NVMLError(code)
    kind = whole(value.valueType)
    if not 0 <= kind < len(_VALUE_FIELD):
        raise UnexpectedAnswerError(f"value type {kind} is not known")
    number: int | float = getattr(value.value, _VALUE_FIELD[kind])
    return number


def bit_error_rate(value: Any) -> float:
    """The BER fields 220 and 222: a double as it is, a whole number as mantissa (bits 8-11) and negative exponent."""
    rate = value if isinstance(value, float) else (_packed(value) >> 8) * 10.0 ** -(value & 0xFF)
    if not 0 <= rate <= 1:  # neither is NaN
        raise refuse(value, "a bit error rate of 0 to 1")
    return rate


_packed = within(0, 0xFFF, "a mantissa of 4 bits and an exponent of 8")


def health_mask(value: Any) -> int:
    """The health mask of an NVLink fabric; one with an undefined value in a two-bit field is rejected."""
    mask = number_32(value)
    if any(mask >> shift & 0b11 == 0b11 for shift in abi.FABRIC_MASK_SHIFTS):
        raise refuse(value, "a health mask of a fabric")
    return mask


def pci_address(info: Any) -> str:
    """dddd:bb:dd.f of an nvmlPciInfo_t."""
    # The legacy bus id is cut to a 4-digit domain and the long one has 8 digits: the numbers are exact.
    bus, device = within(0, 0xFF, "a PCI bus")(info.bus), within(0, 0x1F, "a PCI device")(info.device)
    return f"{number_32(info.domain):04x}:{bus:02x}:{device:02x}.0"


def remote_pci_address(info: Any) -> Reading[str]:
    """The address of an NVLink's other end; NOT_SUPPORTED for FFFFFFFF:FF:FF.0, as of a switch that is not on PCI."""
    if (info.domain, info.bus, info.device) == (0xFFFFFFFF, 0xFF, 0xFF):
        return NOT_SUPPORTED
    return pci_address(info)
