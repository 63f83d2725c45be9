"""Environments in which torch meets a driver or a user that does not fit: its own functions raise its own errors."""

from __future__ import annotations

import os
from pathlib import Path

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading"
    " and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to:"
    " https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
"""torch with CUDA 12 on a driver of the branch R470."""
NO_KERNEL_IMAGE = (
    "CUDA error: no kernel image is available for execution on the device\\nCUDA kernel errors might be asynchronously"
    " reported at some other API call, so the stacktrace below might be incorrect."
)
"""A kernel that is not in this build of torch, such as on a GPU that is newer than it."""


def _environment(folder: Path, statements: str) -> dict[str, str]:
    """An environment in which the process of a test executes statements after torch is imported, before its job."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'gpuhealth.burnin.worker' in sys.orig_argv:\n"
        "    import torch\n" + "".join(f"    {line}\n" for line in statements.splitlines())
    )
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": ""}


def cuda_init_fails(folder: Path, error: str) -> dict[str, str]:
    """CUDA's initialization raises this error, in a torch that is built for CUDA 12.8."""
    return _environment(
        folder, f"def fail(): raise RuntimeError({error!r})\ntorch.cuda.init, torch.version.cuda = fail, '12.8'"
    )


def first_kernel_fails(folder: Path, error: str) -> dict[str, str]:
    """The first operation of a test raises this error."""
    return _environment(
        folder, f"def fail(*_, **__): raise RuntimeError({error!r})\ntorch.empty, torch.version.cuda = fail, '12.8'"
    )


def nameless_user(folder: Path) -> dict[str, str]:
    """Whoever asks for the name of the user ends the process: in a container it may have none in /etc/passwd."""
    return _environment(folder, "import getpass\ndef fail(): raise SystemExit('no name')\ngetpass.getuser = fail")
