"""The search for libnvidia-ml.so.1 below a node's root: places, links, versions, and files that cannot be used."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nvmlsim.simulator import library_of
from testing.host_root import NAME, NEW, OLD, HostRoot
from testing.waiting import wait_for

from gpuhealth.monitors.nvidia.nvml.library_files import find_libraries, module_version, resolved
from gpuhealth.monitors.nvidia.readings import NvmlLibrary

PLACES = [
    HostRoot.debian,
    HostRoot.red_hat,
    HostRoot.gke,
    HostRoot.nixos,
    HostRoot.odd,
    HostRoot.driver_container,
]


@pytest.fixture
def host(tmp_path: Path) -> HostRoot:
    """A root without any driver."""
    return HostRoot(tmp_path / "host")


@pytest.mark.parametrize("install", PLACES, ids=lambda place: place.__name__)
def test_places(host: HostRoot, install: Callable[[HostRoot, str], Path]) -> None:
    """Every installation is found once, by the path of the file itself: no link is left for the loader to follow."""
    library = install(host, OLD)
    search = find_libraries(host.path, OLD)
    assert search.found == (NvmlLibrary(str(library), OLD),)
    assert (search.skipped, search.elsewhere) == ((), True)


def test_a_root_without_a_driver(host: HostRoot) -> None:
    """Nothing is found, and that the node's root was there is known; without a root it is not."""
    assert (find_libraries(host.path, OLD).found, find_libraries(host.path, OLD).elsewhere) == ((), True)
    assert not find_libraries(host.path / "none", OLD).elsewhere
    assert not find_libraries(Path("/"), OLD).elsewhere


@pytest.mark.parametrize("module", [OLD, NEW])
def test_the_library_of_the_loaded_module_wins(host: HostRoot, module: str) -> None:
    """Of several libraries the one of the module's version is the first, wherever it is."""
    host.driver_container(OLD)
    host.red_hat(NEW)
    host.gke(OLD)
    search = find_libraries(host.path, module)
    assert search.found[0].version == module
    assert len(search.found) == 3
    assert search.fits(module)
    assert not search.fits("535.1.1")


def test_without_a_module_the_driver_container_is_first(host: HostRoot) -> None:
    """While no module is loaded the order is that of the search."""
    host.red_hat(NEW)
    library = host.driver_container(OLD)
    assert find_libraries(host.path, "").found[0].path == str(library)


def test_a_version_that_the_name_does_not_show(host: HostRoot) -> None:
    """A file libnvidia-ml.so.1 that is no link may fit: it comes before those that do not."""
    host.driver_container(OLD)
    plain = host.path / "usr/lib64" / f"{NAME}.1"
    plain.parent.mkdir()
    shutil.copyfile(library_of(NEW), plain)
    assert [library.version for library in find_libraries(host.path, NEW).found] == ["", OLD]


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_setting_is_first(host: HostRoot, is_folder: bool) -> None:
    """A file or folder of nvml.library_paths is a path of the node, and comes before all others."""
    host.red_hat(OLD)
    library = host.install("srv/nvidia", OLD)
    path = Path("/srv/nvidia") if is_folder else Path(f"/srv/nvidia/{NAME}.1")
    assert find_libraries(host.path, OLD, (Path("/none"), path)).found[0].path == str(library)


def test_links_never_lead_out_of_the_root(host: HostRoot, tmp_path: Path) -> None:
    """Absolute links, and those with many .., end within the node's root; a driver container's within its own."""
    outside = tmp_path / f"{NAME}.1"
    shutil.copyfile(library_of(OLD), outside)
    folder = host.path / "usr/lib64"
    folder.mkdir()
    (folder / f"{NAME}.1").symlink_to(outside)
    (folder / f"{NAME}.9.9").symlink_to("../" * 30 + str(outside))
    (folder / f"{NAME}.8.8").symlink_to(f"{NAME}.8.8")
    assert find_libraries(host.path, OLD).found == ()
    host.red_hat(NEW)
    container = host.path / "run/nvidia/driver/usr/lib64"
    container.mkdir(parents=True)
    (container / f"{NAME}.1").symlink_to(f"/usr/lib64/{NAME}.{NEW}")
    assert [library.path for library in find_libraries(host.path, NEW).found] == [str(folder / f"{NAME}.{NEW}")]


def test_the_driver_container_s_root_may_be_a_link(host: HostRoot) -> None:
    """An absolute link of the host leads to the container's root, and the links below that are the container's."""
    host.driver_container(OLD)
    (host.path / "run/nvidia/driver").rename(host.path / "srv")
    (host.path / "run/nvidia/driver").symlink_to("/srv")
    assert [library.path for library in find_libraries(host.path, OLD).found] == [
        str(host.path / f"srv/usr/lib/driver/{NAME}.{OLD}")
    ]


