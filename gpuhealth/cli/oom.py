"""Which process the kernel ends when memory runs out: the command that a person runs, and not the agent."""

from __future__ import annotations

import contextlib
from pathlib import Path

_SCORE = Path("/proc/self/oom_score_adj")
_FIRST = "1000"


def go_first() -> None:
    """Has this process and its children chosen first, where a container or the node runs out of memory.

    `kubectl exec … gpuhealth check` shares the memory limit of the agent. Raising the score needs no privilege; where
    it cannot be raised, the command runs all the same.
    """
    with contextlib.suppress(OSError):
        _SCORE.write_text(_FIRST)
