"""`gpuhealth check`: what it finds, what it says by its exit code, and what it never claims."""

import math
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from testing.command import BOOT_ID, Node, Run
from testing.processes import COMMAND
from testing.waiting import wait_for

from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.runtime.journal import Journal

XID_79 = "NVRM: Xid (PCI:0000:61:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
GONE = "GPU-99999999-8888-7777-6666-555555555555"


def test_healthy_node_exits_0(gpu_node: Node) -> None:
    """A healthy node is healthy, with all its GPUs, and nothing is written to standard error."""
    said = gpu_node.run("check")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0].startswith("gpu-node-17  driver ")
    assert said.out.count("H100 80GB HBM3") == 8
    assert said.out.splitlines()[-1] == "healthy: 8 GPUs, no fault found."


def test_warning_exits_1(gpu_node: Node) -> None:
    """A warning degrades: exit 1, the finding with its action and clearing rule."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("persistence_off", gpu=2)
    said = gpu_node.run("check")
    assert said.code == 1
    assert "WARNING  persistence.off" in said.out
    for label in ("what", "read", "source", "action", "clears"):
        assert f"\n  {label}" in said.out
    assert said.out.splitlines()[-1].startswith("degraded: 1 warning; the node can stay in service. Next: ")
    gpu_node.simulator.clear()
    gpu_node.simulator.inject("remap_reserve", gpu=2)
    assert "; the node can stay in service. When the node is idle: " in gpu_node.run("check").out.splitlines()[-1]


def test_critical_exits_2_and_says_what_to_do(gpu_node: Node) -> None:
    """A critical finding makes unhealthy: exit 2, and the last line says what to do next, and to which GPU."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("ecc_uncorrectable", gpu=5)
    said = gpu_node.run("check")
    assert said.code == 2
    last = said.out.splitlines()[-1]
    assert last.startswith("UNHEALTHY: 1 critical finding. Next: drain the node, then reset the GPU (GPU 5")
    assert "The agent quarantines and drains a node in this state" in last


def test_the_next_step_includes_the_steps_for_other_findings(gpu_node: Node) -> None:
    """Of several critical findings, the last line names the action that includes the others, here a reboot."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("ecc_uncorrectable", gpu=5)
    gpu_node.simulator.inject("lost", gpu=3)
    last = gpu_node.run("check").out.splitlines()[-1]
    assert last.startswith("UNHEALTHY: 2 critical findings. Next: drain the node, then reboot it (GPU 3, gpu.lost).")


def test_no_gpu_and_no_driver_is_never_healthy(node: Node) -> None:
    """A machine without GPU and driver gets one clear sentence and exit 3."""
    said = node.run("check")
    assert (said.code, said.err) == (3, "")
    assert said.out.splitlines()[1:] == [
        "There is no NVIDIA GPU and no NVIDIA driver on this machine: nothing was checked."
    ]


def test_no_gpu_and_no_driver_in_json(node: Node) -> None:
    """In JSON, a machine without GPU and driver is unknown, with all checks listed as not checked."""
    said = node.run("check", "--json")
    assert said.code == 3
    assert (said.json["verdict"], said.json["gpus"], said.json["findings"]) == ("unknown", [], [])
    assert said.json["coverage"]["checked"] == []
    assert "gpu.lost" in {each["check"] for each in said.json["coverage"]["not_checked"]}


def test_no_driver_where_gpus_are_expected(node: Node) -> None:
    """A machine without GPUs is unhealthy, and not unknown, where some are expected."""
    said = node.run("check", "--json", "--expected-gpus", "8")
    assert (said.code, said.json["verdict"]) == (2, "unhealthy")


def test_json_contract(gpu_node: Node) -> None:
    """The JSON has the documented keys, and a finding has everything needed to assess it elsewhere."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("persistence_off", gpu=2)
    said = gpu_node.run("check", "--json")
    found = said.json
    assert list(found) == ["node", "time", "verdict", "components", "gpus", "findings", "coverage", "notes"]
    assert found["node"] == "gpu-node-17"
    assert datetime.fromisoformat(found["time"]).tzinfo is not None
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(8))
    assert found["gpus"][0].keys() >= {"index", "uuid", "pci", "model", "verdict"}
    assert [gpu["verdict"] for gpu in found["gpus"]].count("degraded") == 1
    (finding,) = found["findings"]
    assert finding.keys() >= {
        "code", "severity", "component", "message", "action", "evidence", "first_seen", "last_seen", "clears_when",
    }  # fmt: skip
    assert finding["component"] == {"kind": "gpu", "id": found["gpus"][2]["uuid"]}
    parts = {(part["kind"], part["id"], part["parent"]): part["verdict"] for part in found["components"]}
    assert parts == {("gpu", gpu["uuid"], ""): gpu["verdict"] for gpu in found["gpus"]}
    assert "gpu.lost" in found["coverage"]["checked"]
    assert found["coverage"]["not_checked"]
    assert all(each.keys() == {"check", "component", "reason", "detail"} for each in found["coverage"]["not_checked"])
    assert {each["component"]["kind"] for each in found["coverage"]["not_checked"]} <= {"gpu", "node"}