def _other_architecture(content: bytes) -> bytes:
    return content[:18] + struct.pack("<H", 8) + content[20:]  # MIPS


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "truncated"),
        (lambda content: content[:100], "truncated"),
        (lambda content: content[:4] + b"\x01" + content[5:], "another architecture"),
        (_other_architecture, "another architecture"),
        (lambda _: b"", "empty"),
        (lambda _: b"INPUT(libnvidia-ml.so.1)\n" * 9, "no ELF file"),
    ],
)
def test_files_that_cannot_be_loaded(host: HostRoot, damage: Callable[[bytes], bytes], reason: str) -> None:
    """A damaged library, or one for other programs, is passed over with the reason; the next one is taken."""
    broken = host.driver_container(NEW)
    broken.write_bytes(damage(broken.read_bytes()))
    library = host.red_hat(OLD)
    search = find_libraries(host.path, NEW)
    assert [found.path for found in search.found] == [str(library)]
    (skipped,) = search.skipped
    assert str(broken) in skipped
    assert reason in skipped


def test_what_is_no_file(host: HostRoot) -> None:
    """A folder or a pipe of the library's name does not stop the search."""
    folder = host.path / "usr/lib64"
    (folder / f"{NAME}.1").mkdir(parents=True)
    os.mkfifo(folder / f"{NAME}.2.2")
    assert len(find_libraries(host.path, OLD).skipped) == 2


def test_resolved(tmp_path: Path) -> None:
    """Dots and double slashes are those of a path; a loop of links is an error."""
    (tmp_path / "a/b").mkdir(parents=True)
    assert resolved(tmp_path, "//a/./b/../../../a/b") == tmp_path / "a/b"
    (tmp_path / "loop").symlink_to("/loop/x")
    with pytest.raises(OSError, match="symbolic links"):
        resolved(tmp_path, "loop")


def test_the_module_s_version(tmp_path: Path) -> None:
    """It is read from /sys, or else from /proc; without a module it is empty."""
    assert module_version(tmp_path, tmp_path) == ""
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    kinds = ("Kernel Module  ", "Open Kernel Module for x86_64  ")
    for kind in kinds:
        text = f"NVRM version: NVIDIA UNIX {kind}{OLD}  Release Build  (root@x)\nGCC version:  gcc 12.2.0\n"
        (tmp_path / "driver/nvidia/version").write_text(text)
        assert module_version(tmp_path, tmp_path) == OLD
    (tmp_path / "module/nvidia").mkdir(parents=True)
    (tmp_path / "module/nvidia/version").write_text(f"{NEW}\n")
    assert module_version(tmp_path, tmp_path) == NEW


_CONTAINER = """
mount --rbind "$1/host" "$1/view" && mount --make-rslave "$1/view" && mount -o remount,bind,ro "$1/view" && shift &&
exec "$@"
"""
_NODE = """
mount -t tmpfs host "$1/host" && mount --make-shared "$1/host" && mkdir -p "$1/host/run/nvidia/driver" &&
unshare --mount --propagation slave sh -c "$3" container "$1" "$4" -c "$5" "$1/view" & child=$!
until [ -e "$1/looked" ]; do sleep 0.05; done
mount --bind "$1/driver" "$1/host/run/nvidia/driver" || kill $child
wait $child
"""
_LOOKS = """
import pathlib, sys, time
from gpuhealth.monitors.nvidia.nvml.library_files import find_libraries
view = pathlib.Path(sys.argv[1])
assert find_libraries(view, "").found == ()
(view.parent / "looked").touch()
while not (found := find_libraries(view, "").found):
    time.sleep(0.05)
print(found[0].path)
"""


def test_a_driver_container_that_is_mounted_later(host: HostRoot, tmp_path: Path) -> None:
    """In a mount namespace as the agent's pod has it (read-only, HostToContainer), what the host mounts later is
    found."""
    probe = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "probe", str(tmp_path)]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount in a namespace of its own: run as root")
    host.driver_container(OLD)
    (tmp_path / "host/run/nvidia/driver").rename(tmp_path / "driver")
    shutil.rmtree(tmp_path / "host")
    for name in ("host", "view"):
        (tmp_path / name).mkdir()
    arguments = [str(tmp_path), "-", _CONTAINER, sys.executable, _LOOKS]
    node = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _NODE, "node", *arguments]
    process = subprocess.Popen(node, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for("the end", lambda: process.poll() is not None)
        assert process.stdout is not None
        assert process.stdout.read().strip() == str(tmp_path / f"view/run/nvidia/driver/usr/lib/driver/{NAME}.{OLD}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.communicate()
