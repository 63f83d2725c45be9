"""Runs a node until its standard input ends, which the kernel does too when whoever has started it is killed.

    python -m kube.single_node.supervisor FOLDER

The node is one process tree in namespaces of its own. Its end leaves nothing but its cgroups and its folder, which are
removed here.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from kube.single_node.packages import SOFTWARE, unpacked, with_packages

_CGROUPS = Path("/sys/fs/cgroup")
_SECONDS = 10.0  # for processes that have been killed to leave their cgroups
_UNSHARE = ("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")


def main() -> None:
    """Start the node, wait, and take everything away again."""
    folder = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C goes to the whole group; our input ends then too
    init = [*_UNSHARE, sys.executable, "-m", "kube.single_node.init", str(folder)]
    with (folder / "init.log").open("wb") as log:
        node = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *with_packages(unpacked("software", SOFTWARE), init, folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    ended = os.pidfd_open(node.pid)
    select.select([sys.stdin.fileno(), ended], [], [])
    node.kill()
    node.wait()
    remove_cgroups(folder.name)
    shutil.rmtree(folder, ignore_errors=True)


def cgroups(name: str) -> list[Path]:
    """The node's cgroup in each hierarchy: several of version 1, one of version 2, or both."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS / name]
    folders = [each for each in _CGROUPS.iterdir() if each.is_dir() and not each.is_symlink()]
    return [each / name for each in folders if (each / "cgroup.procs").exists()]


def remove_cgroups(name: str) -> None:
    """Removes the node's cgroups, as soon as its processes have left them."""
    deadline = time.monotonic() + _SECONDS
    while (left := [each for each in cgroups(name) if each.exists()]) and time.monotonic() < deadline:
        for top in left:
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()
        time.sleep(0.05)


if __name__ == "__main__":
    main()
