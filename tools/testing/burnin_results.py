"""Builders of burn-in runs and their results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from gpuhealth.model.burnin_run import BurninRun, TestResult, TestStatus

START = datetime(2026, 1, 1, tzinfo=UTC)
PASSED, FAILED, STOPPED, SKIPPED = TestStatus.PASSED, TestStatus.FAILED, TestStatus.STOPPED, TestStatus.SKIPPED


def result(test: str = "exact", gpu: str = "GPU-0", status: TestStatus = PASSED, **fields: Any) -> TestResult:
    """The result of one test on one GPU."""
    message = fields.pop("message", f"{test} has {status}")
    return TestResult(test, gpu, status, message, fields.pop("started", START), 1.0, **fields)


def run(*results: TestResult, at: float = 0.0, **fields: Any) -> BurninRun:
    """A run of one minute that began `at` seconds after START; its status follows from the results."""
    ended = {each.status for each in results}
    status = next((each for each in (FAILED, STOPPED) if each in ended), PASSED)
    started = START + timedelta(seconds=at)
    return BurninRun(
        node=fields.pop("node", "node-1"),
        boot_id=fields.pop("boot_id", "boot-1"),
        level=fields.pop("level", "quick"),
        reason=fields.pop("reason", "manual"),
        started=started,
        ended=started + timedelta(minutes=1),
        status=fields.pop("status", status),
        results=results,
        **fields,
    )
