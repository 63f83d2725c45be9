"""The agent's journal on a disk that is full, read-only or emptied: written again as soon as that is possible."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from testing.simnode import QUICK, SimulatedNode
from testing.waiting import wait_for

from gpuhealth.runtime.journal import Journal, JournalError

_RETRY_SOON = "import gpuhealth.runtime.journal_writer as writer; writer._RETRY_SECONDS = 0.1"
_MEBIBYTES = 4


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_MEBIBYTES}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def node(tmp_path: Path, disk: Path) -> Iterator[SimulatedNode]:
    """A node whose journal is in a folder of that filesystem."""
    settings = QUICK | {"journal": {"path": str(disk / "gpuhealth" / "journal.sqlite")}}
    made = SimulatedNode(tmp_path / "node", gpus=2, settings=settings)
    yield made
    made.stop(signal.SIGKILL)


def journalled(node: SimulatedNode, code: str) -> bool:
    """Whether the node's journal, read from its file, has the finding as raised."""
    try:
        journal = Journal(Path(node.settings["journal"]["path"]), 1e9, 1000, read_only=True)
    except JournalError:
        return False
    with closing(journal):
        return any((entry.kind, entry.code) == ("raised", code) for entry in journal.entries())


def fill(disk: Path) -> None:
    """Leaves no byte free."""
    with (disk / "other-data").open("ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def free(disk: Path) -> None:
    """Removes the file that `fill` has written, so that there is space again."""
    (disk / "other-data").unlink()


def read_only(disk: Path) -> None:
    """No file can be changed."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def writable(disk: Path) -> None:
    """Lets files be changed again after `read_only`."""
    subprocess.run(["mount", "-o", f"remount,rw,size={_MEBIBYTES}m", disk], check=True)


def survives(node: SimulatedNode, codes: set[str]) -> None:
    """The agent, killed and started again without a kernel log, still has the findings."""
    for code in codes:
        wait_for(f"{code} in the journal", partial(journalled, node, code))
    node.stop(signal.SIGKILL)
    node.kmsg.write_text("")
    node.start()
    assert node.findings() == codes


@pytest.mark.parametrize(("spoil", "mend"), [(fill, free), (read_only, writable)], ids=["full", "read-only"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_a_disk_that_takes_nothing_at_the_start(
    node: SimulatedNode, disk: Path, spoil: Callable[[Path], None], mend: Callable[[Path], None], known: bool
) -> None:
    """What the journal has is read; what is found meanwhile is written when the disk can be written again."""
    found = set()
    if known:
        node.start()
        node.xid(119, gpu=0)
        wait_for("the journal", lambda: journalled(node, "xid.119"))
        node.stop(signal.SIGKILL)
        found = {"xid.119"}
    spoil(disk)
    node.start(_RETRY_SOON)
    assert node.findings() == found
    node.xid(95, gpu=1)
    wait_for("the finding", lambda: "xid.95" in node.findings())
    wait_for("a failed attempt", lambda: node.metric("gpuhealth_agent_journal_errors_total"))
    assert not journalled(node, "xid.95")
    mend(disk)
    survives(node, {"xid.95", *found})


def test_a_disk_that_is_full_for_a_while(node: SimulatedNode, disk: Path) -> None:
    """Under a running agent, findings of that time are written afterwards."""
    node.start(_RETRY_SOON)
    node.xid(119, gpu=0)
    wait_for("the journal", lambda: journalled(node, "xid.119"))
    fill(disk)
    node.xid(95, gpu=1)
    wait_for("a failed attempt", lambda: node.metric("gpuhealth_agent_journal_errors_total"))
    free(disk)
    survives(node, {"xid.119", "xid.95"})


@pytest.mark.parametrize("what", ["folder", "file", "log", "replaced"])
def test_a_journal_that_is_deleted(node: SimulatedNode, what: str) -> None:
    """Under a running agent, its findings are in a new journal with the next entry: SQLite itself notices nothing."""
    path = Path(node.settings["journal"]["path"])
    node.start()
    node.xid(119, gpu=0)
    wait_for("the journal", lambda: journalled(node, "xid.119"))
    match what:
        case "folder":
            shutil.rmtree(path.parent)
        case "file":
            path.unlink()
        case "log":
            Path(f"{path}-wal").unlink()
        case _:
            path.with_name("other").write_bytes(b"no journal" * 1000)
            path.with_name("other").replace(path)
    node.xid(95, gpu=1)
    wait_for("a new journal", lambda: journalled(node, "xid.95"))
    node.stop(signal.SIGKILL)
    node.kmsg.write_text("")
    node.start()
    assert node.findings() == {"xid.119", "xid.95"}
