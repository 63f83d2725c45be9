"""tools/gpu-proof on a simulated node: true values agree, false ones do not, and each step fails alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gpuproof import proof, smi
from gpuproof.rows import ROWS
from gpuproof.step import Context, Outcome, Status, Step, proved
from gpuproof.steps import STEPS, burnin, readings
from testing import nvidia_smi
from testing.paths import BASE
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD

TOOL = BASE.parent / "tools" / "gpu-proof"
LIES = {
    "temperature/gpu_temp": "77 C",
    "fb_memory_usage/total": "40960 MiB",
    "ecc_errors/volatile/dram_uncorrectable": "3",
    "remapped_rows/remapped_row_pending": "Yes",
    "serial": "N/A",
    "vbios_version": "Unknown Error",
    "mig_mode/current_mig": "Enabled",
}


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    """Two H100 and their nvidia-smi."""
    nvidia_smi.install(tmp_path / "bin")
    return SimulatedNode(tmp_path / "node", gpus=2)


def environment(node: SimulatedNode, **more: str) -> dict[str, str]:
    """The environment of the tool on this node."""
    path = os.pathsep.join([str(node.folder.parent / "bin"), os.environ["PATH"]])
    return {**node.env, "PATH": path, **more}


def prove(node: SimulatedNode, *words: str, **more: str) -> tuple[int, str, Any]:
    """Exit code, first line and results of a proof."""
    folder = node.folder.parent / "out"
    command = [str(TOOL), "--out", str(folder), "--minutes", "5", "--devices", "cpu", *words]
    done = subprocess.run(command, env=environment(node, **more), capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, done.stdout.splitlines()[0], json.loads((folder / "results.json").read_text())


def test_a_sound_node(node: SimulatedNode) -> None:
    """Check, replay and all readings are proved, and the folder has the same verdict as the first line."""
    code, line, results = prove(node, "environment", "check", "replay", "readings")
    assert (code, line) == (0, "gpu-proof: all 4 steps proved"), results
    out = node.folder.parent / "out"
    assert (out / "summary.txt").read_text().splitlines()[0] == line
    assert results["steps"][3]["facts"]["agreed"] > 100
    assert "DIFFERS" not in (out / "readings.txt").read_text()


def test_an_nvidia_smi_that_says_otherwise(node: SimulatedNode) -> None:
    """Each value that differs is found, on its GPU, in the XML and in the CSV, and no other one."""
    lies = node.folder / "lies.json"
    lies.write_text(json.dumps(LIES))
    code, line, results = prove(node, "readings", SMI_LIES=str(lies))
    assert (code, line) == (2, "gpu-proof: 1 of 1 steps disproved")
    found = {text.split(": we read")[0].split()[1] for text in results["steps"][0]["lines"]}
    wrong = {"temperature_celsius", "memory_total_bytes", "remap_pending", "serial", "vbios", "mig_enabled"}
    assert found == {*wrong, "ecc_errors.volatile_uncorrected_dram"}
    assert {text.split()[0] for text in results["steps"][0]["lines"]} == {node.driver.text("gpu0.uuid")}


@pytest.mark.parametrize("path", ["uuid", "driver_version", "attached_gpus"])
def test_another_set_of_gpus(node: SimulatedNode, path: str) -> None:
    """A GPU that only one side knows, another number of GPUs, or another driver version is a disagreement."""
    lies = node.folder / "lies.json"
    lies.write_text(json.dumps({path: "GPU-0" if path == "uuid" else "9"}))
    code, _, results = prove(node, "readings", SMI_LIES=str(lies))
    assert code == 2, results


def test_no_driver(node: SimulatedNode) -> None:
    """Without the driver's library the tool says so in its first line, and ends with 3."""
    code, line, results = prove(node, "environment", "readings", LD_LIBRARY_PATH="/nonexistent")
    assert (code, line) == (3, "gpu-proof: no proof possible on this machine"), results


