"""Removes from a folder of installed packages what no command imports: `python trim.py PACKAGES [PROGRAMS]`.

PACKAGES is a folder such as site-packages; PROGRAMS is the folder of the scripts that were installed with them.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

_UNUSED_DISTRIBUTIONS = {
    # for the synchronous client of kubernetes
    "certifi", "charset-normalizer", "durationpy", "oauthlib", "requests", "requests-oauthlib", "urllib3",
    "websocket-client",
    # for Markdown and source code, which the commands do not print
    "markdown-it-py", "mdurl", "pygments",
    # compiles kernels at run time, which the burn-in does not
    "triton",
}  # fmt: skip
_UNUSED_PARTS = (
    # gpuhealth/kube/slim_import.py imports some modules of kubernetes/aio, and not its typed API
    *(f"kubernetes/{name}" for name in ("base", "client", "config", "dynamic", "e2e_test", "leaderelection", "stream",
                                        "test", "utils", "watch")),
    *(f"kubernetes/aio/client/{name}" for name in ("api", "models")),
    *(f"kubernetes/aio/{name}" for name in ("dynamic", "e2e_test", "leaderelection", "stream", "test", "watch")),
    # 1 GB: the burn-in computes no convolutions; torch needs the library itself, and libcudnn_graph for its version
    *(f"nvidia/cudnn/lib/libcudnn_{name}.so.9" for name in ("adv", "cnn", "engines_precompiled",
                                                            "engines_runtime_compiled", "heuristic", "ops")),
    "torch/include", "torch/test",  # to compile extensions
)  # fmt: skip
_PROGRAM = "gpuhealth"


def trim(packages: Path, programs: Path | None = None) -> None:
    """Remove unused distributions and parts of packages, and all programs but gpuhealth and the interpreter."""
    for each in distributions(path=[str(packages)]):
        if each.metadata["Name"].lower().replace("_", "-") in _UNUSED_DISTRIBUTIONS:
            _remove(each, packages)
    for part in (packages / name for name in _UNUSED_PARTS):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
    for program in programs.iterdir() if programs else ():
        if program.is_file() and program.name != _PROGRAM and not program.name.startswith("python"):
            program.unlink()


def _remove(unused: Distribution, packages: Path) -> None:
    folders = set()
    for file in unused.files or ():
        path = Path(str(unused.locate_file(file))).resolve()
        if not path.is_relative_to(packages.resolve()):  # a program or a manual page
            continue
        path.unlink(missing_ok=True)
        folders |= {folder for folder in path.parents if folder.is_relative_to(packages.resolve())}
    for folder in sorted(folders - {packages.resolve()}, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


if __name__ == "__main__":
    trim(*(Path(argument) for argument in sys.argv[1:3]))
