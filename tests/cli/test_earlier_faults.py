"""`gpuhealth check` and faults of this boot that were logged long ago: present until a reset or a reboot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from testing.command import BOOT_ID, Node, Said

from gpuhealth.model.causes import Ended
from gpuhealth.model.component import Component, Kind
from gpuhealth.model.tracker_state import TrackerState
from gpuhealth.runtime.journal import Journal

OLD = 1800.0  # seconds; the look-back is 600
AT = "NVRM: Xid (PCI:0000:61:00): "  # GPU 3 of the simulated node
GSP = f"{AT}119, pid=7, name=x, Timeout after 45s of waiting for RPC response from GPU3 GSP!"
UNCONTAINED = f"{AT}95, pid=7, name=x, Uncontained: FBHUB. RST: Yes, D-RST: No"
LOST = f"{AT}79, GPU has fallen off the bus."
RECOVERED = f"{AT}154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
LOADED = "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U22)"
UVM = "NVRM: uvm encountered global fatal error 0x60, requiring os reboot to recover."
SXID = "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal, Link 05 LTSSM Fault Up"
UE = "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0"


@pytest.fixture
def old_driver(gpu_node: Node) -> Node:
    """A node whose driver does not report the recovery action of a GPU."""
    assert gpu_node.simulator
    gpu_node.simulator.set({f"gpu{index}.supports.recovery_action": 0 for index in range(8)})
    gpu_node.log("Linux version 6.8.0")
    return gpu_node


def codes(said: Said) -> list[str]:
    """The codes of the findings in the JSON."""
    return sorted(finding["code"] for finding in said.json["findings"])


def test_an_old_fault_is_still_there(old_driver: Node) -> None:
    """XIDs that a reset ends are found half an hour later, once each and with their own time; others are over."""
    now = datetime.now(UTC)
    for line in (GSP, UNCONTAINED, UNCONTAINED, f"{AT}31, pid=7, name=x, MMU Fault"):
        old_driver.log(line, seconds_ago=OLD)
    said = old_driver.run("check", "--json")
    assert (said.code, codes(said)) == (2, ["xid.119", "xid.95"])
    for finding in said.json["findings"]:
        for time in ("first_seen", "last_seen"):
            age = now - datetime.fromisoformat(finding[time])
            assert abs(age - timedelta(seconds=OLD)) < timedelta(minutes=1)
    assert f"\n  seen    {now - timedelta(seconds=OLD):%Y-%m-%d }" in old_driver.run("check").out


def test_since_is_exactly_what_is_judged(old_driver: Node) -> None:
    """With --since exactly that part of the log counts, and the coverage states what does not."""
    old_driver.log(GSP, seconds_ago=OLD)
    for since, code in (("5m", 0), ("1h", 2)):
        said = old_driver.run("check", "--json", "--since", since)
        assert said.code == code
        assert not_read(said) == f"kernel log: only the records of the last {300 if code == 0 else 3600} s count"
    assert not_read(old_driver.run("check", "--json")) == ""


def not_read(said: Said) -> str:
    """What the coverage says of records that were not looked at."""
    unread = {each["check"]: each["detail"] for each in said.json["coverage"]["not_checked"]}
    assert ("agent.kmsg_not_read" in unread) != ("agent.kmsg_not_read" in said.json["coverage"]["checked"])
    return str(unread.get("agent.kmsg_not_read", ""))


def test_records_that_are_gone_are_stated(gpu_node: Node) -> None:
    """Where the ring buffer has overwritten the beginning of this boot, both have the time of the oldest record."""
    gpu_node.kmsg.write_text("6,4711,1000000,-;usb 1-1: new device\n")
    gone = not_read(gpu_node.run("check", "--json"))
    assert gone.startswith("kernel log: from 2")
    assert gone.endswith("Z on; earlier records of this boot are gone")
    said = gpu_node.run("check")
    assert (said.code, said.out.count(gone)) == (0, 1)


def test_a_log_that_cannot_be_read_is_stated(gpu_node: Node) -> None:
    """Without a kernel log, its records of this boot are not checked either."""
    gpu_node.kmsg.unlink()
    assert str(gpu_node.kmsg) in not_read(gpu_node.run("check", "--json"))


@pytest.mark.parametrize(
    ("log", "left"),
    [
        ((GSP, LOADED), []),
        ((LOADED, GSP), ["xid.119"]),
        ((GSP, RECOVERED), []),
        ((RECOVERED, GSP), ["xid.119"]),
        ((GSP, RECOVERED.replace("61:00", "43:00")), ["xid.119"]),
        ((f"{AT}154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",), ["xid.154"]),
        ((f"{AT}154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", RECOVERED), []),
        ((LOST, LOADED), []),
        ((LOST.replace("61:00", "99:00"), LOADED), ["xid.79"]),  # no GPU answers there
        ((UVM,), ["driver.needs_reboot"]),
        ((UVM, LOADED), []),
        ((SXID,), ["sxid.20034"]),
        ((SXID, LOADED), []),
        ((UE, LOADED), ["host.memory_edac"]),
        ((GSP, f"{'NVRM: loading N'}[77]: segfault at 0 ip 0 sp 0 error 4 in NVIDIA UNIX[1+1]"), ["xid.119"]),
    ],
)
def test_what_was_logged_later(old_driver: Node, log: tuple[str, ...], left: list[str]) -> None:
    """A later load of the driver or a logged recovery ends its faults, if the GPU answers; nothing else does."""
    for number, line in enumerate(log):
        old_driver.log(line, seconds_ago=OLD - number)
    said = old_driver.run("check", "--json")
    assert codes(said) == left
    assert said.code == (2 if left else 0)


def test_a_recent_line_ends_an_old_fault(old_driver: Node) -> None:
    """The line that ends an old fault may be a recent one."""
    old_driver.log(GSP, seconds_ago=OLD)
    old_driver.log(LOADED)
    assert codes(old_driver.run("check", "--json")) == []


def test_readings_that_prove_recovery(gpu_node: Node) -> None:
    """A GPU that answers, requests no recovery action and counts no uncorrectable error has been reset, and a note
    names the fault; with a pending action, an ECC error, or while it is lost, the fault is still there."""
    assert gpu_node.simulator
    gpu_node.log("Linux version 6.8.0")
    gpu_node.log(GSP, seconds_ago=OLD)
    said = gpu_node.run("check", "--json")
    assert (said.code, codes(said)) == (0, [])
    (note,) = said.json["notes"]
    assert note.startswith("xid.119 of ")
    assert "(0000:61:00) is over: the GPU answers, the driver requests no recovery action" in note
    for fault in ("recovery_action", "ecc_uncorrectable", "lost"):
        gpu_node.simulator.inject(fault, gpu=3)
        said = gpu_node.run("check", "--json")
        assert "xid.119" in codes(said), fault
        assert said.json["notes"] == []
        gpu_node.simulator.clear()


def test_what_the_agent_has_seen_end_is_over(old_driver: Node) -> None:
    """A fault that the agent's journal has as ended later is not found again; one that ended earlier is."""
    old_driver.log(GSP, seconds_ago=OLD)
    gpu = next(each["uuid"] for each in old_driver.run("check", "--json").json["gpus"] if each["index"] == 3)
    for ago, left in ((OLD + 60, ["xid.119"]), (OLD - 60, [])):
        when = datetime.now(UTC) - timedelta(seconds=ago)
        state = TrackerState(ended=[Ended("xid.119", Component(Kind.GPU, gpu), when)])
        journal = Journal(old_driver.journal, 86400.0, 1000)
        journal.write(state={"findings": msgspec.json.encode(state)})
        journal.close()
        assert codes(old_driver.run("check", "--json")) == left


