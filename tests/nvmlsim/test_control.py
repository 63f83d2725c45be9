"""The control command: names of values, and changes from several processes at once."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from nvmlsim.simulator import COMMAND, Simulator, SimulatorError


def test_every_name_can_be_read_and_written(node: Simulator) -> None:
    """All names that the command lists are names of values."""
    names = subprocess.run([str(COMMAND), "names"], capture_output=True, text=True, check=True).stdout.split()
    assert len(names) == len(set(names)) > 200
    for name in names:
        single = name.replace("*", "0")
        text = node.text(single)
        if single not in ("node.calls", "node.tree", "gpu0.uuid"):
            node.run("set", f"{single}={text}")


def test_patterns(node: Simulator) -> None:
    """A * stands for every number; reading with one prints names."""
    node.set({"gpu*.link*.state": 2, "gpu1.link0.state": 0})
    lines = node.text("gpu*.link*.state").splitlines()
    assert len(lines) == 2 * 18
    assert lines[:2] == ["gpu0.link0.state=2", "gpu0.link1.state=2"]
    assert lines[18] == "gpu1.link0.state=0"


def test_add(node: Simulator) -> None:
    """Added values accumulate in the counter."""
    node.add({"gpu0.ecc.volatile.uncorrected.dram": 1})
    node.add({"gpu*.ecc.volatile.uncorrected.dram": 2})
    assert [node.get(f"gpu{slot}.ecc.volatile.uncorrected.dram") for slot in (0, 1)] == [3, 2]


@pytest.mark.parametrize(
    "words",
    [
        ["set", "gpu0.temprature=1"],
        ["set", "gpu2.temperature=1"],
        ["set", "gpu0.link36.state=1"],
        ["set", "gpu0.temperature=hot"],
        ["set", "gpu0.temperature"],
        ["set", "gpu0.serial=" + 40 * "1"],
        ["add", "gpu0.name=1"],
        ["get", "gpu0"],
        ["clear", "nonsense"],
        ["frobnicate"],
    ],
)
def test_what_makes_no_sense_is_refused(node: Simulator, words: list[str]) -> None:
    """An unknown name, a value of another kind, an unknown command: an error, in words."""
    with pytest.raises(SimulatorError, match="nvmlsim: "):
        node.run(*words)


def test_help() -> None:
    """The command explains itself, and every fault has a line."""
    text = subprocess.run([str(COMMAND), "--help"], capture_output=True, text=True, check=True).stdout
    assert "nvmlsim inject" in text
    faults = subprocess.run([str(COMMAND), "faults"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in faults.splitlines()} >= {"lost", "hang", "xid", "fabric_unhealthy"}


def test_writers_do_not_lose_each_others_changes(node: Simulator) -> None:
    """Two hundred increments by eight writers at once make two hundred."""

    def add() -> None:
        for _ in range(25):
            node.add({"gpu0.pcie.replays": 1})

    writers = [threading.Thread(target=add) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert node.get("gpu0.pcie.replays") == 200


def test_readers_in_threads_see_one_of_the_values(node: Simulator, gpu: Any) -> None:
    """While a writer changes a value and the GPU comes and goes, every reading is one of those that were written."""
    finished = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not finished.is_set():
            try:
                reading = pynvml.nvmlDeviceGetTemperature(gpu, 0)
                links = pynvml.nvmlDeviceGetFieldValues(gpu, [91, (165, 0), 230])
            except pynvml.NVMLError_GpuIsLost:
                continue
            if reading not in (30, 1_000_000) or [value.nvmlReturn for value in links] != [0, 0, 0]:
                wrong.append(reading)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        node.set({"gpu0.temperature": 1_000_000})
        node.inject("lost", gpu=0)
        node.clear()
    finished.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_inits_and_shutdowns_in_threads(node: Simulator) -> None:
    """Threads that come and go do not take the library away from those that stay."""
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(200):
                pynvml.nvmlInit()
                assert pynvml.nvmlDeviceGetCount() == 2
                pynvml.nvmlShutdown()
        except BaseException as failure:  # noqa: BLE001 - it is shown in the thread that asserts
            failures.append(failure)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_calls_are_counted(node: Simulator, gpu: Any) -> None:
    """The state counts the calls of all programs, so that a test can detect when calls stop."""
    before = node.get("node.calls")
    pynvml.nvmlDeviceGetTemperature(gpu, 0)
    assert node.get("node.calls") == before + 1


def test_programs_see_changes_while_they_run(tmp_path: Path, until: Callable[..., None]) -> None:
    """A program that keeps one nvmlInit reads what another process sets."""
    simulator = Simulator(tmp_path, gpus=1)
    program = (
        "import pynvml as n\nn.nvmlInit()\nh = n.nvmlDeviceGetHandleByIndex(0)\nprint('ready', flush=True)\n"
        "while n.nvmlDeviceGetTemperature(h, 0) != 66:\n    pass"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], env=simulator.env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        simulator.set({"gpu0.temperature": 66})
        assert process.wait() == 0


def test_a_node_made_anew(node: Simulator, make_node: Callable[..., Simulator]) -> None:
    """After a shutdown the next nvmlInit sees the node that the path names then."""
    pynvml.nvmlShutdown()
    make_node("t4", 1)
    assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == "Tesla T4"
    pynvml.nvmlInit()
