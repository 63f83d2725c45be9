"""Pins the dependencies of the images with hashes: `tools/lock`. It needs uv, and network.

In daemonset/image/: requirements.lock has what gpuhealth needs, burnin.lock what PyTorch needs in addition, and build.lock
what only builds the images.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "daemonset" / "image"
PYTHON = "3.11"  # that of the images
TORCH = "2.10.0"
"""The newest release whose default build is for CUDA 12, and so runs on all drivers since R525."""
_BUILD = ("hatchling>=1.27", "cyclonedx-bom>=7")
_COMMENT = "# Written by tools/lock. All platforms; Python {python} and newer.\n"


def main() -> None:
    """Write the three files."""
    requirements = _compiled(["pyproject.toml"])
    burnin = _compiled(
        ["pyproject.toml", "--extra", "burnin"], "--no-emit-package", "triton", constraint=f"torch=={TORCH}"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".in", encoding="utf-8") as file:
        file.write("\n".join(_BUILD))
        file.flush()
        build = _compiled([file.name])
    known = set(_packages(requirements))
    added = "".join(text for name, text in _packages(burnin).items() if name not in known)
    for name, text in (("requirements", requirements), ("burnin", added), ("build", build)):
        (IMAGE / f"{name}.lock").write_text(_COMMENT.format(python=PYTHON) + text, encoding="utf-8")


def _compiled(inputs: list[str], *options: str, constraint: str = "") -> str:
    """All packages that the inputs need, each with its version and the hashes of its files."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as constraints:
        constraints.write(constraint)
        constraints.flush()
        command = [sys.executable, "-m", "uv", "pip", "compile", *inputs, *options, "--constraint", constraints.name]
        command += ["--generate-hashes", "--universal", "--python-version", PYTHON, "--system-certs", "--quiet"]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url"]
        return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def _packages(lock: str) -> dict[str, str]:
    """The entries of a lock by the first words of their first lines, such as `numpy==2.4.1`."""
    entries: dict[str, str] = {}
    name = ""
    for line in lock.splitlines(keepends=True):
        if not line.startswith((" ", "#")):
            name = line.split(" \\")[0].strip()
        entries[name] = entries.get(name, "") + line
    return entries


if __name__ == "__main__":
    main()
