"""Kernel-log messages about filesystems and block devices."""

from __future__ import annotations

import re

from gpuhealth.kernel_log.pattern import Groups, LineMeaning, line_pattern
from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.kernel_log import codes

NETWORK = re.compile(r"(?:rbd|nbd|drbd)\d")
"""Beginning of the names of block devices that are reached over the network: Ceph RBD, NBD, DRBD."""

_WHOLE = re.compile(r"(?:sd|vd|xvd|hd)[a-z]{1,3}|nvme\d{1,4}n\d{1,4}", re.ASCII)
"""Names of whole disks. A node's own filesystems mostly lie on partitions or LVM, volumes of pods on whole disks."""


def _readonly(groups: Groups) -> LineMeaning:
    disk = groups["device"]
    if NETWORK.match(disk):
        return of_volume(disk, "its filesystem does not accept writes any more; it is a network block device")
    return LineMeaning(
        finding=codes.DISK_READONLY,
        severity=Severity.WARNING if _WHOLE.fullmatch(disk) else Severity.CRITICAL,
        action=Action.INSPECT_HARDWARE,
        meaning=f"The kernel stopped writing to the filesystem on {disk} after errors; critical if it is one of the"
        " node itself, a warning if it is a volume of pods",
        disk=disk,
    )


def _io_error(groups: Groups) -> LineMeaning:
    disk = groups["device"]
    if NETWORK.match(disk):
        return of_volume(disk, "input or output errors; it is a network block device")
    return LineMeaning(
        finding=codes.IO_ERRORS,
        severity=Severity.WARNING,
        action=Action.INSPECT_HARDWARE,
        meaning=f"Input or output errors of {disk}",
        disk=disk,
    )


def of_volume(disk: str, what: str) -> LineMeaning:
    """The meaning of a line about a block device that is no disk of the node."""
    return LineMeaning(
        finding=codes.VOLUME_ERRORS,
        severity=Severity.WARNING,
        action=Action.NONE,
        meaning=f"Volume {disk}: {what}",
        disk=disk,
    )


_DISK = r"(?P<device>[\w.!@+-]{1,64})(?::? state \w{1,16})?"
LINES = (
    line_pattern(
        "fs_readonly",
        ("read-only",),
        rf"(?:EXT[234]-fs|F2FS-fs|FAT-fs|JBD2?) \((?:device )?{_DISK}\): (?:error: )?"
        r"[Rr]emounting filesystem read-only",
        _readonly,
    ),
    line_pattern(
        "fs_readonly",
        ("hut down", "hutting down"),
        rf"XFS \({_DISK}\): (?:Filesystem has been shut down|(?:[A-Z][\w/ -]{{1,60}}(?: \(0x[0-9a-f]{{1,8}}\))? "
        r"(?:[Dd]etected|received)(?: at [\w.+/]{1,120}(?: \[\w{1,32}\])? \([\w./-]{1,120}:\d+\))?\. {1,2})?"
        r"[Ss]hutting down filesystem)",
        _readonly,
    ),
    line_pattern(
        "fs_readonly",
        ("forced readonly",),
        rf"BTRFS:?(?: \w{{1,16}})? \(device {_DISK}\): forced readonly",
        _readonly,
    ),
    line_pattern(  # "sda1-8", "dm-0-8": the device and the inode of its journal (fs/jbd2/journal.c)
        "fs_readonly",
        ("Aborting journal",),
        r"Aborting journal on device (?P<device>dm-\d{1,6}|[\w.!@+]{1,64})(?:-\d{1,20})?\.",
        _readonly,
    ),
    line_pattern(
        "io_error",
        ("O error", "medium error"),
        r"(?:(?:blk_update_request|print_req_error): )?(?:I/O error|critical medium error), dev "
        r"(?P<device>(?!fd\d|sr\d)[^\s,]{1,32}), sector ",
        _io_error,
    ),
    line_pattern(
        "io_error",
        ("Buffer I/O error",),
        r"Buffer I/O error on dev(?:ice)? (?P<device>(?!fd\d|sr\d)[^\s,]{1,32})",
        _io_error,
    ),
    line_pattern(
        "io_error",
        ("nvme",),
        r"nvme (?P<device>nvme\d+): (?:I/O (?:tag )?\d+ (?:\([0-9a-f]{1,8}\) )?(?:type \d+ )?"
        r"(?:opcode 0x[0-9a-f]+ )?(?:\([\w/ -]{1,40}\) )?QID \d+ timeout|controller is down; will reset|"
        r"Removing after probe failure|Device not ready; aborting)",
        _io_error,
    ),
    line_pattern("io_error", ("EXT4-fs error",), rf"EXT4-fs error \(device {_DISK}\)", _io_error),
    line_pattern("io_error", ("metadata I/O error",), rf"XFS \({_DISK}\): metadata I/O error", _io_error),
    line_pattern(
        "io_error",
        ("Disk failure on",),
        r"md/raid[\w:-]+: ?Disk failure on (?P<device>\S{1,32}), disabling",
        _io_error,
    ),
)
