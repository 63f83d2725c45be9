"""The faults put in on purpose are true ones: what they do to bits, to time and to the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from testing.waiting import wait_for

from gpuhealth.burnin.device import Device, is_out_of_memory
from gpuhealth.burnin.faults import InjectedFaults, bits, flip
from gpuhealth.burnin.protocol import Fault, Job

CPU = Device("cpu", "cpu0", small=True)
OTHER = Device("cpu", "cpu1", small=True)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.int32)


def _faults(*faults: Fault, test: str = "exact") -> InjectedFaults:
    return InjectedFaults(Job(test=test, devices=("cpu",), gpus=("cpu0",), seconds=1, seed=3, faults=faults))


def _flipped(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """The number of differing bits of each element that differs."""
    width = 8 * before.element_size()
    return [(int(x) % (1 << width)).bit_count() for x in (bits(before) ^ bits(after)).flatten() if x]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exactly_the_asked_bits_of_the_asked_elements_are_flipped(dtype: torch.dtype) -> None:
    """The bits are flipped in every dtype, including the sign bit, and in a transposed tensor."""
    tensor = torch.ones(6, 7).to(dtype)
    width = 8 * tensor.element_size()
    for mask in (1, 1 << (width - 1), (1 << width) - 1):
        changed = tensor.clone()
        flip(changed, [3, 41], mask)
        assert _flipped(tensor, changed) == [mask.bit_count()] * 2
        assert torch.nonzero(bits(changed) != bits(tensor)).tolist() == [[0, 3], [5, 6]]
    transposed = tensor.t()
    flip(transposed, [1], 1)
    assert torch.nonzero(bits(transposed) != bits(torch.ones(7, 6).to(dtype))).tolist() == [[0, 1]]


def test_a_fault_happens_after_so_many_so_often_and_always_at_the_same_place() -> None:
    """`after`, `times`, `bits` and `elements` are respected, and the same element is hit each time."""
    faults = _faults(Fault(kind="result_bits", bits=3, elements=2, after=1, times=2))
    places = []
    for call in range(5):
        result = torch.zeros(4, 4)
        faults.after_product(CPU, result)
        assert sum(_flipped(torch.zeros(4, 4), result)) == (6 if call in (1, 2) else 0)
        places.append(torch.nonzero(bits(result)).tolist())
    assert places[1] == places[2]


def test_a_fault_stays_with_its_gpu_its_test_and_its_kind() -> None:
    """A fault does not occur on another GPU, in another test, or in another hook."""
    faults = _faults(Fault(kind="memory_bits", gpu="cpu1"), Fault(kind="wrong_reduction", test="collectives"))
    buffer = torch.zeros(8)
    faults.after_write(CPU, buffer)
    faults.after_collective(OTHER, buffer)
    faults.after_product(OTHER, buffer)
    assert not buffer.any()
    faults.after_write(OTHER, buffer)
    assert buffer.isnan().any() or buffer.any()
    reduced = torch.zeros(8)
    _faults(Fault(kind="wrong_reduction", test="collectives"), test="collectives").after_collective(CPU, reduced)
    assert bits(reduced).any()


def test_one_of_the_operands_is_corrupted() -> None:
    """One bit of one element of one operand is flipped."""
    operands = torch.zeros(4, 4), torch.zeros(4, 4)
    _faults(Fault(kind="input_bits")).after_load(CPU, *operands)
    assert sorted(sum(_flipped(torch.zeros(4, 4), operand)) for operand in operands) == [0, 1]


def test_slowed_work_is_done_once_and_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The added wait is the factor times the duration of the work itself."""
    clock = iter([10.0, 12.0])
    slept: list[float] = []
    monkeypatch.setattr("gpuhealth.burnin.faults.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("gpuhealth.burnin.faults.time.sleep", slept.append)
    done: list[int] = []
    _faults(Fault(kind="slow", factor=3.0)).slowed(CPU, lambda: done.append(1))()
    assert (done, slept) == ([1], [4.0])


def test_memory_runs_out_as_it_does_for_real() -> None:
    """The injected error is torch's own and is recognised; other errors are not."""
    with pytest.raises(RuntimeError) as caught:
        _faults(Fault(kind="out_of_memory")).at_start(CPU)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


_PROCESS = """
import sys
from gpuhealth.burnin.device import Device
from gpuhealth.burnin.faults import InjectedFaults
from gpuhealth.burnin.protocol import Fault, Job
faults = InjectedFaults(
    Job(test="exact", devices=("cpu",), gpus=("cpu",), seconds=1, seed=1, faults=(Fault(kind=sys.argv[1]),))
)
print("begun", flush=True)
faults.at_start(Device("cpu", "cpu"))
print("survived")
"""


@pytest.mark.parametrize(("kind", "death"), [("segfault", signal.SIGSEGV), ("bus_error", signal.SIGBUS)])
def test_a_crash_is_the_kernel_s_own_signal(kind: str, death: int) -> None:
    """The process is killed by the signal of a memory error, not by an exception."""
    process = subprocess.run([sys.executable, "-c", _PROCESS, kind], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert (process.returncode, process.stdout) == (-death, b"begun\n")


def test_a_hang_is_deaf_to_sigterm_s_handler() -> None:
    """A hang in native code holds the interpreter: no signal handler runs, and only SIGKILL ends it."""
    handler = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    source = _PROCESS.replace("import sys\n", "import sys\n" + handler, 1)
    with subprocess.Popen([sys.executable, "-c", source, "hang"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            kernel_waits_in = Path(f"/proc/{process.pid}/wchan")
            wait_for("the hang", lambda: "futex" in kernel_waits_in.read_text())  # before it, a handler still runs
            process.terminate()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
        finally:
            process.kill()
