"""Numbers of NVML's interface (nvml.h), which never change.

They are not taken from pynvml: an older version lacks the newer ones, and would fail when this package is imported.
"""

from __future__ import annotations

NOT_SUPPORTED = 3
INVALID_ARGUMENT = 2
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
INSUFFICIENT_POWER = 8
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
IRQ_ISSUE = 11
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
CORRUPTED_INFOROM = 14
GPU_IS_LOST = 15
RESET_REQUIRED = 16
OPERATING_SYSTEM = 17
LIB_RM_VERSION_MISMATCH = 18
MEMORY = 20
ARGUMENT_VERSION_MISMATCH = 25
GPU_NOT_FOUND = 28
UNKNOWN = 999

XID_EVENT = 0x8

TEMPERATURE_GPU = 0
THRESHOLD_SLOWDOWN = 1
THRESHOLD_MEMORY_MAX = 2
THRESHOLD_GPU_MAX = 3

CLOCK_SM = 1
CLOCK_MEMORY = 2

MEMORY_INFO_V2 = 2 << 24 | 40
"""Version of nvmlMemory_v2_t: its number, and its size in bytes."""

ECC_COUNTERS = {"volatile": 0, "aggregate": 1}
ECC_SEVERITIES = {"corrected": 0, "uncorrected": 1}
ECC_PLACES = {"total": None, "dram": 2, "sram": 7}
"""nvmlMemoryLocation_t; the total has a function of its own."""

RETIREMENT_CAUSES = {"single_bit": 0, "double_bit": 1}

NVLINKS = 36
NVLINK_ERRORS = {"replay": 0, "recovery": 1, "crc_flit": 2, "crc_data": 3}
"""Up to NVLink 4 (Hopper): one call a counter and link."""
NVLINK5_ERRORS = {
    "malformed_packets": 206,
    "buffer_overruns": 207,
    "receive_errors": 208,
    "remote_errors": 209,
    "local_integrity_errors": 211,
    "recovery_failed": 214,
    "recovery": 215,
}
"""NVLink 5 (Blackwell): fields with the link as their scope."""
FIELD_EFFECTIVE_BER = 220
FIELD_SYMBOL_BER = 222

FIELD_MEMORY_TEMPERATURE = 82
FIELD_RECOVERY_ACTION = 230
FIELD_THROTTLE = {"sw_power_cap": 74, "sw_thermal": 269, "hw_thermal": 270, "power_brake": 271}
"""Nanoseconds of throttling, by reason."""

FABRIC_NOT_SUPPORTED = 0
FABRIC_MASK_SHIFTS = (0, 2, 4, 6, 12, 14)
"""Two-bit fields of the fabric's health mask: 0 not supported, 1 true, 2 false."""