def test_one_lost_gpu_does_not_hide_the_others(gpu_node: Node) -> None:
    """One lost GPU of eight is unhealthy, and the other seven are still checked."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("lost", gpu=3)
    said = gpu_node.run("check", "--json")
    assert said.code == 2
    verdicts = [gpu["verdict"] for gpu in said.json["gpus"]]
    assert verdicts == ["healthy"] * 3 + ["unhealthy"] + ["healthy"] * 4
    assert [finding["code"] for finding in said.json["findings"]] == ["gpu.lost"]
    missing = [each for each in said.json["coverage"]["not_checked"] if each["check"] == "thermal.gpu"]
    assert [each["component"]["id"] for each in missing] == [said.json["gpus"][3]["uuid"]]
    assert missing[0]["reason"] == "gpu_lost"
    assert "GPU is lost" in missing[0]["detail"]


@pytest.mark.parametrize(
    ("code", "exit_code", "finding"),
    [
        (999, 2, "nvml.error"),
        (8, 2, "nvml.error"),
        (2, 2, "nvml.error"),
        (15, 2, "gpu.lost"),
        (4, 3, "agent.permission"),
        (13, 3, "agent.unexpected_reading"),
    ],
)
def test_one_gpu_of_eight_that_cannot_be_opened(gpu_node: Node, code: int, exit_code: int, finding: str) -> None:
    """A refused handle is that GPU's fault at the first look, and our own lack of something makes it unknown."""
    assert gpu_node.simulator
    gpu_node.simulator.lie("nvmlDeviceGetHandleByIndex", gpu=3, code=code)
    said = gpu_node.run("check", "--json")
    assert (said.code, len(said.json["gpus"])) == (exit_code, 8)
    assert [each["code"] for each in said.json["findings"]] == [finding]
    assert [gpu["verdict"] for gpu in said.json["gpus"]].count("healthy") == 7


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
@pytest.mark.parametrize("field", [82, 230])
def test_an_odd_value_hides_no_fault(gpu_node: Node, field: int, value: float) -> None:
    """An unusable field value of a GPU with faulty memory does not hide its findings or other GPUs."""
    assert gpu_node.simulator
    gpu_node.simulator.lie("nvmlDeviceGetFieldValues", gpu=3, field=field, value=value)
    for fault in ("ecc_uncorrectable", "remap_failed"):
        gpu_node.simulator.inject(fault, gpu=3)
    gpu_node.simulator.inject("slow", ms=2)  # so that the lines arrive one by one
    gpu_node.simulator.inject("prints")
    said = gpu_node.run("check", "--json")
    assert (said.code, said.json["verdict"], len(said.json["gpus"])) == (2, "unhealthy", 8)
    assert {"ecc.uncorrectable", "gpu_memory.remap_failed"} <= {each["code"] for each in said.json["findings"]}
    assert said.err == ""


def test_mig_devices_are_listed(node: Node) -> None:
    """MIG devices are listed below their GPU in the table, and in it in JSON."""
    node.with_gpus(gpus=1, mig=2)
    assert node.run("check").out.count("MIG instance") == 2
    assert len(node.run("check", "--json").json["gpus"][0]["mig"]) == 2


def test_expected_number_of_gpus(gpu_node: Node) -> None:
    """--expected-gpus reports missing GPUs, and takes precedence over the environment."""
    assert gpu_node.run("check", "--expected-gpus", "8", GPUHEALTH_EXPECTED_GPUS="9").code == 0
    said = gpu_node.run("check", "--expected-gpus", "9")
    assert said.code == 2
    assert "gpu.missing" in said.out


