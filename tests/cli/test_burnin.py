"""`gpuhealth burnin`, as a user runs it: on a simulated node, with processors in the place of its GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from testing.command import Node, Run
from testing.processes import COMMAND
from testing.waiting import wait_for

from gpuhealth.model.burnin_run import BurninRun, TestStatus

_FOUR = "cpu:4,5,6,7"
_SHORT = ("--tests", "memory", "--duration", "100ms")


def _faults(*faults: dict[str, object]) -> str:
    return json.dumps(faults)


def test_four_gpus_one_of_them_bad(gpu_node: Node, tmp_path: Path) -> None:
    """A whole run: exit code, JSON, the file for the agent, the HTML report, and plain lines of progress in a pipe."""
    bad = _uuid(gpu_node, 5)
    page = tmp_path / "report.html"
    said = gpu_node.run(
        *("burnin", "--devices", _FOUR, *_SHORT, "--json", "--report", page),
        *("--reason", "preflight", "--level", "quick"),
        GPUHEALTH_BURNIN__FAULTS=_faults({"kind": "memory_bits", "gpu": bad, "bits": 3}),
        GPUHEALTH_BURNIN__RESULTS_DIR=str(tmp_path / "results"),
        PYTHONWARNINGS="",
    )
    assert said.code == 2, said.err
    run = msgspec.json.decode(said.out, type=BurninRun)
    assert {result.gpu for result in run.results if result.status is TestStatus.FAILED} == {bad}
    assert len([result for result in run.results if result.status is TestStatus.PASSED]) == 3
    assert (run.node, run.boot_id, run.level, run.reason) == (
        "gpu-node-17",
        "11111111-2222-3333-4444-555555555555",
        "quick",
        "preflight",
    )
    assert run.results[0].telemetry["temperature_celsius"].mean == 30
    (saved,) = (tmp_path / "results").iterdir()
    assert saved.read_bytes() == said.out.strip().encode()
    assert f"memory on <code>{bad}</code>" in page.read_text()
    assert re.search(
        r"^\d:\d\d  memory: patterns written to all free GPU memory and read back, 0 s on 4 devices$",
        said.err,
        re.MULTILINE,
    )
    assert "memory: passed on 3 devices" in said.err
    assert "\x1b" not in said.err


def test_at_a_terminal(gpu_node: Node) -> None:
    """Progress is shown on the terminal, one line per GPU; the table at the end goes to standard output. --force tests
    a GPU that another process uses."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("process", gpu=3)
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "burnin", "--devices", "cpu:3", "--force", *_SHORT],
        env=gpu_node.env(TERM="xterm-256color", COLUMNS="140", NO_COLOR="1", PYTHONWARNINGS=""),
        stdout=subprocess.PIPE,
        stderr=its,
        text=True,
    )
    with process:
        os.close(its)
        shown = _all_of(ours)
        assert process.stdout
        out = process.stdout.read()
    assert process.returncode == 0
    uuid = _uuid(gpu_node, 3)
    assert re.search(r"test 1 of 1  memory  patterns written to all free GPU memory", shown)
    assert re.search(rf"cpu +{uuid[:12]}.* 30 °C +70 W +345 MHz", shown)
    assert "\x1b[3" not in shown  # colours
    assert re.search(rf"{uuid[:12]}  H100 80GB HBM3  passed +30 °C", out)
    assert re.search(r"passed: 1 GPU, no errors in \d+ s\.\n$", out)


def test_sigterm_ends_it_with_what_there_is(gpu_node: Node) -> None:
    """SIGTERM ends ten minutes of work soon, with a result that is stopped and has not passed."""
    with _started(gpu_node, "--json") as process:
        wait_for("the workers", lambda: _workers(process.pid))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    run = msgspec.json.decode(out, type=BurninRun)
    assert run.status is TestStatus.STOPPED
    assert {result.status for result in run.results} == {TestStatus.STOPPED}


