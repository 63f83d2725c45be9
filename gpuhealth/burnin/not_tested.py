"""Errors of CUDA and torch for a driver, a torch and a GPU that do not fit: nothing was tested, no GPU is at fault.

The texts are those of the CUDA runtime (cudaGetErrorString) and of torch's CUDAFunctions.cpp and cuda/__init__.py.
"""

from __future__ import annotations

import re

PREFIX = "not tested: "
"""Begins the sentence of `gpuhealth burnin` in these cases."""

_TOO_OLD = (
    "the driver is too old for this build of torch ({torch}, CUDA {cuda}){found}: update the driver, or use an image"
    " with a build for an older CUDA"
)
_NO_CODE = "this build of torch ({torch}, CUDA {cuda}) has no code for the architecture of the GPU: use another build"
_RESTART = "the driver's libraries and its kernel module are of different versions: restart this container"
_COMPAT = "libcuda of the package cuda-compat is in use, which this GPU does not support: remove it from the image"
_MISFITS = (
    # cudaErrorInsufficientDriver (35), in torch's words and in those of CUDA; 36, 222
    (r"driver on your system is too old|driver version is insufficient for CUDA runtime", _TOO_OLD),
    (r"not supported in the installed CUDA driver|compiled with an unsupported toolchain", _TOO_OLD),
    # cudaErrorNoKernelImageForDevice (209), 200
    (r"no kernel image is available|device kernel image is invalid|not compatible with the current PyTorch", _NO_CODE),
    # cudaErrorSystemDriverMismatch (803), cudaErrorCompatNotSupportedOnDevice (804)
    (r"unsupported display driver / cuda driver combination", _RESTART),
    (r"forward compatibility was attempted on non supported HW", _COMPAT),
)
_NO_DEVICES = (
    # cudaErrorSystemNotReady (802)
    (r"system not yet initialized", "the fabric manager has not initialized the NVSwitches: see `gpuhealth check`"),
    # cudaErrorNoDevice (100), cudaErrorStubLibrary (34), and torch where there is no libcuda
    (r"no CUDA-capable device is detected", "CUDA sees no GPU: see `gpuhealth check`, and CUDA_VISIBLE_DEVICES"),
    (r"Found no NVIDIA driver|CUDA driver is a stub library", "there is no libcuda.so.1 of the node's driver here"),
)


def reason(error: str, torch: str, cuda: str, *, at_start: bool) -> str:
    """Why nothing can be tested, as one sentence; empty for an error that a GPU may have caused.

    `error` is the text of an exception, `torch` the version of torch, and `cuda` that of the CUDA it is built for.
    Where CUDA loses its devices after the start, a GPU may be at fault.
    """
    for pattern, sentence in (*_MISFITS, *(_NO_DEVICES if at_start else ())):
        if re.search(pattern, error):
            version = re.search(r"found version (\d+)\)", error)
            found = f", it supports CUDA {_version(int(version[1]))}" if version else ""
            return f"{PREFIX}{sentence.format(torch=torch, cuda=cuda, found=found)}"
    return ""


def _version(number: int) -> str:
    """11.4 for 11040, as cuDriverGetVersion counts."""
    return f"{number // 1000}.{number % 1000 // 10}"
