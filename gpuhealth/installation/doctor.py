"""Runs all checks of an installation, and sums up their results."""

from __future__ import annotations

import asyncio
import enum

import msgspec

from gpuhealth import __version__
from gpuhealth.api import crd, report
from gpuhealth.installation.checks import CHECKS, Check
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.kinds import CUSTOM_RESOURCES
from gpuhealth.installation.problem import CannotCheckError, Level, NotChecked, Problem
from gpuhealth.kube.errors import UnauthorizedError

_LEVELS = list(Level)
_REASON_CHARACTERS = 200


class Answer(enum.StrEnum):
    """The result of all checks together."""

    FINE = "fine"
    WARNING = "warning"
    ERROR = "error"
    INCOMPLETE = "incomplete"  # nothing wrong found, and some checks could not be made
    NOT_INSTALLED = "not_installed"


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The result of all checks of one cluster; `doctor --json` prints it."""

    answer: Answer
    version: str  # of this command
    namespace: str  # of the installation
    problems: tuple[Problem, ...]  # the worst first
    fine: tuple[str, ...]  # checks that found no error and no warning
    not_checked: tuple[NotChecked, ...]


async def diagnose(cluster: Cluster) -> Diagnosis:
    """Run every check. Raises ClusterError where the cluster cannot be reached or does not know the client."""
    await cluster.client.request("GET", "/version")
    namespace = await cluster.namespace()
    if await _is_absent(cluster):
        return Diagnosis(
            answer=Answer.NOT_INSTALLED, version=__version__, namespace=namespace, problems=(), fine=(), not_checked=()
        )
    results = await asyncio.gather(*(run_check(name, check, cluster) for name, check in CHECKS.items()))
    problems = [each for result in results if isinstance(result, list) for each in result]
    not_checked = [result for result in results if isinstance(result, NotChecked)]
    bad = {problem.check for problem in problems if problem.level is not Level.INFO}
    skipped = {each.check for each in not_checked}
    return Diagnosis(
        answer=_answer(problems, not_checked),
        version=__version__,
        namespace=namespace,
        problems=tuple(sorted(problems, key=lambda problem: _LEVELS.index(problem.level))),
        fine=tuple(name for name in CHECKS if name not in bad | skipped),
        not_checked=tuple(not_checked),
    )


def _answer(problems: list[Problem], not_checked: list[NotChecked]) -> Answer:
    levels = {problem.level for problem in problems}
    if Level.ERROR in levels:
        return Answer.ERROR
    if Level.WARNING in levels:
        return Answer.WARNING
    return Answer.INCOMPLETE if any(each.supported for each in not_checked) else Answer.FINE


async def run_check(name: str, check: Check, cluster: Cluster) -> list[Problem] | NotChecked:
    """The problems that one check finds, or why it could not be made. Raises UnauthorizedError."""
    try:
        return [msgspec.structs.replace(problem, check=name) for problem in await check(cluster)]
    except CannotCheckError as reason:
        return NotChecked(check=name, reason=str(reason), supported=reason.supported)
    except UnauthorizedError:
        raise
    except Exception as unexpected:  # noqa: BLE001 - objects of others may hold anything; the other checks go on
        text = f"an object has unexpected content ({type(unexpected).__name__}: {unexpected})"
        return NotChecked(check=name, reason=text[:_REASON_CHARACTERS])


async def _is_absent(cluster: Cluster) -> bool:
    """Whether nothing of gpuhealth is in the cluster; False where that cannot be seen."""
    try:
        if await cluster.workloads():
            return False
        return await cluster.get(CUSTOM_RESOURCES, crd.name_of(report.DEFINITION)) is None
    except CannotCheckError:
        return False
