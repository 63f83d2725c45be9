"""A driver, a torch and a GPU that do not fit are no fault of the GPU: nothing was tested."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from testing import odd_torch

from gpuhealth.burnin.not_tested import reason
from gpuhealth.burnin.protocol import LIST_DEVICES, Job, JobResult, Unsupported
from gpuhealth.burnin.worker_process import Worker, WorkerAnswer, WorkerFailure

LIST = Job(test=LIST_DEVICES, devices=(), gpus=(), seconds=0.0, seed=1)
_SECONDS = 120.0
CUDA = "CUDA error: {}\nCUDA kernel errors might be asynchronously reported at some other API call"
INIT = "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices()"
INIT += " that might have already set an error? Error {}"


def _job(test: str) -> Job:
    return Job(test=test, devices=("cpu",), gpus=("GPU-1",), seconds=0.1, seed=1, small=True, memory_bytes=1 << 20)


def _end(job: Job, environment: Mapping[str, str]) -> WorkerAnswer | WorkerFailure:
    async def run() -> WorkerAnswer | WorkerFailure:
        return await Worker(environment).run(job, _SECONDS, lambda _: None)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (odd_torch.TOO_OLD, "the driver is too old for this build of torch (2.9.1, CUDA 12.8), it supports CUDA 11.4:"),
        (CUDA.format("CUDA driver version is insufficient for CUDA runtime version"), "the driver is too old"),
        (INIT.format("35: CUDA driver version is insufficient for CUDA runtime version"), "the driver is too old"),
        (CUDA.format("API call is not supported in the installed CUDA driver"), "the driver is too old"),
        (CUDA.format("the provided PTX was compiled with an unsupported toolchain."), "the driver is too old"),
        (odd_torch.NO_KERNEL_IMAGE, "has no code for the architecture of the GPU"),
        (CUDA.format("device kernel image is invalid"), "has no code for the architecture"),
        (INIT.format("803: system has unsupported display driver / cuda driver combination"), "different versions"),
        (INIT.format("804: forward compatibility was attempted on non supported HW"), "cuda-compat"),
    ],
)
def test_software_that_does_not_fit(error: str, words: str) -> None:
    """Each error text of torch and CUDA for a misfit is one sentence, at the start and in the middle of a test."""
    for at_start in (True, False):
        sentence = reason(error, "2.9.1", "12.8", at_start=at_start)
        assert sentence.startswith("not tested: ")
        assert words in sentence
        assert len(sentence.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (INIT.format("802: system not yet initialized"), "fabric manager"),
        (INIT.format("100: no CUDA-capable device is detected"), "CUDA sees no GPU"),
        ("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", "no libcuda.so.1"),
        (INIT.format("34: CUDA driver is a stub library"), "no libcuda.so.1"),
    ],
)
def test_no_devices_at_the_start(error: str, words: str) -> None:
    """Without devices nothing can be tested; a device that is lost in the middle of a test may be at fault."""
    assert words in reason(error, "2.9.1", "12.8", at_start=True)
    assert reason(error, "2.9.1", "12.8", at_start=False) == ""


@pytest.mark.parametrize(
    "error",
    [
        "an illegal memory access was encountered",
        "uncorrectable ECC error encountered",
        "unspecified launch failure",
        "unknown error",
        "misaligned address",
        "hardware stack error",
        "the launch timed out and was terminated",
        "uncorrectable NVLink error detected during the execution",
        "device-side assert triggered",
    ],
)
def test_errors_of_gpus(error: str) -> None:
    """What a bad GPU may cause stays a failed test."""
    assert reason(CUDA.format(error), "2.9.1", "12.8", at_start=False) == ""


def test_cuda_that_cannot_be_initialized(tmp_path: Path) -> None:
    """The process that lists the devices answers with the sentence."""
    end = _end(LIST, odd_torch.cuda_init_fails(tmp_path, odd_torch.TOO_OLD))
    assert isinstance(end, Unsupported)
    assert end.reason.startswith("not tested: the driver is too old for this build of torch (")
    assert "CUDA 12.8), it supports CUDA 11.4" in end.reason


def test_a_kernel_that_is_missing(tmp_path: Path) -> None:
    """A test that finds no kernel for the GPU has no result, and so no failed GPU."""
    end = _end(_job("memory"), odd_torch.first_kernel_fails(tmp_path, odd_torch.NO_KERNEL_IMAGE))
    assert isinstance(end, Unsupported)
    assert "has no code for the architecture of the GPU" in end.reason


def test_a_kernel_that_fails(tmp_path: Path) -> None:
    """An operation that fails with an error of bad hardware makes the test fail, with the text of the error."""
    end = _end(_job("memory"), odd_torch.first_kernel_fails(tmp_path, CUDA.format("unspecified launch failure")))
    assert isinstance(end, JobResult)
    assert "unspecified launch failure" in end.gpus[0].failure


def test_a_user_without_a_name(tmp_path: Path) -> None:
    """A container's user without an entry in /etc/passwd can run the tests that need torch's deterministic mode."""
    end = _end(_job("repeat"), odd_torch.nameless_user(tmp_path))
    assert isinstance(end, JobResult)
    assert [each.failure for each in end.gpus] == [""]
