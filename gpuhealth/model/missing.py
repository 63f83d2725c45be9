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
    RELEASED = "released"  # the driver was released on request
    NOT_INSTALLED = "not_installed"  # no library, or no such file
    NOT_LOADED = "not_loaded"  # NVML 9: the kernel module is not loaded
    MISMATCH = "mismatch"  # NVML 18: versions of library and kernel module differ
    NO_PERMISSION = "no_permission"
    NO_HISTORY = "no_history"  # a rate needs an earlier reading
    DRIVER_ERROR = "driver_error"  # NVML 8, 10, 11, 17, 20, 28, 999: unspecified failure of the driver or the GPU
    AGENT_FAULT = "agent_fault"  # our own process failed: this says nothing about the node
    ERROR = "error"  # anything else, such as an answer of an unexpected type; see the detail


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """Replaces a value that could not be read, and contains the reason."""

    reason: MissingReason
    detail: str = ""

    @property
    def is_unsupported(self) -> bool:
        """Whether there is nothing to check because the device does not have it."""
        return self.reason is MissingReason.NOT_SUPPORTED

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


Reading: TypeAlias = T | Missing
"""A value, or the reason why there is none. Unmeasured is not healthy: no default replaces a missing value."""

UNREAD = Missing(MissingReason.ERROR, "not read")

NOT_SUPPORTED = Missing(MissingReason.NOT_SUPPORTED)