def test_an_interrupt_leaves_a_usable_folder(node: SimulatedNode) -> None:
    """Ctrl-C in a step: what was proved before is there, with a verdict and the names of the steps that did not run."""
    out = node.folder.parent / "out"
    words = [str(TOOL), "--out", str(out), "environment", "agent", "overhead"]
    with subprocess.Popen(words, env=environment(node), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for("the agent", lambda: (out / "agent.log").exists())
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    results = json.loads((out / "results.json").read_text())
    assert said.decode().splitlines()[0] == f"gpu-proof: {results['verdict']}"
    assert results["verdict"].startswith("interrupted; ")
    assert (results["exit_code"], process.returncode) == (3, 3)
    assert ([step["step"] for step in results["steps"]], results["not_run"]) == (["environment"], ["agent", "overhead"])


def test_each_step_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error of one step, and one that takes too long, leave the others as they are."""

    def broken(_: Context) -> Outcome:
        raise ValueError("odd")

    def endless(context: Context) -> Outcome:
        context.run(["sleep", "1000"])
        return proved("never")

    steps = (Step("broken", 1, broken), Step("endless", 1, endless), Step("sound", 100, lambda _: proved("it is")))
    assert proof.run(steps, tmp_path, 20.0, "cpu") == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "gpu-proof: 1 of 3 steps proved, none disproved"
    assert [line.split()[:2] for line in lines[1:4]] == [["broken", "not"], ["endless", "not"], ["sound", "proved"]]
    assert "ValueError: odd" in (tmp_path / "broken.traceback.txt").read_text()


@pytest.mark.parametrize(
    ("raw", "convert", "value"),
    [
        ("8188 MiB", smi.number, 8188 * 2.0**20),
        ("  95.00 W ", smi.number, 95_000.0),
        ("91403239 us", smi.number, 91403239e3),
        ("-12 C", smi.number, -12.0),
        ("16x", smi.number, 16.0),
        ("2560 bank(s)", smi.number, 2560.0),
        ("[N/A]", smi.number, smi.Unavailable("N/A", unsupported=True)),
        ("[Not Supported]", smi.number, smi.Unavailable("Not Supported", unsupported=True)),
        ("[Unknown Error]", smi.number, smi.Unavailable("Unknown Error", unsupported=False)),
        ("GPU is lost", smi.number, smi.Unavailable("GPU is lost", unsupported=False)),
        ("Requested functionality has been deprecated", smi.number, None),
        ("Not Active", smi.flag, False),
        ("00000000:3B:00.0", smi.bus_id, "0000:3b:00.0"),
        ("Pass-Through", smi.one_of("none", "pass-through|passthrough"), 1.0),
        ("many", smi.number, smi.Unavailable("'many' is no number", unsupported=False)),
    ],
)
def test_texts_of_nvidia_smi(raw: str, convert: smi.Convert, value: object) -> None:
    """Units, words and what stands in place of a value are understood, in the brackets of the CSV too."""
    assert smi.converted(raw, convert) == value


@pytest.mark.parametrize("text", ["", "<html/>", "No devices were found", "<nvidia_smi_log><gpu>"])
def test_no_xml_of_nvidia_smi(text: str) -> None:
    """Anything else is refused with a sentence."""
    with pytest.raises(smi.SmiError):
        smi.Smi(text)


def test_both_say_that_there_is_none(node: SimulatedNode) -> None:
    """What a GPU does not have agrees with N/A, in the XML and in the CSV."""
    node.driver.set({"gpu0.supports.memory_temperature": 0, "gpu1.supports.mig": 0})
    code, _, results = prove(node, "readings")
    assert code == 0, results


@pytest.mark.parametrize(
    ("ours", "said", "agrees"),
    [
        (NOT_SUPPORTED, [smi.Unavailable("N/A", unsupported=True)], True),
        (NOT_SUPPORTED, [smi.Unavailable("Unknown Error", unsupported=False)], False),
        (NOT_SUPPORTED, [41.0], False),
        (UNREAD, [smi.Unavailable("Unknown Error", unsupported=False)], True),
        (UNREAD, [41.0], False),
        (40, [smi.Unavailable("N/A", unsupported=True)], False),
        (38, [41.0, 43.0], True),
        (36, [41.0, 43.0], False),
        (48, [41.0, 43.0], False),
    ],
)
def test_what_agrees(ours: Any, said: list[smi.Value], agrees: bool) -> None:
    """The value lies between those before and after it, with the tolerance of a temperature, or neither has one."""
    row = next(row for row in ROWS if row.name == "temperature_celsius")
    assert readings._agrees(ours, said, row) is agrees


def test_injected_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped bits are caught; one kind that no test looks for is reported as missed."""
    torch_context = Context(tmp_path, 300.0, "cpu")
    monkeypatch.setattr(burnin, "_START_SECONDS", 1000.0)  # the shortest burn-ins
    monkeypatch.setenv("GPUHEALTH_ROOTS__KMSG", str(tmp_path / "no-kmsg"))
    assert burnin.faults(torch_context).status is Status.PROVED
    monkeypatch.setattr(burnin, "_FAULTS", {"repeat": "wrong_reduction"})
    missed = burnin.faults(Context(tmp_path, 300.0, "cpu"))
    assert (missed.status, missed.sentence) == (Status.DISPROVED, "1 of 1 injected faults were not caught")


def test_the_table_of_steps() -> None:
    """The steps have distinct names, and fit into nine minutes."""
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert sum(step.seconds for step in STEPS) < 540
