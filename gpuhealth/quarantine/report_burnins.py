"""What the report says of active tests: of each GPU the last run, the last result of each test, and a short history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gpuhealth.kube.client import Object
from gpuhealth.kube.objects import format_time
from gpuhealth.model.burnin_run import BurninRun, TestResult

MAX_HISTORY = 10
MAX_VALUES = 32
"""Figures or digests of one test: a report holds those of 16 GPUs, and a controller thousands of reports."""
_MESSAGE_LIMIT = 512
_DIGEST_DIGITS = 16  # 64 bits: that a wrong result has the right ones by chance does not happen


def status_of(runs: Sequence[BurninRun], gpus: Iterable[str]) -> Object:
    """The report's `burnin` from the runs on the node, oldest first; results of GPUs not named are left out."""
    out = {gpu: _gpu(gpu, runs) for gpu in gpus}
    tested = {gpu: each for gpu, each in out.items() if each}
    waiting = [each.get("endedAt") for each in out.values()]
    since = {"testedAt": min(filter(None, waiting))} if waiting and all(waiting) else {}
    return {**since, "gpus": tested}


def _gpu(gpu: str, runs: Sequence[BurninRun]) -> Object:
    own = [run for run in runs if any(result.gpu == gpu for result in run.results)]
    if not own:
        return {}
    completed = [run for run in own if run.gpu_status(gpu).is_conclusive]
    last = {**_run(completed[-1], gpu), "bootID": completed[-1].boot_id} if completed else {}
    model = next((run.models[gpu] for run in reversed(own) if gpu in run.models), "")
    said = [(run, result) for run in own for result in run.results if result.gpu == gpu]
    tests = {result.test: _test(result, run) for run, result in said if result.status.is_conclusive}
    history = [_run(run, gpu) for run in own[: -MAX_HISTORY - 1 : -1]]
    return {**({"model": model} if model else {}), **last, "tests": tests, "history": history}


def _run(run: BurninRun, gpu: str) -> Object:
    return {
        "startedAt": format_time(run.started),
        "endedAt": format_time(run.ended),
        "level": run.level,
        "reason": run.reason,
        "status": str(run.gpu_status(gpu)),
    }


def _test(result: TestResult, run: BurninRun) -> Object:
    figures = [(name, float(f"{value:.4g}")) for name, value in sorted(result.figures.items()) if math.isfinite(value)]
    # As they were computed, which is the same order on every node: by their names whole formats would be left out.
    digests = [(what, digest[:_DIGEST_DIGITS]) for what, digest in result.digests.items()]
    out: Object = {
        "status": str(result.status),
        "message": result.message[:_MESSAGE_LIMIT],
        "startedAt": format_time(result.started),
        "figures": dict(figures[:MAX_VALUES]),
        "digests": dict(digests[:MAX_VALUES]),
        "software": run.software if digests else {},
    }
    return {key: value for key, value in out.items() if value}