def test_gpu_that_the_agent_remembers_is_missed(gpu_node: Node) -> None:
    """A GPU known to the agent and gone from bus, /dev and NVML is missing; the journal is not changed."""
    there = {gpu["uuid"]: gpu["pci"] for gpu in gpu_node.run("check", "--json").json["gpus"]}
    memory = Memory(baselines={"nvidia": Baseline(gpus={**there, GONE: PciAddress("0000:ff:00.0")})})
    journal = Journal(gpu_node.journal, 86400.0, 1000)
    journal.write(state={"checks": msgspec.json.encode(memory)})
    journal.close()
    before = gpu_node.journal.read_bytes()
    said = gpu_node.run("check")
    assert said.code == 2
    assert "gpu.missing" in said.out
    assert "GPU-99999999" in said.out
    assert ", gone" in said.out
    assert gpu_node.journal.read_bytes() == before


def test_finding_that_the_agent_still_holds(gpu_node: Node) -> None:
    """A finding that the agent holds active and a single run cannot see is a note."""
    gpu_node.log(XID_79)
    found = gpu_node.run("check", "--json").json["findings"]
    finding = next(each for each in found if each["code"] == "xid.79")
    tracked = [{"finding": finding, "raised": True, "boot_id": BOOT_ID.strip()}]
    journal = Journal(gpu_node.journal, 86400.0, 1000)
    journal.write(state={"findings": msgspec.json.encode({"tracked": tracked})})
    journal.close()
    assert "still reports" not in gpu_node.run("check").out
    gpu_node.kmsg.write_text("")
    said = gpu_node.run("check")
    assert said.code == 0
    assert "note: the agent still reports xid.79 since " in said.out


def test_records_that_a_program_wrote(gpu_node: Node) -> None:
    """A record that a program has written to /dev/kmsg is no fault, unless the settings accept it for a drill."""
    gpu_node.kmsg.write_text("")
    gpu_node.log("NVRM: Xid (PCI:0000:07:00): 79, pid=1, name=x, GPU has fallen off the bus.", priority=11)
    assert "xid.79" not in gpu_node.run("check").out
    gpu_node.configure("kernel_log: {accept_user_records: true}")
    assert "xid.79" in gpu_node.run("check").out


def test_a_damaged_journal_is_a_note(gpu_node: Node) -> None:
    """An unreadable journal is a note, and does not stop the check."""
    gpu_node.journal.write_text("this is no journal, and long enough to be looked at as one\n" * 50)
    said = gpu_node.run("check")
    assert said.code == 0
    assert f"note: {gpu_node.journal} is no journal" in said.out


def test_xid_in_the_kernel_log(gpu_node: Node) -> None:
    """An XID of the last minutes is a finding with its log line; one before --since is not."""
    gpu_node.log(XID_79, seconds_ago=120.0)
    said = gpu_node.run("check")
    assert said.code == 2
    assert "CRITICAL  xid.79" in said.out
    assert XID_79 in said.out
    assert gpu_node.run("check", "--since", "1m").code == 0


def test_kernel_log_that_cannot_be_read_is_in_the_coverage(gpu_node: Node) -> None:
    """An unreadable kernel log is in the coverage, with the reason."""
    gpu_node.kmsg.unlink()
    said = gpu_node.run("check", "--json")
    unread = {each["check"]: each["detail"] for each in said.json["coverage"]["not_checked"]}
    assert any(
        code.startswith(("xid", "agent.kmsg")) and str(gpu_node.kmsg) in detail for code, detail in unread.items()
    )


def test_only_restricts_findings_verdict_and_coverage(gpu_node: Node) -> None:
    """--only restricts findings, verdict and coverage to the selected codes."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("persistence_off", gpu=2)
    gpu_node.simulator.inject("ecc_uncorrectable", gpu=5)
    assert gpu_node.run("check", "--only", "thermal").code == 0
    said = gpu_node.run("check", "--json", "--only", "persistence.off", "--only", "thermal.*")
    assert said.code == 1
    assert {finding["code"] for finding in said.json["findings"]} == {"persistence.off"}
    assert set(said.json["coverage"]["checked"]) == {"persistence.off", "thermal.gpu", "thermal.memory"}
    assert said.json["gpus"][5]["verdict"] == "healthy"


def test_only_what_cannot_be_measured_is_unknown(gpu_node: Node) -> None:
    """A GPU on which the only selected check could not run is unknown."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("lost", gpu=3)
    said = gpu_node.run("check", "--json", "--only", "thermal.gpu")
    assert said.code == 3
    assert [gpu["verdict"] for gpu in said.json["gpus"]].count("unknown") == 1