def test_a_capture_holds_old_faults(old_driver: Node) -> None:
    """`check --replay` finds old faults of the captured node, and --only selects among them."""
    old_driver.log(GSP, seconds_ago=OLD)
    file = old_driver.folder / "c.tar.gz"
    assert old_driver.run("capture", "-o", file).code == 0
    said = old_driver.run("check", "--json", "--replay", file)
    assert (said.code, codes(said)) == (2, ["xid.119"])
    assert codes(old_driver.run("check", "--json", "--replay", file, "--only", "xid.95")) == []


def test_it_can_be_turned_off(old_driver: Node) -> None:
    """With the setting kmsg.since_boot: false only the look-back counts, and the coverage states it."""
    old_driver.log(GSP, seconds_ago=OLD)
    old_driver.configure("kmsg: {since_boot: false}")
    said = old_driver.run("check", "--json")
    assert (said.code, not_read(said)) == (0, "kernel log: only the records of the last 600 s count")


def test_another_boot_is_another_log(old_driver: Node) -> None:
    """The kernel log holds this boot alone, so that a reboot ends every earlier fault."""
    old_driver.log(GSP, seconds_ago=OLD)
    assert old_driver.run("check").code == 2
    old_driver.kmsg.write_text("")
    (old_driver.root / "proc/sys/kernel/random/boot_id").write_text(BOOT_ID.replace("1", "2"))
    assert old_driver.run("check").code == 0
