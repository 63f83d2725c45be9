"""The running agent on a simulated node, without a cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from testing.simnode import IMPATIENT, QUICK, ROUNDS, SimulatedNode, entries, healthy
from testing.waiting import wait_for

from gpuhealth import __version__
from gpuhealth.monitors import MONITORS


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SimulatedNode]:
    """A node of eight H100 whose agent the test starts."""
    made = SimulatedNode(tmp_path, settings=QUICK)
    yield made
    made.driver.release()
    made.stop()


def test_a_fault_read_from_nvml_comes_and_goes(node: SimulatedNode) -> None:
    """A fault in the driver is a finding in the next round, and cleared when it is read clean again."""
    with node:
        wait_for("healthy", lambda: healthy(node))
        node.driver.inject("remap_failed", gpu=2)
        wait_for("the finding", lambda: node.findings() == {"gpu_memory.remap_failed"})
        assert node.metric('gpuhealth_verdict{verdict="unhealthy"}') == 1
        node.driver.clear()
        wait_for("healthy again", lambda: healthy(node) and not node.findings())
    assert entries(node) == [("raised", "gpu_memory.remap_failed"), ("cleared", "gpu_memory.remap_failed")]


@pytest.mark.parametrize("lost", [[3], [3, 5]], ids=["one", "two"])
def test_lost_before_the_agent_came(node: SimulatedNode, lost: list[int]) -> None:
    """GPUs that an agent has never seen well are found lost, and well again when they are back, over a restart too."""
    node.driver.inject("lost", gpu=lost)
    with node:
        wait_for("the findings", lambda: node.findings() == {"gpu.lost"})
        node.stop()
        node.driver.clear()
        node.start()
        wait_for("healthy again", lambda: healthy(node) and not node.findings())


def test_several_findings_are_all_kept(node: SimulatedNode) -> None:
    """Findings of different kinds on several GPUs coexist."""
    with node:
        for gpu, fault in enumerate(["lost", "remap_failed", "power_brake", "pcie_width", "unrepairable"]):
            node.driver.inject(fault, gpu=gpu)
        wanted = {"gpu.lost", "gpu_memory.remap_failed", "power.brake", "pcie.width"}
        wait_for("all findings", lambda: wanted <= node.findings())


def test_a_hang_blinds_nobody_else(node: SimulatedNode) -> None:
    """While every NVML call hangs: metrics answer, the kernel log acts, the hang is a finding; then it clears."""
    node.configure(IMPATIENT)
    starts = "gpuhealth_agent_nvml_process_starts_total"
    with node:
        wait_for("healthy", lambda: healthy(node))
        wait_for("one NVML process", lambda: node.metric("gpuhealth_agent_nvml_processes") == 1)
        descriptors, started = _descriptors(node), node.metric(starts) or 0.0
        node.driver.inject("hang")
        node.xid(79, gpu=3, text="GPU has fallen off the bus.")
        wait_for("the kernel-log fault", lambda: "xid.79" in node.findings())
        labels = 'code="driver.unresponsive",component="node",kind="node",parent=""'
        wait_for("the finding", lambda: "driver.unresponsive" in node.findings())  # a warning, and soon more
        wait_for("the critical", lambda: node.metric(f'gpuhealth_finding{{{labels},severity="critical"}}'))
        assert node.get("/healthz")[0] == 200
        assert not [line for line in node.get("/metrics")[1].splitlines() if line.startswith("gpuhealth_gpu_power")]
        wait_for("another NVML process", lambda: node.metric("gpuhealth_agent_nvml_processes") == 2)
        wait_for("unknown GPUs", lambda: node.metric('gpuhealth_not_checked{check="gpu.lost",reason="timeout"}'))
        node.driver.release()
        node.driver.clear()
        wait_for("the end of the hang", lambda: node.findings() == {"xid.79"})
        wait_for("one NVML process", lambda: node.metric("gpuhealth_agent_nvml_processes") == 1)
        assert node.metric(starts) == started + 1
        wait_for("no descriptor more", lambda: _descriptors(node) <= descriptors + 1)


def _descriptors(node: SimulatedNode) -> int:
    return len(list(Path(f"/proc/{node.pid}/fd").iterdir()))


def test_no_driver_is_not_healthy(node: SimulatedNode) -> None:
    """GPUs on the bus and no kernel module: a finding once the grace is over; the node is never called healthy."""
    node.configure({"findings": {"driver.not_loaded": {"raise_after": "1s"}}})
    node.driver.inject("init_failure")
    with node:
        wait_for("the finding", lambda: "driver.not_loaded" in node.findings())
        assert not healthy(node)


def test_no_library_in_our_container_is_no_fault_of_the_node(node: SimulatedNode) -> None:
    """A loaded kernel module without a library for us: the node is unknown, and nothing asks for its quarantine."""
    node._environment["LD_LIBRARY_PATH"] = "/nonexistent"
    with node:
        wait_for("the finding", lambda: node.findings() == {"agent.nvml_library"})
        wait_for("unknown", lambda: node.metric('gpuhealth_verdict{verdict="unknown"}') == 1)


def test_the_kernel_log_goes_on_where_it_stopped(node: SimulatedNode) -> None:
    """Over restarts of the agent, also by SIGKILL, every record is seen once: none twice, none missed."""
    for number, code in enumerate((63, 64, 92)):
        node.start()
        node.xid(code, gpu=number)
        wait_for("the event", lambda code=code: f"xid.{code}" in _seen(node))  # type: ignore[misc]
        wait_for("the journal", lambda code=code: ("kernel", f"xid.{code}") in entries(node))  # type: ignore[misc]
        node.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
        node.xid(48, gpu=3 + number)  # while no agent runs
    with node:
        wait_for("what came in between", lambda: _kernel(node).count("xid.48") == 3)
    assert sorted(_kernel(node)) == sorted(["xid.63", "xid.64", "xid.92", "xid.48", "xid.48", "xid.48"])


def _seen(node: SimulatedNode) -> set[str]:
    lines = node.get("/metrics")[1].splitlines()
    return {
        "xid." + line.split('xid="')[1].split('"')[0]
        for line in lines
        if line.startswith("gpuhealth_xid_errors_total{")
    }


def _kernel(node: SimulatedNode) -> list[str]:
    return [code for kind, code in entries(node) if kind == "kernel"]


def test_the_first_start_looks_back_and_no_further(node: SimulatedNode) -> None:
    """At the very first start records of the last `lookback` count, and older ones of what is over do not."""
    node.configure({"kmsg": {"lookback": "2m"}})
    node.xid(79, gpu=0, text="GPU has fallen off the bus.", seconds_ago=600)  # this GPU answers, and is sound
    node.xid(95, gpu=1, text="pid=1, name=x, Uncontained")
    with node:
        wait_for("the recent one", lambda: "xid.95" in node.findings())
        assert "xid.79" not in node.findings()


def test_a_latched_finding_survives_a_restart(node: SimulatedNode) -> None:
    """What only a reboot or a reset ends is still there after the agent has been killed."""
    with node:
        node.xid(79, gpu=1, text="GPU has fallen off the bus.")
        wait_for("the finding", lambda: "xid.79" in node.findings())
        wait_for("the journal", lambda: ("raised", "xid.79") in entries(node))
        node.stop(signal.SIGKILL)
        node.start()
        assert "xid.79" in node.findings()
        assert entries(node).count(("raised", "xid.79")) == 1


def test_a_sound_node_is_healthy_from_its_first_round_on(node: SimulatedNode) -> None:
    """All that is essential is measured in the very first rounds, the kernel log too: nobody waits for a second one."""
    node.configure({"interval": "1h"})
    with node:
        wait_for("healthy", lambda: healthy(node))
        for monitor in MONITORS:
            assert node.metric(f'gpuhealth_agent_rounds_total{{monitor="{monitor}"}}') == 1


def test_without_a_kernel_log_nvml_tells_of_xids(node: SimulatedNode) -> None:
    """Where the kernel log cannot be opened, XIDs come from NVML, and that this is so is a finding."""
    node.kmsg.unlink()
    with node:
        wait_for("the warning", lambda: "agent.kmsg_unavailable" in node.findings())

        def reported() -> bool:
            node.driver.inject("xid", gpu=4, code=95)  # repeatedly: NVML reports only events after registration
            return "xid.95" in node.findings()

        wait_for("the XID", reported)


@pytest.mark.parametrize("call", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_no_source_of_xids(node: SimulatedNode, call: str) -> None:
    """With no source of XIDs (kernel log or NVML) the verdict is unknown, and the driver is not blamed."""
    node.kmsg.unlink()
    node.driver.inject("error", call=call, code=3)
    with node:
        wait_for("what is not checked", lambda: 'not_checked{check="xid"' in node.get("/metrics")[1])
        wait_for("unknown", lambda: node.metric('gpuhealth_verdict{verdict="unknown"}') == 1)
        assert node.findings() == set()
        assert node.metric("gpuhealth_agent_nvml_process_starts_total") == 1
        node.driver.clear()
        wait_for("NVML in its place", lambda: node.findings() == {"agent.kmsg_unavailable"})


def test_the_driver_is_released_and_opened_again(node: SimulatedNode) -> None:
    """SIGUSR1 closes every handle of the driver; the reason is shown, nothing is called a fault; a second takes it."""
    with node:
        wait_for("healthy", lambda: healthy(node))
        child = _children(node)[0]
        os.kill(node.pid, signal.SIGUSR1)
        wait_for("the release", lambda: not Path(f"/proc/{child}/maps").exists() or not _children(node))
        wait_for("the reason", lambda: node.metric('gpuhealth_not_checked{check="gpu.lost",reason="released"}'))
        assert node.metric("gpuhealth_agent_driver_released") == 1
        assert node.findings() == set()
        os.kill(node.pid, signal.SIGUSR1)
        wait_for("healthy again", lambda: healthy(node))


def _children(node: SimulatedNode) -> list[str]:
    return Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()


def test_settings_are_taken_up_when_they_change(node: SimulatedNode) -> None:
    """A changed file holds from the next round on; one that cannot be used is reported and changes nothing."""
    with node:
        node.driver.inject("persistence_off", gpu=0)
        wait_for("the finding", lambda: "persistence.off" in node.findings())
        node.configure(
            {"findings": {**QUICK["findings"], "persistence.off": {"quarantine": True, "severity": "critical"}}}
        )
        wait_for("the new severity", lambda: node.metric('gpuhealth_verdict{verdict="unhealthy"}') == 1)
        broken = node.config.with_suffix(".broken")
        broken.write_text("interval: [")
        broken.replace(node.config)
        wait_for("the refusal", lambda: node.metric("gpuhealth_agent_config_valid") == 0)
        assert "is not valid YAML" in next(line["error"] for line in node.log() if "error" in line)
        assert node.metric('gpuhealth_verdict{verdict="unhealthy"}') == 1
        node.configure({})
        wait_for("a usable file", lambda: node.metric("gpuhealth_agent_config_valid") == 1)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n" for a, b in pairwise("abcdefghij"))
        + "interval: *j\n",
        "interval: 1e300",
        "interval: 2024-13-45",
        f"expected_gpus: {'9' * 5000}",
        "[" * 20_000,
        'journal: {path: "a\\0b"}',
        "interval: &x [*x]",
    ],
    ids=["alias bomb", "endless", "no date", "digits", "brackets", "NUL", "in itself"],
)
def test_hostile_settings_stop_no_agent(node: SimulatedNode, text: str) -> None:
    """Settings that nobody can use: a running agent answers, says so, and goes on with the ones it has."""
    with node:
        wait_for("healthy", lambda: healthy(node))
        broken = node.config.with_suffix(".broken")
        broken.write_text(text)
        broken.replace(node.config)
        wait_for("the refusal", lambda: node.metric("gpuhealth_agent_config_valid") == 0)
        assert node.get("/healthz", seconds=20)[0] == 200
        rounds = node.metric(ROUNDS) or 0
        wait_for("more rounds", lambda: (node.metric(ROUNDS) or 0) > rounds)
        assert node.metric('gpuhealth_loop_failures_total{loop="monitor_nvidia"}') == 0
        assert healthy(node)
        (refusal,) = [line for line in node.log() if line["event"] == "configuration rejected"]
        assert len(refusal["error"]) < 600


def _wait_for_rounds(node: SimulatedNode, before: float) -> None:
    wait_for("more rounds", lambda: (node.metric(ROUNDS) or 0) > before)


def test_settings_that_are_no_file_stop_no_agent(node: SimulatedNode) -> None:
    """A pipe, a device without end, a folder or nothing in place of the settings file: a running agent goes on."""
    with node:
        wait_for("healthy", lambda: healthy(node))
        replaced = node.config.with_suffix(".replaced")
        for kind in ("pipe", "device", "nothing", "10 MB"):
            if kind == "pipe":
                os.mkfifo(replaced)
            elif kind == "device":
                replaced.symlink_to("/dev/zero")
            elif kind == "10 MB":
                replaced.write_text("# a comment\n" * 900_000)
            if kind == "nothing":
                node.config.unlink()
            else:
                replaced.replace(node.config)
            wait_for("the refusal", lambda: node.metric("gpuhealth_agent_config_valid") == 0)
            assert node.get("/healthz", seconds=20)[0] == 200
            rounds = node.metric(ROUNDS) or 0
            _wait_for_rounds(node, rounds)
            node.configure({})
            wait_for("a usable file", lambda: node.metric("gpuhealth_agent_config_valid") == 1)
        assert healthy(node)
    refusals = [line["error"] for line in node.log() if line["event"] == "configuration rejected"]
    assert len(refusals) == 4
    assert all(str(node.config) in refusal for refusal in refusals)


def test_settings_that_a_running_agent_cannot_take_up(node: SimulatedNode) -> None:
    """A setting that needs a restart keeps its value and is logged, as is a policy for an unknown finding."""
    with node:
        node.configure({"node_name": "another", "findings": {"xdi.79": {"ignore": True}}, "expected_gpus": 9})
        wait_for("what can be taken up", lambda: "gpu.missing" in node.findings())
        assert node.metric(f'gpuhealth_agent_info{{node="gpu-node-1",version="{__version__}"}}') == 1
    warnings = [line for line in node.log() if line["level"] == "warning"]
    assert ["node_name"] in [line.get("settings") for line in warnings]
    assert ["xdi.79"] in [line.get("patterns") for line in warnings]


def test_stops_in_good_order(node: SimulatedNode) -> None:
    """On SIGTERM the agent ends by itself with 0, leaves no process, and its log is JSON throughout."""
    node.start()
    children = _children(node)
    assert node.stop() == 0
    wait_for("no process left", lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    text = node.log_file.read_text().splitlines()
    assert len(node.log()) == len(text)
    assert [line["event"] for line in node.log()][-1] == "agent stopped"


def test_a_volume_takes_no_node_out(node: SimulatedNode) -> None:
    """A volume of a pod that becomes read-only is a warning; a filesystem of the node takes the node out of service."""
    pod = "/var/lib/kubelet/pods/0b6f3d0e-8a43-4c5e-9f0a-6a1f0b7d2c11/volumes/kubernetes.io~csi/pvc-1/mount"
    table = "".join(
        f"29 1 {number} / {point} rw shared:1 - ext4 /dev/{disk} rw\n"
        for number, point, disk in (("8:1", "/", "sda1"), ("8:16", pod, "sdb"))
    )
    (node.driver.root / "proc/1/mountinfo").write_text(table)
    with node:
        wait_for("the GPUs", lambda: healthy(node))
        node.kernel_says("EXT4-fs (sdb): Remounting filesystem read-only")
        wait_for("the finding", lambda: node.findings() == {"host.volume_errors"})
        assert node.metric('gpuhealth_verdict{verdict="unhealthy"}') == 0
        node.kernel_says("EXT4-fs (sda1): Remounting filesystem read-only")
        wait_for("the finding", lambda: node.metric('gpuhealth_verdict{verdict="unhealthy"}') == 1)
        assert "host.disk_readonly" in node.findings()


def test_random_lines_stay_few(node: SimulatedNode) -> None:
    """20,000 XIDs with random codes and addresses make few series, findings and entries, and hide no real one."""
    now = time.monotonic() * 1e6
    with node:
        wait_for("the GPUs", lambda: healthy(node))
        with node.kmsg.open("a") as log:
            for number in range(20_000):
                place = f"{number % 499:04x}:{number % 251:02x}:00"
                log.write(
                    f"3,{number},{now:.0f},-;NVRM: Xid (PCI:{place}): {300 + number}, pid={number}, name=x, words\n"
                )
            log.write(
                f"3,20000,{now:.0f},-;NVRM: Xid (PCI:{node.pci(0)}): 79, pid=1, name=x, GPU has fallen off the bus.\n"
            )
        wait_for("the real one", lambda: "xid.79" in node.findings())
        assert len(node.findings()) < 40
        assert node.get("/metrics")[1].count("\ngpuhealth_xid_errors_total{") < 100
    assert len(entries(node)) < 200


def test_a_storm_stays_bounded(node: SimulatedNode) -> None:
    """Thousands of XID 45 of a crashed job: no critical finding, few journal lines, a true count."""
    lines, address, now = 5000, node.pci(0), time.monotonic() * 1e6
    storm = (
        f"3,{number},{now:.0f},-;NVRM: Xid (PCI:{address}): 45, pid={number}, name=job, Ch 1\n"
        for number in range(lines)
    )
    with node:
        wait_for("the GPUs", lambda: healthy(node))
        with node.kmsg.open("a") as log:
            log.writelines(storm)
        count = f'gpuhealth_xid_errors_total{{gpu="{node.driver.text("gpu0.uuid")}",xid="45"}}'
        wait_for("all of them", lambda: node.metric(count) == lines)
        assert node.metric('gpuhealth_verdict{verdict="unhealthy"}') == 0
    assert len(entries(node)) < 20
