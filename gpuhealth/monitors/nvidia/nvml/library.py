"""Which libnvidia-ml.so.1 the next NVML process loads: that of the driver that is loaded now.

Where the node's root is mounted elsewhere, as in a container, the library is looked for there before each start of a
process. Where it is our own root, the loader's search finds the right one; ours is for what it does not find.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from gpuhealth.monitors.nvidia.nvml.library_files import find_libraries, module_version
from gpuhealth.monitors.nvidia.readings import LibrarySearch
from gpuhealth.monitors.nvidia.slow_read import READ_SECONDS, SlowRead
from gpuhealth.runtime.settings import CoreSettings

_LATE = LibrarySearch((), (f"the search for libraries takes longer than {READ_SECONDS:g} s",), elsewhere=True)


class LibraryFinder:
    """Looks for the node's library. A disk that hangs delays it by some seconds, and not more than once."""

    def __init__(self, settings: CoreSettings) -> None:
        roots = settings.roots
        self._root, self._sys, self._proc = settings.host.root, roots.sys, roots.proc
        self._slow = SlowRead[LibrarySearch](_LATE)

    async def find(self, paths: tuple[Path, ...], *, loader_failed: bool) -> LibrarySearch:
        """The libraries that the node has now; none where the loader's own search is enough."""
        if not paths and not loader_failed and self._is_own_root():
            return LibrarySearch()
        return await self._slow(lambda: find_libraries(self._root, module_version(self._sys, self._proc), paths))

    def _is_own_root(self) -> bool:
        with contextlib.suppress(OSError):
            return self._root.samefile("/")
        return False  # not mounted: then there is nothing to find either
