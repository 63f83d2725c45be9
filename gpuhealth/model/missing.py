"""Readings: a value, or the reason why there is none."""

from __future__ import annotations

import enum
from typing import TypeAlias, TypeVar

import msgspec

T = TypeVar("T")


class MissingReason(enum.StrEnum):
    """Why a reading has no value."""

    NOT_SUPPORTED = "not_supported"  # this hardware or driver has no such thing: nothing to check
    GPU_LOST = "gpu_lost"  # NVML 15
    RESET_REQUIRED = "reset_required"  # NVML 16
    CORRUPTED_INFOROM = "corrupted_inforom"  # NVML 14
    TIMEOUT = "timeout"  # the driver has not answered before the deadline
    RELEASED = "released"  # the driver was let go on request
    NOT_INSTALLED = "not_installed"  # no library, or no such file
    NOT_LOADED = "not_loaded"  # NVML 9: the kernel module is not there
    MISMATCH = "mismatch"  # NVML 18: library and kernel module are of different versions
    NO_PERMISSION = "no_permission"
    NO_HISTORY = "no_history"  # a rate needs an earlier reading
    DRIVER_ERROR = "driver_error"  # NVML 8, 10, 11, 17, 20, 28, 999: the driver or the GPU failed and does not say how
    AGENT_FAULT = "agent_fault"  # our own process failed: says nothing about the node
    ERROR = "error"  # anything else, such as an answer of an unexpected type; the detail says what was seen


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """Stands in for a value that could not be read, and says why."""

    reason: MissingReason
    detail: str = ""

    @property
    def is_unsupported(self) -> bool:
        """Whether there is nothing to check, since the device has no such thing."""
        return self.reason is MissingReason.NOT_SUPPORTED

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


Reading: TypeAlias = T | Missing
"""A value, or the reason why there is none. Not measured is not healthy: no default stands in for a value."""

UNREAD = Missing(MissingReason.ERROR, "not read")

NOT_SUPPORTED = Missing(MissingReason.NOT_SUPPORTED)
