"""Extracts one value from an NVML answer, or rejects it. Runs in the child process only.

A driver or binding of another version may return anything: a float for a count, text that is not UTF-8, an empty
structure. Every function here returns a value of exactly the declared type or raises; the caller turns that into a
`Missing` for this one reading.
"""

from __future__ import annotations

import math
from typing import Any

import pynvml

from gpuhealth.model.missing import Missing, MissingReason

_REASONS = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: MissingReason.NOT_SUPPORTED,
    # An old driver's library lacks newer calls: they are not supported on this node.
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: MissingReason.NOT_SUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: MissingReason.NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION: MissingReason.NO_PERMISSION,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: MissingReason.NOT_LOADED,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: MissingReason.NOT_INSTALLED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: MissingReason.MISMATCH,
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: MissingReason.CORRUPTED_INFOROM,
    pynvml.NVML_ERROR_GPU_IS_LOST: MissingReason.GPU_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: MissingReason.RESET_REQUIRED,
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: MissingReason.DRIVER_ERROR,
    pynvml.NVML_ERROR_TIMEOUT: MissingReason.DRIVER_ERROR,
    pynvml.NVML_ERROR_IRQ_ISSUE: MissingReason.DRIVER_ERROR,
    pynvml.NVML_ERROR_OPERATING_SYSTEM: MissingReason.DRIVER_ERROR,
    pynvml.NVML_ERROR_MEMORY: MissingReason.DRIVER_ERROR,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: MissingReason.DRIVER_ERROR,
    pynvml.NVML_ERROR_UNKNOWN: MissingReason.DRIVER_ERROR,
}

_VALUE_FIELD = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
_LONGEST_TEXT = 256
_LONGEST_SHOWN = 80


class UnexpectedAnswerError(Exception):
    """The type of an answer is not that of the call."""


def missing(error: pynvml.NVMLError, call: str) -> Missing:
    """The reason for an NVML return code of any value."""
    code = error.value
    reason = _REASONS.get(code, MissingReason.ERROR)
    return Missing(reason, "" if reason is MissingReason.NOT_SUPPORTED else f"{call}: {_text_of(error)} ({code})")


def unexpected(error: Exception, call: str) -> Missing:
    """The reason for a call that raised something other than an NVML return code, or returned an unexpected value."""
    what = str(error) if isinstance(error, UnexpectedAnswerError) else f"{type(error).__name__}: {_text_of(error)}"
    return Missing(MissingReason.ERROR, f"{call}: {what}")


def _text_of(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the binding looks unknown codes up in the library, which may raise anything
        return type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_TEXT])


def _refuse(value: Any, wanted: str) -> UnexpectedAnswerError:
    # No object address in it: a message that changes in every round is logged in every round.
    plain = isinstance(value, int | float | str | bytes | None)
    shown = ascii(value)[:_LONGEST_SHOWN] if plain else type(value).__name__
    return UnexpectedAnswerError(f"{shown} is not {wanted}")


def whole(value: Any) -> int:
    """A whole number of at most 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 64:
        raise _refuse(value, "a whole number")
    return value


def flag(value: Any) -> bool:
    """A whole number as a boolean."""
    return bool(whole(value))


def count(value: Any, most: int) -> int:
    """A number of items, at most `most`: a garbage value would make the caller loop forever."""
    if not 0 <= whole(value) <= most:
        raise _refuse(value, f"a count of at most {most}")
    return int(value)


def text(value: Any) -> str:
    """Printable text of at most 256 characters."""
    decoded = value.decode() if isinstance(value, bytes) else value
    if not isinstance(decoded, str) or not decoded.isprintable() or len(decoded) > _LONGEST_TEXT:
        raise _refuse(value, f"printable text of at most {_LONGEST_TEXT} characters")
    return decoded


def name_of_device(value: Any) -> str:
    """A uuid: non-empty text."""
    uuid = text(value)
    if not uuid:
        raise _refuse(value, "a uuid")
    return uuid


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
    if isinstance(value, float):
        if not math.isfinite(value) or not 0 <= value <= 1:
            raise _refuse(value, "a rate of 0 to 1")
        return value
    return float((whole(value) >> 8 & 0xF) * 10.0 ** -(value & 0xFF))


def pci_address(info: Any) -> str:
    """dddd:bb:dd.f of an nvmlPciInfo_t."""
    # The legacy bus id is cut to a 4-digit domain and the long one has 8 digits: the numbers are exact.
    return f"{whole(info.domain):04x}:{count(info.bus, 0xFF):02x}:{count(info.device, 0x1F):02x}.0"
