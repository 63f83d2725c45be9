"""The checks of an installation. A new one is a module with `check`, and a line here.

A check returns problems, and none where all is well. It raises CannotCheckError where the cluster does not let it look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from gpuhealth.installation.checks import (
    admission,
    agents,
    budgets,
    burnins,
    clocks,
    controllers,
    definitions,
    gpu_stack,
    pods,
    references,
    rights,
    servers,
    settings,
    versions,
    writers,
)
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.problem import Problem

Check: TypeAlias = Callable[[Cluster], Awaitable[Iterable[Problem]]]
"""Reads the cluster and returns problems. Raises CannotCheckError."""

CHECKS: dict[str, Check] = {
    "server": servers.check,
    "definitions": definitions.check,
    "versions": versions.check,
    "rights": rights.check,
    "settings": settings.check,
    "references": references.check,
    "agents": agents.check,
    "controller": controllers.check,
    "pods": pods.check,
    "burnins": burnins.check,
    "budgets": budgets.check,
    "gpu-stack": gpu_stack.check,
    "admission": admission.check,
    "clocks": clocks.check,
    "writers": writers.check,
}
"""All checks by name, in the order in which their results are shown."""
