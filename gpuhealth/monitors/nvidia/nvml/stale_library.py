"""Whether the driver library in our container is older than the node's kernel module.

With daemonset/components/runtime-class, the NVIDIA container runtime puts libnvidia-ml.so.1 into the container when it
creates that. A process that started before the driver was loaded, or before it was upgraded, keeps the old
library; only a new container gets the present one. A library of the node itself is never stale.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.monitor import RestartRequiredError
from gpuhealth.monitors.nvidia.readings import KernelModule, NvidiaReadings

_LIBRARY_PROBLEMS = (MissingReason.NOT_INSTALLED, MissingReason.MISMATCH, MissingReason.NOT_LOADED)
_PATIENCE_SECONDS = 30.0  # an installation loads the module before all of its libraries are in place


class StaleLibrary:
    """Checks every round, and raises once only a new container could have helped for 30 s."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def check(self, readings: NvidiaReadings) -> None:
        """Raises RestartRequiredError if NVML does not work with a module that was loaded after our start.

        A module that was loaded before is not a reason: a new container would get the same library.
        """
        problem, search = readings.nvml.problem, readings.nvml.libraries
        fails = problem is not None and problem.reason in _LIBRARY_PROBLEMS
        self.judge(readings.kernel_module, fails=fails and not search.found and not search.elsewhere)

    def judge(self, module: Reading[KernelModule], *, fails: bool) -> None:
        """Records whether the library fails with this module. Raises RestartRequiredError as `check` does."""
        if isinstance(module, Missing) or not module.has_changed or not fails:
            self._since = None
            return
        self._since = self._clock() if self._since is None else self._since
        if self._clock() - self._since < _PATIENCE_SECONDS:
            return
        before = f"kernel module {module.version_at_start}" if module.version_at_start else "no kernel module"
        raise RestartRequiredError(
            f"kernel module {module.version} is loaded, this process started with {before}, and its libnvidia-ml.so.1"
            " does not work with the present one; a new container gets a library that does"
        )