@pytest.mark.parametrize("code", ["xid.48", "xid", "host.oom"])
def test_only_codes_of_the_kernel_log(gpu_node: Node, code: str) -> None:
    """Selecting an event gives healthy where the kernel log has none, and unknown where it cannot be read."""
    said = gpu_node.run("check", "--json", "--only", code)
    assert (said.code, said.json["coverage"]["checked"]) == (0, ["xid"])
    gpu_node.kmsg.unlink()
    assert gpu_node.run("check", "--only", code).code == 3


def test_only_unknown_code(run: Run) -> None:
    """A misspelt code is an error that names similar ones, and does not pass."""
    said = run("check", "--only", "ecc.uncorectable")
    assert (said.code, said.out) == (3, "")
    assert said.err.count("\n") == 1
    assert "did you mean ecc.uncorrectable" in said.err


def test_hung_driver(gpu_node: Node) -> None:
    """A driver that hangs is waited for until it counts as hung: critical, and what answered before is judged.

    The process that hangs is left behind, and nobody who reads our output waits for it.
    """
    assert gpu_node.simulator
    gpu_node.simulator.inject("hang", gpu=4)
    gpu_node.configure("nvml: {warn_after: 2s, critical_after: 4s}")
    try:
        said = gpu_node.run("check", "--json")  # it ends while the driver hangs
    finally:
        gpu_node.simulator.release()
    assert (said.code, said.err) == (2, "")
    assert [finding["code"] for finding in said.json["findings"]] == ["driver.unresponsive"]
    assert [gpu["index"] for gpu in said.json["gpus"]] == [0, 1, 2, 3]


def test_interrupt(gpu_node: Node) -> None:
    """Ctrl-C while the driver hangs ends with 130 and without a traceback."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("hang")
    with subprocess.Popen(
        [COMMAND, "check"], env=gpu_node.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _wait_for_child(process.pid)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            gpu_node.simulator.release()
    assert (process.returncode, out, err) == (130, "", "")


def _wait_for_child(pid: int) -> None:
    """Waits until the process has started another one."""
    wait_for("another process", lambda: _children(pid))


def _children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--nonsense"], "No such option: --nonsense"),
        (["--expected-gpus", "-1"], "greater than or equal to 0"),
        (["--since", "yesterday"], "'yesterday' is no duration"),
        (["--config", "/nonexistent.yaml"], "cannot read configuration /nonexistent.yaml"),
        (["--replay", "/nonexistent.tgz"], "cannot read /nonexistent.tgz"),
    ],
)
def test_wrong_use(run: Run, arguments: list[str], sentence: str) -> None:
    """Wrong use is one sentence on standard error and exit 3, so that it is never taken for a verdict."""
    said = run("check", *arguments)
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith("gpuhealth: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err


def test_unknown_setting(node: Node, run: Run) -> None:
    """A setting that does not exist is named, with the file that has it."""
    node.configure("thermall: {}")
    said = run("check")
    assert said.code == 3
    assert said.err == f"gpuhealth: configuration {node.config}: thermall is not a known setting\n"


def test_settings_of_a_finding_that_does_not_exist(gpu_node: Node) -> None:
    """A misspelt code in the settings is a note; a right one is not."""
    gpu_node.configure("findings: {xdi.79: {ignore: true}, xid.79: {ignore: true}, 'ecc.*': {ignore: true}}")
    said = gpu_node.run("check")
    assert [line for line in said.out.splitlines() if line.startswith("note:")] == [
        "note: setting findings.xdi.79 matches no finding code",
        "note: findings ignored by settings: ecc.*, xdi.79, xid.79",
    ]


def test_time_is_now(gpu_node: Node) -> None:
    """The verdict has the time of the reading."""
    before = datetime.now(UTC)
    taken = datetime.fromisoformat(gpu_node.run("check", "--json").json["time"])
    assert before <= taken <= datetime.now(UTC)
