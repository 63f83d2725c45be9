"""A host's root filesystem with NVIDIA's driver, as distributions, clouds and driver containers install it."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from nvmlsim.simulator import library_of

OLD, NEW = "550.54.15", "570.86.15"
"""Two versions of the driver; the library of each works with the kernel module of the same version only."""

NAME = "libnvidia-ml.so"
_MULTIARCH = f"usr/lib/{platform.machine()}-linux-gnu"


class HostRoot:
    """The root. Its absolute links mean its own files; followed as they are, they lead nowhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "etc").mkdir(parents=True)
        (path / "usr/lib").mkdir(parents=True)
        (path / "lib").symlink_to("usr/lib")

    def install(self, folder: str, version: str, *, below: str = "") -> Path:
        """A library in a folder, with the links that ldconfig makes; the path of the file itself."""
        target = self.path / below / folder
        target.mkdir(parents=True, exist_ok=True)
        library = target / f"{NAME}.{version}"
        part = target / ".part"
        shutil.copyfile(library_of(version), part)
        part.replace(library)
        (target / f"{NAME}.1").unlink(missing_ok=True)
        (target / f"{NAME}.1").symlink_to(library.name)
        return library

    def debian(self, version: str) -> Path:
        """Debian's package: the library's folder is behind two absolute links of the alternatives system."""
        library = self.install(f"{_MULTIARCH}/nvidia/current", version)
        alternatives = self.path / "etc/alternatives"
        alternatives.mkdir(exist_ok=True)
        name = "nvidia--libnvidia-ml.so.1"
        _link(alternatives / name, f"/{_MULTIARCH}/nvidia/current/{NAME}.1")
        _link(self.path / _MULTIARCH / f"{NAME}.1", f"/etc/alternatives/{name}")
        return library

    def red_hat(self, version: str) -> Path:
        """Red Hat, SUSE and Amazon Linux."""
        return self.install("usr/lib64", version)

    def gke(self, version: str) -> Path:
        """GKE's installer, on the node's writable partition."""
        return self.install("home/kubernetes/bin/nvidia/lib64", version)

    def nixos(self, version: str) -> Path:
        """NixOS: links into the store."""
        library = self.install(f"nix/store/abc-nvidia-x11-{version}/lib", version)
        _link(self.path / f"run/opengl-driver/lib/{NAME}.1", f"/nix/store/abc-nvidia-x11-{version}/lib/{NAME}.1")
        return library

    def odd(self, version: str) -> Path:
        """A folder that only the loader's configuration names."""
        (self.path / "etc/ld.so.conf.d").mkdir(exist_ok=True)
        (self.path / "etc/ld.so.conf.d/nvidia.conf").write_text("# the driver\n/opt/vendor/lib64\n")
        return self.install("opt/vendor/lib64", version)

    def driver_container(self, version: str) -> Path:
        """The root of the GPU operator's driver container, which has absolute links of its own."""
        root = self.path / "run/nvidia/driver"
        library = self.install("usr/lib/driver", version, below="run/nvidia/driver")
        _link(root / _MULTIARCH / f"{NAME}.1", f"/usr/lib/driver/{NAME}.1")
        return library

    def remove_driver_container(self) -> None:
        """The container has ended, and its root is no longer mounted."""
        shutil.rmtree(self.path / "run/nvidia/driver")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
