"""Lines of kernel logs for fuzz targets: known messages in every format, changed, and text that a user can write."""

from __future__ import annotations

import json
import random
import re

from testing.kernel_lines import LINES

from fuzzing import mutate

MESSAGES = tuple(line.split("\n", maxsplit=1)[0].encode() for line, *_ in LINES)
CRITICAL = tuple(line.encode() for line, _, _, severity, *_ in LINES if severity == "critical" and "\n" not in line)
ORDINARY = (
    b"eth0: renamed from veth1a",
    b"IPv6: ADDRCONF(NETDEV_CHANGE): cali1: link becomes ready",
    b'audit: type=1400 audit(1763.1:2): apparmor="STATUS" operation="profile_replace"',
    b"usb 1-3: new high-speed USB device number 5 using xhci_hcd",
    b"overlayfs: upperdir is in-use as upperdir/workdir of another mount",
    b"docker0: port 1(veth1) entered blocking state",
    b"the job failed with Xid 79 on gpu-node-17, see the runbook",
)
WORDS = (
    b"NVRM: ", b"Xid (PCI:0000:3b:00): ", b"SXid (PCI:0000:a9:00.0): ", b"nvidia-nvswitch0: ", b"kernel: ", b"79, ",
    b"pid=", b"name=",
    b"]: segfault at 0 ip ", b" IN= OUT=", b"potentially unexpected fatal signal 11.", b"[12345.678901] ", b"<3>",
    b"3,1,2,-;", b"\\x0a",
    b"\\x1b[2J", b"\xff\xfe", b"\xc2\x85", b"\x00", b"GPU-I:05", b"0000:3b:00.0", b": ", b"EDAC MC0: 1 UE ",
    b"INFO: task ",
    b"Out of memory: Killed process ", b" invoked oom-killer: ", b"caused by previous Xid 79", b"XFS (sda): ",
    b'{"MESSAGE":"', b"_TRANSPORT",
)  # fmt: skip
_HEADS = (
    b"", b"", b"[%d.123456] ", b"[ %d.1] ", b"<4>[%d.123456] ", b"[Sat Nov 22 01:43:47 2025] ",
    b"Nov 22 01:43:47 gpu-17 kernel: ",
    b"Nov 22 01:43:47 gpu-17 kernel: [%d.123456] ", b"2026-11-22T01:43:47.123456+00:00 gpu-17 kernel: ",
    b"kern  :err   : [%d.000001] ",
    b"2026-11-22T01:43:47,123456+00:00 ", b"<3>1 2026-11-22T01:43:47Z host kernel - - - ", b"kernel: ",
    b"1763775827.123456 gpu-17 kernel: ",
    b"%d,1,%d,-;", b"[Nov22 01:43] ", b"[  +0.000123] ", b"  ", b"\xef\xbb\xbf", b"gpu-17: [%d.123456] ",
)  # fmt: skip
_PROGRAM_FORMS = (
    b"%s[%d]: segfault at 0 ip 00007f1e sp 00007ffc error 4 in %s[7f1e+1000]",
    b"traps: %s[%d] trap invalid opcode ip:7f1e sp:7ffc error:0 in %s[7f1e+1000]",
    b"%s[%d]: bad frame in rt_sigreturn frame:0 ip:0 sp:0 orax:0 in %s[7f1e+1000]",
)


def message(chance: random.Random) -> bytes:
    """A known message, as it is or changed, or an ordinary one."""
    roll = chance.random()
    known = chance.choice(MESSAGES) if roll < 0.75 else chance.choice(ORDINARY)
    return mutate.mutate_bytes(known, chance, WORDS) if roll > 0.25 else known


def line(chance: random.Random) -> bytes:
    """A line of a log in any format."""
    text = message(chance)
    roll = chance.random()
    if roll < 0.06:
        entry = {
            "MESSAGE": text.decode("utf-8", "replace"),
            "_TRANSPORT": "kernel",
            "PRIORITY": "3",
            "__REALTIME_TIMESTAMP": "1763775827000001",
        }
        if roll < 0.02:
            mutate.mutate_value(entry, chance, 2)
        return json.dumps(entry).encode()
    head = chance.choice(_HEADS)
    if b"%d" in head:
        head = head.replace(b"%d", b"%d" % chance.randrange(100_000))
    whole = head + text
    return mutate.mutate_bytes(whole, chance, WORDS) if roll > 0.85 else whole


def by_user(chance: random.Random) -> bytes:
    """The record of a crash: an unprivileged user has chosen the names of the program (15 bytes) and its file (255)."""
    kind = chance.choice(_PROGRAM_FORMS)
    forged = chance.choice(CRITICAL)
    cut = chance.choice((6, 10, 15))
    name, file = forged[:cut], forged[cut:255] if chance.random() < 0.5 else message(chance)[:255]
    name, file = (part.replace(b"\n", b"_").replace(b"\0", b"_").replace(b"/", b"_") for part in (name, file))
    return kind % (name, chance.randrange(1, 99999), file)


BY_USER = re.compile(
    r"(?:traps: )?.{6,15}\[\d{1,5}\](?:: segfault at 0 ip 00007f1e sp 00007ffc error 4"
    r"| trap invalid opcode ip:7f1e sp:7ffc error:0|: bad frame in rt_sigreturn frame:0 ip:0 sp:0 orax:0)"
    r" in .{0,255}\[7f1e\+1000\]",
    re.DOTALL,
)
"""A record of `by_user`."""
FORGED_KINDS = {"segfault"}
"""What a record of `by_user` may mean: that a program crashed."""
