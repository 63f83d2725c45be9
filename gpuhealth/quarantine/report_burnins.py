"""The report's section on active tests: of each GPU the last run, the last result of each test, and a short history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from gpuhealth.api import report
from gpuhealth.api.report import Burnin, BurninTest, GpuBurnin
from gpuhealth.model.burnin_run import BurninRun, TestResult
from gpuhealth.model.time import format_time, to_second

MAX_HISTORY = 10
MAX_VALUES = 32
"""Figures or digests of one test: a report holds those of 16 GPUs, and a controller thousands of reports."""
_MESSAGE_LIMIT = 512
_DIGEST_DIGITS = 16  # 64 bits: that a wrong result has the right ones by chance does not happen


def burnin_of(runs: Sequence[BurninRun], gpus: Iterable[str]) -> Burnin:
    """The report's `burnin` from the runs on the node, oldest first; results of GPUs not named are left out."""
    own = {gpu: [run for run in runs if any(result.gpu == gpu for result in run.results)] for gpu in gpus}
    last = [_last_completed(gpu, tested) for gpu, tested in own.items()]
    ended = [run.ended for run in last if run is not None]
    return Burnin(
        tested_at=to_second(min(ended)) if ended and len(ended) == len(last) else None,
        gpus={gpu: _gpu(gpu, tested) for gpu, tested in own.items() if tested},
    )


def _last_completed(gpu: str, runs: Sequence[BurninRun]) -> BurninRun | None:
    """The last run that was passed or failed on the GPU."""
    return next((run for run in reversed(runs) if run.gpu_status(gpu).is_conclusive), None)


def _gpu(gpu: str, runs: Sequence[BurninRun]) -> GpuBurnin:
    """The report's data on one GPU; `runs` are those that tested it, oldest first."""
    results = [(run, result) for run in runs for result in run.results if result.gpu == gpu]
    found = GpuBurnin(
        model=next((run.models[gpu] for run in reversed(runs) if gpu in run.models), ""),
        tests={result.test: _test(result, run) for run, result in results if result.status.is_conclusive},
        history=tuple(_run(run, gpu) for run in runs[: -MAX_HISTORY - 1 : -1]),
    )
    last = _last_completed(gpu, runs)
    if last is None:
        return found
    return replace(
        found,
        level=last.level,
        reason=last.reason,
        status=last.gpu_status(gpu),
        started_at=format_time(last.started),
        ended_at=format_time(last.ended),
        boot_id=last.boot_id,
    )


def _run(run: BurninRun, gpu: str) -> report.BurninRun:
    return report.BurninRun(
        started_at=format_time(run.started),
        ended_at=format_time(run.ended),
        level=run.level,
        reason=run.reason,
        status=run.gpu_status(gpu),
    )


def _test(result: TestResult, run: BurninRun) -> BurninTest:
    figures = [(name, float(f"{value:.4g}")) for name, value in sorted(result.figures.items()) if math.isfinite(value)]
    # As they were computed, which is the same order on every node: by their names whole formats would be left out.
    digests = [(what, digest[:_DIGEST_DIGITS]) for what, digest in result.digests.items()]
    return BurninTest(
        status=result.status,
        message=result.message[:_MESSAGE_LIMIT],
        started_at=format_time(result.started),
        figures=dict(figures[:MAX_VALUES]),
        digests=dict(digests[:MAX_VALUES]),
        software=run.software if digests else {},
    )
