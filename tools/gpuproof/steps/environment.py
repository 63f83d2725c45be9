"""The machine: driver, GPUs, kernel, permissions, software. What is missing is named, and the other steps go on."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from gpuproof.step import Context, Outcome, not_proved, proved

_PACKAGES = ("nvidia-ml-py", "torch", "msgspec", "pydantic", "psutil")
_FILES = {
    "kernel_module": "/proc/driver/nvidia/version",
    "capabilities": "/proc/self/status",
    "dmesg_restrict": "/proc/sys/kernel/dmesg_restrict",
}
_LIBRARY = """
import pynvml
pynvml.nvmlInit()
print(pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount())
print(next(line.split()[-1] for line in open("/proc/self/maps") if "libnvidia-ml" in line))
"""


def run(context: Context) -> Outcome:
    """Proved where the driver's library can be used and finds GPUs."""
    packages = {name: _version(name) for name in _PACKAGES}
    facts: dict[str, object] = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": f"{platform.python_version()} {sys.executable}",
        "user": os.geteuid(),
        "devices": [f"{path} {path.stat().st_mode & 0o777:o}" for path in sorted(Path("/dev").glob("nvidia*"))],
        "kernel_log_readable": os.access("/dev/kmsg", os.R_OK),
        "nvidia_smi": shutil.which("nvidia-smi") or "",
        "packages": packages,
    }
    for name, path in _FILES.items():
        with suppress(OSError):
            text = Path(path).read_text()
            wanted = [line for line in text.splitlines() if line.startswith("CapEff")] or text.splitlines()
            facts[name] = wanted[0].strip()
    lacking = [f"{name} is not installed" for name, version in packages.items() if not version]
    lacking += [] if facts["nvidia_smi"] else ["nvidia-smi is not on PATH"]
    lacking += [] if facts["kernel_log_readable"] else ["/dev/kmsg cannot be read by this user"]
    done = context.run([sys.executable, "-c", _LIBRARY])
    if done.code:
        return not_proved(f"the driver's library cannot be used: {done.problem}", *lacking, **facts)
    (driver, count), (library, *_) = (line.split() for line in done.out.splitlines()[:2])
    facts |= {"driver": driver, "gpus": int(count), "library": library}
    return proved(f"driver {driver}, {count} GPUs, {library}", *lacking, **facts)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
