"""Whether the driver library in our container is older than the node's kernel module.

The container runtime puts libnvidia-ml.so.1 into a container when it is created. An agent that started before the
driver was loaded, or before it was upgraded, keeps what it got then; only a new container gets the present library.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gpuhealth.model import Missing, MissingReason
from gpuhealth.readings import NodeReadings

_LIBRARY_PROBLEMS = (MissingReason.NOT_INSTALLED, MissingReason.MISMATCH, MissingReason.NOT_LOADED)
_PATIENCE_SECONDS = 30.0  # an installation loads the module before all of its libraries are in place


class StaleLibrary:
    """Looks at every round, and says when a new container is the only help."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def restart_reason(self, readings: NodeReadings) -> str:
        """Why the agent should end and be started again; empty while there is no reason to.

        A module that was loaded before the agent started gives none: a new container would get the same library.
        """
        nvml, module = readings.nvml, readings.kernel_module
        problem = nvml if isinstance(nvml, Missing) else nvml.problem
        changed = not isinstance(module, Missing) and module.has_changed
        if problem is None or problem.reason not in _LIBRARY_PROBLEMS or not changed:
            self._since = None
            return ""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since < _PATIENCE_SECONDS:
            return ""
        assert not isinstance(module, Missing)
        before = f"kernel module {module.version_at_start}" if module.version_at_start else "no kernel module"
        return (
            f"kernel module {module.version} is loaded, and the agent started with {before}: its libnvidia-ml.so.1 does"
            f" not work with it ({problem}); a new container gets the present one"
        )