def test_nothing_is_left_when_it_is_killed(gpu_node: Node) -> None:
    """After SIGKILL, which allows no cleanup, workers and NVML child exit as well."""
    with _started(gpu_node) as process:
        wait_for("the workers", lambda: _workers(process.pid))
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate(timeout=60)
    assert len(children) == 2
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_a_gpu_that_others_use_is_left_alone(gpu_node: Node) -> None:
    """A GPU in use is not tested, and one sentence names the process that uses it."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("process", gpu=1, pid=4711)
    (gpu_node.root / "proc/4711/comm").write_text("python3\n")
    said = gpu_node.run("burnin", "--devices", "cpu:0,1", *_SHORT)
    assert (said.code, said.out) == (3, "")
    assert said.err == (
        f"gpuhealth: cpu ({_uuid(gpu_node, 1)}) is in use by python3 (pid 4711): stop them, or test anyway with"
        " --force\n"
    )


def test_without_cuda_it_says_so(gpu_node: Node) -> None:
    """The default is every GPU that CUDA shows; where there is none, the command fails."""
    said = gpu_node.run("burnin", PYTHONWARNINGS="")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith("gpuhealth: torch ")
    assert said.err.endswith("is built without CUDA: install a build with CUDA, or use --devices cpu\n")


def test_without_torch_it_says_what_to_install(node: Node, tmp_path: Path) -> None:
    """Without PyTorch, the error names the extra to install."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery as m\nfind = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more)\n"
    )
    said = node.run("burnin", "--devices", "cpu", PYTHONPATH=str(tmp_path))
    assert (said.code, said.out) == (3, "")
    assert said.err == ("gpuhealth: the tests need PyTorch, which is not installed: pip install 'gpuhealth[burnin]'\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--level", "deep"), "Invalid value for '--level': 'deep' is not one of 'quick', 'standard', 'long'."),
        (("--tests", "memry"), "--tests: there is no test 'memry'; did you mean memory?"),
        (("--duration", "soon"), "--duration: 'soon' is no duration (write 30s, 10m, 24h or 14d)"),
        (("--duration", "0"), "--duration: must be longer than 0 s"),
        (("--report", "/no/such/folder/page.html"), "--report: there is no directory /no/such/folder"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(run: Run, arguments: tuple[str, ...], sentence: str) -> None:
    """Wrong options are reported before anything is tested."""
    said = run("burnin", *arguments)
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith(f"gpuhealth: {sentence}")
    assert said.err.count("\n") == 1


def test_unknown_devices_are_one_sentence(node: Node) -> None:
    """Devices are matched with the driver's, and a wrong specification is reported before anything is tested."""
    said = node.run("burnin", "--devices", "tpu:0")
    assert (said.code, said.out) == (3, "")
    assert said.err == "gpuhealth: 'tpu:0' names no devices: write all, cuda:0,1, cpu, or cpu:0,1\n"


def test_a_result_that_cannot_be_saved_is_no_pass(node: Node, tmp_path: Path) -> None:
    """A result that cannot be saved for the agent is printed, with exit code 3. The note on telemetry is that of a
    processor that stands for no GPU."""
    (tmp_path / "file").touch()
    in_a_file = {"GPUHEALTH_BURNIN__RESULTS_DIR": str(tmp_path / "file"), "PYTHONWARNINGS": ""}
    said = node.run("burnin", "--devices", "cpu", *_SHORT, "--json", "--save", **in_a_file)
    assert said.code == 3
    assert said.json["status"] == "passed"
    assert [result["gpu"] for result in said.json["results"]] == ["cpu"]
    assert said.json["notes"][0].startswith("no telemetry: not_installed")
    assert f"cannot save the result in {tmp_path / 'file'} for the agent: " in said.err


def _uuid(node: Node, index: int) -> str:
    assert node.simulator
    return node.simulator.text(f"gpu{index}.uuid")


@contextlib.contextmanager
def _started(node: Node, *more: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it does ten minutes of work."""
    arguments = ["burnin", "--devices", "cpu:7", "--tests", "memory", "--duration", "10m", *more]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [COMMAND, *arguments], env=node.env(PYTHONWARNINGS=""), stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _workers(parent: int) -> list[psutil.Process]:
    """The workers of the command that have loaded torch."""
    found = []
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("libtorch" in mapped.path for mapped in child.memory_maps()):
                found.append(child)
    return found


def _all_of(terminal: int) -> str:
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while data := os.read(terminal, 1 << 16):
            shown += data
    os.close(terminal)
    return shown.decode()
