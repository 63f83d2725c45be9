"""Which devices are tested, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuhealth.burnin.protocol import CudaDevice
from gpuhealth.burnin.targets import BurninError, Target, needs_cuda, processes_using, targets
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.readings import GpuProcess, GpuReadings, MigDevice

A, B, MIG = (f"{number:08x}-1111-2222-3333-444444444444" for number in (1, 2, 3))
CUDA = (CudaDevice("cuda:0", B, "torch's name"), CudaDevice("cuda:1", A, "torch's name"))
GPUS = {
    f"GPU-{A}": GpuReadings(0, uuid=f"GPU-{A}", name="NVIDIA H100"),
    f"GPU-{B}": GpuReadings(1, uuid=f"GPU-{B}", name="NVIDIA H200", mig_devices=(MigDevice(f"MIG-{MIG}", 1, 0),)),
}


def test_cuda_devices_are_matched_by_uuid_and_not_by_number() -> None:
    """CUDA devices are matched with NVML's GPUs by uuid, because their order may differ."""
    assert targets("all", CUDA, GPUS) == (
        Target("cuda:0", f"GPU-{B}", "NVIDIA H200"),
        Target("cuda:1", f"GPU-{A}", "NVIDIA H100"),
    )
    assert targets("cuda:1", CUDA, GPUS) == (Target("cuda:1", f"GPU-{A}", "NVIDIA H100"),)
    assert targets("cuda", CUDA, GPUS) == targets("cuda:0,1", CUDA, GPUS) == targets("cuda:0,cuda:1", CUDA, GPUS)


def test_a_mig_device_is_its_gpu_and_an_unknown_one_keeps_its_own_name() -> None:
    """A MIG device is reported as its GPU, and a GPU that NVML does not know by its uuid."""
    assert targets("all", [CudaDevice("cuda:0", MIG, "slice")], GPUS)[0].gpu == f"GPU-{B}"
    assert targets("all", CUDA[:1], {}) == (Target("cuda:0", f"GPU-{B}", "torch's name"),)


def test_a_processor_stands_for_a_gpu_where_there_is_one() -> None:
    """`cpu:1` stands for NVML's GPU 1, or for itself where there is none."""
    assert targets("cpu:1,0", (), GPUS) == (
        Target("cpu", f"GPU-{B}", "NVIDIA H200"),
        Target("cpu", f"GPU-{A}", "NVIDIA H100"),
    )
    assert targets("cpu", (), GPUS) == (Target("cpu", "cpu"),)
    assert targets("cpu:0,1", (), {}) == (Target("cpu", "cpu:0"), Target("cpu", "cpu:1"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "'' names no devices"),
        ("gpu:0", "'gpu:0' names no devices: write all, cuda:0,1"),
        ("cuda:x", "names no devices"),
        ("0,1", "names no devices"),
        ("all:0", "names no devices"),
        ("cuda:7", "there is no cuda:7: CUDA shows cuda:0, cuda:1"),
        ("cpu:9", "cpu:9 stands for GPU 9, but NVML lists 2 GPUs"),
        ("cuda:0,0", f"devices 'cuda:0,0' name GPU-{B} twice"),
        ("all,cpu:0", f"devices 'all,cpu:0' name GPU-{A} twice"),
    ],
)
def test_a_wrong_specification_is_refused(words: str, sentence: str) -> None:
    """A wrong specification of devices raises an error that explains it."""
    with pytest.raises(BurninError, match=sentence.replace("(", r"\(")):
        targets(words, CUDA, GPUS)


def test_cuda_is_asked_only_where_it_is_needed() -> None:
    """CUDA devices are listed only for specifications that need them, because that takes seconds."""
    assert [needs_cuda(words) for words in ("all", "cuda:1", "cpu", "cpu:0,1")] == [True, True, False, False]


def test_the_processes_that_hold_a_gpu_have_names(tmp_path: Path) -> None:
    """A process in another pid namespace has no name; where NVML reports no processes, there are none."""
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711/comm").write_text("python3\n")
    held = GpuReadings(0, compute_processes=(GpuProcess(4711), GpuProcess(12)))
    assert processes_using(held, tmp_path) == ["python3 (pid 4711)", "a process (pid 12)"]
    assert processes_using(GpuReadings(0, compute_processes=Missing(MissingReason.NO_PERMISSION)), tmp_path) == []
