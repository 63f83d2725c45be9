"""Calls about one GPU. Runs in the child process only: any of these calls may never return.

Every call is shown to the parent before it is made. Whatever comes of it, a return code, an exception of the binding or
a value that cannot be, costs the reading of this call: it becomes a `Missing`, and the next call is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ctypes import byref
from typing import Any

import pynvml

from gpuhealth.model.missing import NOT_SUPPORTED, Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml import abi
from gpuhealth.monitors.nvidia.nvml import value as nvml_value
from gpuhealth.monitors.nvidia.nvml.value import missing, unexpected, whole

Progress = Callable[[str], None]
Convert = Callable[[Any], Any]

_OPEN = "nvmlDeviceGetHandleByIndex"
_FIELD_VALUES = "nvmlDeviceGetFieldValues"

_SIGNS_OF_LIFE = (
    ("nvmlDeviceGetPowerUsage",),
    ("nvmlDeviceGetTemperature", abi.TEMPERATURE_GPU),
    ("nvmlDeviceGetUtilizationRates",),
)
"""Calls that a lost GPU cannot answer."""

_READ_INFOROM = (
    _OPEN,
    "nvmlDeviceGetSerial",
    "nvmlDeviceGetInforomConfigurationChecksum",
    "nvmlDeviceGetEccMode",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetMemoryErrorCounter",
    "nvmlDeviceGetSramEccErrorStatus",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRowRemapperHistogram",
    "nvmlDeviceGetRetiredPages",
    "nvmlDeviceGetRetiredPagesPendingStatus",
)
"""Functions whose answer is stored in the InfoROM: from others its corruption is no plausible answer."""

_OF_THE_DEVICE = (MissingReason.GPU_LOST, MissingReason.RESET_REQUIRED, MissingReason.CORRUPTED_INFOROM)
_OF_A_CALL = (MissingReason.DRIVER_ERROR, MissingReason.NO_PERMISSION, MissingReason.ERROR)
_OWN_CODES = (abi.LIBRARY_NOT_FOUND, abi.FUNCTION_NOT_FOUND)
_NEWER_CODES = (abi.FUNCTION_NOT_FOUND, abi.ARGUMENT_VERSION_MISMATCH)


class DeviceGoneError(Exception):
    """No call about the GPU is possible, so further ones are pointless."""


def function_of(call: str) -> str:
    """The function of a call: nvmlDeviceGetFieldValues of nvmlDeviceGetFieldValues(82)."""
    return call.partition("(")[0]


class Calls:
    """The calls of one GPU, and what was wrong with those of the present round."""

    def __init__(self, index: int, progress: Progress, known: dict[tuple[Any, ...], Any] | None = None) -> None:
        self.known: dict[tuple[Any, ...], Any] = {} if known is None else known
        self.error: Missing | None = None  # of the device as a whole
        self.called: set[str] = set()
        self.failed: dict[str, Missing] = {}  # what was returned instead of a usable answer
        self._index = index
        self._progress = progress
        self._handle: Any = None
        self._resets: set[str] = set()
        self._settled: set[tuple[Any, ...]] = set()  # keys of what is known for good
        self._counts: dict[tuple[Any, ...], int] = {}

    def begin_round(self) -> None:
        """Forgets the failures of the round before."""
        self.error, self.called, self.failed, self._resets = None, set(), {}, set()

    def close(self) -> None:
        """Opens the GPU again with the next call."""
        self._handle = None

    def ask(
        self, name: str, *arguments: Any, convert: Convert = whole, absent: int | None = None, newer: bool = False
    ) -> Any:
        """The value of one call converted by `convert`, or Missing. Raises DeviceGoneError when the GPU is lost.

        `absent` is a return code that means "does not exist" for this call. `newer` marks a function, or a version of
        its structure, that drivers still in use lack: there is nothing to read then.
        """
        return self.make(
            name, lambda handle: convert(getattr(pynvml, name)(handle, *arguments)), absent=absent, newer=newer
        )

    def ask_structure(self, name: str, structure: str, convert: Convert) -> Any:
        """Like `ask`, for a newer function that fills a structure of pynvml."""

        def call(handle: Any) -> Any:
            filled = getattr(pynvml, structure)()
            getattr(pynvml, name)(handle, byref(filled))
            return convert(filled)

        return self.make(name, call, newer=True)

    def make(self, name: str, call: Convert, *, absent: int | None = None, newer: bool = False) -> Any:
        """Like `ask`, for a call that is made by a function of its own, from the handle."""
        if self.error is not None and self.error.reason is MissingReason.GPU_LOST:
            raise DeviceGoneError
        if self._handle is None:
            self._open()
        self.called.add(name)
        self._progress(f"{name} on GPU {self._index}")
        return self._guarded(name, lambda: call(self._handle), absent, newer=newer)

    def once(self, name: str, *arguments: Any, convert: Convert = whole, newer: bool = False) -> Any:
        """Like `ask`, for fixed properties, which are known after two equal answers: a lost GPU still has its name."""
        key = (name, *arguments)
        if key in self._settled:
            return self.known[key]
        before = self.known.get(key)
        try:
            value = self.ask(name, *arguments, convert=convert, newer=newer)
        except DeviceGoneError:
            if before is None:
                raise
            return before
        if not isinstance(value, Missing):
            self.known[key] = value
            if value == before:
                self._settled.add(key)
        return value

    def part(self, name: str, answer: Any, read: Convert, absent: int | None = None) -> Any:
        """One value from an answer with several."""
        return answer if isinstance(answer, Missing) else self._guarded(name, lambda: read(answer), absent)

    def fields(self, fields: Mapping[int, Convert], link: int | None = None) -> dict[int, Any]:
        """Field values by id, each read by its own function; `link` is the scope of fields of NVLinks."""
        asked = list(fields) if link is None else [(field, link) for field in fields]
        answer = self.ask(_FIELD_VALUES, asked, convert=lambda answer: answer)

        def read(place: int, field: int, convert: Convert) -> Any:
            # A field id unknown to the driver is rejected as an invalid argument.
            name, absent = f"{_FIELD_VALUES}({field})", abi.INVALID_ARGUMENT
            return self.part(name, answer, lambda values: convert(nvml_value.field(values[place])), absent)

        return {field: read(place, field, convert) for place, (field, convert) in enumerate(fields.items())}

    def counter(self, *key: Any, convert: Callable[[Any], int] = nvml_value.error_count) -> Convert:
        """Converts the value of the counter `key`, which only grows or restarts at 0.

        One that falls by less than half has done neither. The fall is rejected once: what remains is the new count.
        """

        def grown(value: Any) -> int:
            number = convert(value)
            before = self._counts.get(key, 0)
            self._counts[key] = number
            if before // 2 < number < before:
                raise nvml_value.refuse(number, f"a count that was {before} before")
            return number

        return grown

    def refuse(self, name: str, why: str) -> Missing:
        """Rejects an answer for a reason that lies in another one; returns the `Missing` that replaces it."""
        for key in [key for key in self.known if key[0] == name]:
            del self.known[key]
            self._settled.discard(key)
        return self._refused(name, Missing(MissingReason.ERROR, f"{name}: {why}"))

    def _guarded(self, name: str, read: Callable[[], Any], absent: int | None = None, *, newer: bool = False) -> Any:
        try:
            return read()
        except pynvml.NVMLError as error:
            if error.value == absent or (newer and error.value in _NEWER_CODES):
                return NOT_SUPPORTED
            return self._refused(name, missing(error, name))
        except Exception as error:  # noqa: BLE001 - bindings raise anything: this costs one reading, not the round
            return self._refused(name, unexpected(error, name))

    def _refused(self, name: str, reason: Missing) -> Missing:
        if reason.reason is MissingReason.NOT_SUPPORTED:
            return reason
        if reason.reason is MissingReason.GPU_LOST:
            if not self._shows_life(name):
                self.error = reason
                raise DeviceGoneError
            reason = Missing(MissingReason.ERROR, f"{reason.detail}, but other calls are answered")
        elif reason.reason is MissingReason.RESET_REQUIRED:
            self._resets.add(function_of(name))
            if len(self._resets) > 1:  # one function alone may be wrong
                self.error = reason
        elif reason.reason is MissingReason.CORRUPTED_INFOROM:
            if function_of(name) not in _READ_INFOROM:
                reason = Missing(MissingReason.ERROR, reason.detail)
        elif reason.reason not in _OF_A_CALL:
            reason = Missing(MissingReason.ERROR, reason.detail)
        self.failed[name] = reason
        return reason

    def _shows_life(self, name: str) -> bool:
        """Whether a GPU that is lost by one call answers another."""
        for other, *arguments in _SIGNS_OF_LIFE:
            if other == name:
                continue
            self._progress(f"{other} on GPU {self._index}")
            try:
                getattr(pynvml, other)(self._handle, *arguments)
            except Exception:  # noqa: BLE001, S112 - no answer of any kind
                continue
            return True
        return False

    def _open(self) -> None:
        self.called.add(_OPEN)
        self._progress(f"{_OPEN} on GPU {self._index}")
        try:
            handle = getattr(pynvml, _OPEN)(self._index)
            if handle:
                self._handle = handle
            elif isinstance(handle, pynvml.c_nvmlDevice_t):
                self.error = Missing(MissingReason.DRIVER_ERROR, f"{_OPEN}: the handle is NULL")
            else:  # not even a pointer: this is of the binding, not of the driver
                self.error = Missing(MissingReason.ERROR, f"{_OPEN}: the handle is {type(handle).__name__}")
        except pynvml.NVMLError as error:
            self.error = _refused_handle(error)
        except Exception as error:  # noqa: BLE001 - as for every call; it is the binding that fails, not the driver
            self.error = unexpected(error, _OPEN)
        if self.error:
            raise DeviceGoneError


def _refused_handle(error: pynvml.NVMLError) -> Missing:
    """Why a GPU cannot be opened. Any code is the GPU's fault, except where only our own process lacks something."""
    reason = missing(error, _OPEN)
    if reason.is_unsupported:  # would mean that there is nothing to check
        reason = Missing(MissingReason.DRIVER_ERROR, f"{_OPEN}: Not Supported ({error.value})")
    if reason.reason in (*_OF_THE_DEVICE, MissingReason.NO_PERMISSION):
        return reason
    own = error.value in _OWN_CODES
    return Missing(MissingReason.ERROR if own else MissingReason.DRIVER_ERROR, reason.detail)
