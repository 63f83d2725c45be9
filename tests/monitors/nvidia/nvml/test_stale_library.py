"""When a process has to end because its container's driver library is older than the kernel module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.readings import LOADED, NOT_LOADED, gpu, node, nvml

from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.monitor import RestartRequiredError
from gpuhealth.monitors.nvidia.devices import KernelModuleProbe
from gpuhealth.monitors.nvidia.nvml.stale_library import StaleLibrary
from gpuhealth.monitors.nvidia.readings import KernelModule, LibrarySearch, NvmlLibrary, NvmlReadings

UPGRADED = KernelModule("570.86.15", version_at_start="550.54.15")
LATE = KernelModule("550.54.15", version_at_start="")
LIBRARY_PROBLEMS = [MissingReason.NOT_INSTALLED, MissingReason.MISMATCH, MissingReason.NOT_LOADED]


def problem(reason: MissingReason) -> NvmlReadings:
    """NVML that as a whole does not answer."""
    return NvmlReadings(problem=Missing(reason))


def clock(step: float) -> Iterator[float]:
    """Times that grow by a step."""
    now = 0.0
    while True:
        yield now
        now += step


@pytest.mark.parametrize("reason", LIBRARY_PROBLEMS)
@pytest.mark.parametrize("module", [UPGRADED, LATE], ids=["upgraded", "loaded late"])
def test_a_module_that_came_after_us(module: KernelModule, reason: MissingReason) -> None:
    """A library that fails for more than 30 s with a module that was loaded after the start asks for a restart."""
    seconds = iter([0.0, 0.0, 29.0, 30.0])
    watch = StaleLibrary(lambda: next(seconds))
    watch.check(node(gpu(0), nvml=problem(reason), kernel_module=module).nvidia)
    watch.check(node(gpu(0), nvml=problem(reason), kernel_module=module).nvidia)
    with pytest.raises(RestartRequiredError, match=module.version):
        watch.check(node(gpu(0), nvml=problem(reason), kernel_module=module).nvidia)


@pytest.mark.parametrize(
    ("answer", "module"),
    [
        (problem(MissingReason.MISMATCH), LOADED),  # a new container would get the same library
        (problem(MissingReason.NOT_INSTALLED), LOADED),
        (problem(MissingReason.NOT_LOADED), NOT_LOADED),
        (problem(MissingReason.DRIVER_ERROR), UPGRADED),
        (problem(MissingReason.RELEASED), UPGRADED),
        (nvml(gpu(0)), UPGRADED),  # found by the next child, as on a host
        (NvmlReadings(problem=Missing(LIBRARY_PROBLEMS[1]), libraries=LibrarySearch(elsewhere=True)), UPGRADED),
        (NvmlReadings(problem=Missing(LIBRARY_PROBLEMS[1]), libraries=LibrarySearch((NvmlLibrary("x"),))), UPGRADED),
        (problem(MissingReason.MISMATCH), Missing(MissingReason.NOT_INSTALLED)),
    ],
)
def test_where_a_new_container_would_not_help(answer: NvmlReadings, module: KernelModule | Missing) -> None:
    """Nothing asks for a restart however long it lasts, so that an agent never restarts for nothing again and again."""
    seconds = clock(60.0)
    watch = StaleLibrary(lambda: next(seconds))
    for _ in range(100):
        watch.check(node(gpu(0), nvml=answer, kernel_module=module).nvidia)


def test_the_wait_begins_again_when_it_works(tmp_path: Path) -> None:
    """A library that works in between is not stale: the 30 s count from the last time that it began to fail."""
    seconds = clock(1.0)
    watch = StaleLibrary(lambda: next(seconds))
    for _ in range(50):
        for _ in range(5):
            watch.judge(UPGRADED, fails=True)
        watch.judge(UPGRADED, fails=False)


def test_the_module_is_read_from_sysfs(tmp_path: Path) -> None:
    """The module's version now and at the start; without /sys/module nothing is said about it."""
    assert isinstance(KernelModuleProbe(tmp_path).read(), Missing)
    (tmp_path / "module/kernel").mkdir(parents=True)
    probe = KernelModuleProbe(tmp_path)
    assert probe.read() == KernelModule("", "")
    folder = tmp_path / "module/nvidia"
    folder.mkdir()
    (folder / "version").write_text("550.54.15\n")
    assert probe.read() == KernelModule("550.54.15", "")
    assert KernelModuleProbe(tmp_path).read() == KernelModule("550.54.15", "550.54.15")
    (folder / "version").write_bytes(b"\xff\xfe\n")
    assert isinstance(probe.read(), Missing)
    (folder / "version").unlink()
    (folder / "refcnt").write_text("12\n")
    module = probe.read()
    assert not isinstance(module, Missing)
    assert module.is_loaded
