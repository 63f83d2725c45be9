"""Calls that hang or are slow."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from nvmlsim.simulator import Simulator

Until = Callable[[Callable[[], bool]], None]


def _start(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_a_hang_of_one_gpu(node: Simulator, gpu: Any, until: Until) -> None:
    """Only calls about that GPU hang, from all threads, and a release lets all of them go on."""
    other = pynvml.nvmlDeviceGetHandleByIndex(1)
    node.inject("hang", gpu=0)
    threads = [_start(lambda: pynvml.nvmlDeviceGetTemperature(gpu, 0)) for _ in range(3)]
    threads.append(_start(lambda: pynvml.nvmlDeviceGetHandleByIndex(0)))
    until(lambda: node.get("node.hanging") == 4)
    assert pynvml.nvmlDeviceGetTemperature(other, 0) > 0
    assert pynvml.nvmlDeviceGetCount() == 2
    assert all(thread.is_alive() for thread in threads)
    node.release()
    for thread in threads:
        thread.join()
    assert node.get("node.hanging") == 0
    assert node.faults() == []


def test_a_hang_of_everything(tmp_path: Path, until: Until) -> None:
    """Without a GPU every call hangs, nvmlInit in a new process first of all."""
    simulator = Simulator(tmp_path, gpus=1)
    simulator.inject("hang")
    program = [sys.executable, "-c", "import pynvml; pynvml.nvmlInit(); print('in')"]
    with subprocess.Popen(program, env=simulator.env, stdout=subprocess.PIPE, text=True) as process:
        until(lambda: simulator.get("node.hanging") == 1)
        assert process.poll() is None
        simulator.clear("hang")
        assert process.communicate()[0] == "in\n"


def test_a_hang_of_one_function(node: Simulator, gpu: Any, until: Until) -> None:
    """A hang can be of one function, whatever the version that the program calls."""
    node.inject("hang", call="nvmlDeviceGetMemoryInfo")
    thread = _start(lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2))
    until(lambda: node.get("node.hanging") == 1)
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) > 0
    node.release()
    thread.join()


def test_a_hang_ends_by_itself(node: Simulator, gpu: Any) -> None:
    """After its seconds a hang is over."""
    node.inject("hang", gpu=0, seconds=0.05)
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) > 0


def test_a_call_that_was_hanging_sees_what_happened_meanwhile(node: Simulator, gpu: Any, until: Until) -> None:
    """A GPU that is lost during the hang is lost when the call goes on."""
    codes: list[int] = []

    def call() -> None:
        try:
            pynvml.nvmlDeviceGetTemperature(gpu, 0)
        except pynvml.NVMLError as error:
            codes.append(error.value)

    node.inject("hang", gpu=0)
    thread = _start(call)
    until(lambda: node.get("node.hanging") == 1)
    node.inject("lost", gpu=0)
    node.release()
    thread.join()
    assert codes == [pynvml.NVML_ERROR_GPU_IS_LOST]


def test_a_slow_driver_answers(node: Simulator, gpu: Any) -> None:
    """Slow calls are right, only late."""
    node.inject("slow", gpu=0, ms=1)
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == 30


@pytest.mark.parametrize("fault", ["hang", "error"])
def test_more_rules_than_there_is_room_for(node: Simulator, fault: str) -> None:
    """Rules that are used up make room for new ones."""
    used_up: dict[str, Any] = {"seconds": 0.001} if fault == "hang" else {"count": 0}
    for _ in range(40):
        node.inject(fault, gpu=1, call="nvmlDeviceGetSerial", **used_up)


def test_a_new_hang_does_not_hold_the_calls_of_the_old(node: Simulator, gpu: Any, until: Until) -> None:
    """A release frees the calls of its time, even when the next hang begins at once."""
    node.inject("hang", gpu=0)
    thread = _start(lambda: pynvml.nvmlDeviceGetTemperature(gpu, 0))
    until(lambda: node.get("node.hanging") == 1)
    node.release()
    node.inject("hang", gpu=1)
    thread.join()
