"""Which process the kernel kills when memory runs out: a command run by hand before the agent."""

from __future__ import annotations

import contextlib
from pathlib import Path

_SCORE = Path("/proc/self/oom_score_adj")
_KILL_FIRST = "1000"


def prefer_for_oom_kill() -> None:
    """Make this process and its children the first to be killed when a container or the node runs out of memory.

    `kubectl exec … gpuhealth check` shares the memory limit of the agent. Raising the score needs no privilege; if it
    cannot be raised, the command runs anyway.
    """
    with contextlib.suppress(OSError):
        _SCORE.write_text(_KILL_FIRST)
