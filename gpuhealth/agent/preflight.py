"""Preflight: tests a new node, and removes its preflight taint after everything has passed.

The node stays tainted until its tests have passed, in every case: the taint exists before this process starts, and one
patch removes it at the very end. If this process is killed, the next one starts over; a burn-in that has passed in this
boot is not repeated. Checks and tests run as `gpuhealth check` and `gpuhealth burnin` in child processes, so that
neither a hung driver nor a crash in a library can delay the preflight beyond its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
import structlog

from gpuhealth.api.names import AGENT, FAILED
from gpuhealth.burnin import not_tested, results
from gpuhealth.kube.client import JSON_PATCH, Client, Object, backoff, retry_delay
from gpuhealth.kube.errors import ApiError, InvalidError
from gpuhealth.kube.event_recorder import EventRecorder, node_subject
from gpuhealth.kube.kinds import NODES
from gpuhealth.model.burnin_run import BurninRun, TestStatus
from gpuhealth.model.decoding import JSON_ERRORS
from gpuhealth.model.missing import Missing
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.burnin_results.probe import BurninProbe
from gpuhealth.monitors.monitor import RestartRequiredError
from gpuhealth.monitors.nvidia.devices import KernelModuleProbe
from gpuhealth.monitors.nvidia.nvml.stale_library import StaleLibrary
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine import preflight_taint as marks
from gpuhealth.quarantine.condition import summary
from gpuhealth.runtime.files import boot_id
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()
_T = TypeVar("_T")

_IDLE_SECONDS = 10.0
_STOP_SECONDS = 5.0  # from SIGTERM to SIGKILL of a child command
_REASON_LIMIT = 800  # of an Event's message
REASON = "preflight"
_LIBRARY_FINDINGS = {"agent.nvml_library", "driver.version_mismatch"}
_ACCEPTED = (State.HEALTHY, State.DEGRADED)  # a warning does not keep a node out of service


class PreflightError(Exception):
    """The node has not passed its preflight; the text has the reason."""


class Preflight:
    """The preflight of one node, run by `gpuhealth preflight`."""

    def __init__(self, settings: Settings, client: Client, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._settings = settings
        self._client = client
        self._now = now
        self._key = settings.preflight.taint
        self._boot_id = boot_id(settings.roots.proc)
        node = settings.node_name
        self._events = EventRecorder(client, AGENT, node, host=node, now=now)
        self._module = KernelModuleProbe(settings.roots.sys)
        self._stale_library = StaleLibrary()
        self._untested = ""  # why the burn-in could not start, as posted
        self._last_status = ""  # latest progress, for the error message of a timeout

    async def run(self) -> None:
        """Test the node whenever it has the taint, until SIGTERM or SIGINT.

        Raises RestartRequiredError when the driver was loaded after this process, so that only a new container can use
        it.
        """
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        failures = 0
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                pause = _IDLE_SECONDS
                try:
                    await self.test_if_tainted()
                    failures = 0
                except ApiError as error:
                    raise_if_cancelled()
                    failures += 1
                    pause = retry_delay(error, failures)
                    log.warning("API request failed", error=str(error), failures=failures, retry_in=round(pause, 1))
                await asyncio.sleep(pause)

    async def test_if_tainted(self) -> None:
        """Test the node if its taint requires it, and mark the outcome on the Node. Raises ApiError."""
        if not await self._is_due(await self._node()):
            log.info("preflight waiting", node=self._settings.node_name)
            return
        log.info("preflight started", node=self._settings.node_name, boot_id=self._boot_id)
        try:
            await self._test()
        except PreflightError as error:
            reason = str(error)[:_REASON_LIMIT]
            log.error("preflight failed", reason=reason)  # noqa: TRY400 - no traceback needed
            await self._mark(marks.failed, "PreflightFailed", f"the node stays tainted: {reason}", warning=True)
        else:
            log.info("preflight passed")
            message = "all checks and tests passed, taint removed"
            await self._mark(marks.passed, "PreflightPassed", message, warning=False)

    async def _node(self) -> Object:
        return await self._client.get(NODES, self._settings.node_name)

    async def _is_due(self, node: Object) -> bool:
        """Whether the node must be tested. After a failure, only if the value was reset manually or after a reboot."""
        value = marks.value(node, self._key)
        return value is not None and (value != FAILED or await self._last_result() is not TestStatus.FAILED)

    async def _last_result(self) -> TestStatus | None:
        """Passed or failed, for the latest completed preflight of this boot; None without one."""
        readings = await BurninProbe(self._settings.burnin.results_dir).read()
        runs = () if isinstance(readings, Missing) else readings.runs
        if not self._boot_id:
            return None
        statuses = [run.status for run in runs if run.reason == REASON and run.boot_id == self._boot_id]
        return next((status for status in reversed(statuses) if status.is_conclusive), None)

    async def _test(self) -> None:
        """Run the checks, then the burn-in. Raises PreflightError."""
        if await self._last_result() is TestStatus.PASSED:
            return
        started, limits = self._now(), self._settings.preflight
        self._last_status = "nothing was measured yet"
        try:
            async with asyncio.timeout(limits.deadline):
                await self._check()
                run = await self._burnin()
        except TimeoutError:
            self._save_failure(started)
            raise PreflightError(f"not done within {limits.deadline:g} s; last status: {self._last_status}") from None
        except PreflightError:
            self._save_failure(started)
            raise
        if run.status is not TestStatus.PASSED:
            raise PreflightError(_failure(run))  # the burn-in has saved its own result

    async def _check(self) -> None:
        """Repeat the passive checks until they pass: on a new node the driver may still be being installed."""
        limits, loop = self._settings.preflight, asyncio.get_running_loop()
        deadline = loop.time() + limits.readiness_timeout
        # A failed burn-in of the past must not prevent a new one, so the checks read no results.
        no_results = str(self._settings.burnin.results_dir / "none")
        while True:
            output = await self._run_command("check", "--json", GPUHEALTH_BURNIN__RESULTS_DIR=no_results)
            verdict = _decoded(output, Verdict)
            if verdict is not None:
                if verdict.verdict in _ACCEPTED:
                    self._require_present_driver()
                    return
                codes = {finding.code for finding in verdict.findings}
                self._stale_library.judge(self._module.read(), fails=not codes.isdisjoint(_LIBRARY_FINDINGS))
                self._last_status = f"{verdict.verdict}: {summary(verdict)[2]}"
            if loop.time() >= deadline:
                raise PreflightError(f"not healthy within {limits.readiness_timeout:g} s: {self._last_status}")
            await asyncio.sleep(limits.retry)

    def _require_present_driver(self) -> None:
        """Raises RestartRequiredError where this container was created with the libraries of another driver.

        The checks find the node's own libnvidia-ml; the burn-in has the CUDA libraries that this container got.
        """
        module = self._module.read()
        if not isinstance(module, Missing) and module.has_changed:
            raise RestartRequiredError(
                f"kernel module {module.version} was loaded after this container was created; the burn-in needs a new"
                " one, with its libraries"
            )

    async def _burnin(self) -> BurninRun:
        """Run the burn-in, which saves its result for the agent; repeated while it cannot start, as on a GPU in use."""
        limits = self._settings.preflight
        arguments = ["burnin", "--reason", REASON, "--json", "--level", limits.level]
        arguments += ["--tests", ",".join(limits.tests)] if limits.tests else []
        arguments += [] if limits.duration is None else ["--duration", f"{limits.duration:g}s"]
        while True:
            run = _decoded(await self._run_command(*arguments), BurninRun)
            if run is not None and run.status is not TestStatus.STOPPED:
                return run
            await self._report_untested()
            await asyncio.sleep(limits.retry)

    async def _report_untested(self) -> None:
        """Post an Event where driver and torch do not fit: no GPU is at fault, and another driver may yet come."""
        _, prefix, reason = self._last_status.partition(not_tested.PREFIX)
        if prefix and reason != self._untested:
            self._untested = reason
            log.warning("node cannot be tested", reason=reason)
            message = f"the node stays tainted: {prefix}{reason}"[:_REASON_LIMIT]
            self._events.queue(node_subject(self._settings.node_name), "PreflightNotTested", message, warning=True)
            with contextlib.suppress(ApiError):  # the Event waits in the queue, and is sent with the next
                await self._events.flush()

    async def _run_command(self, *arguments: str, **environment: str) -> bytes:
        """Standard output of a gpuhealth command. On cancellation, the command is stopped and waited for."""
        self._last_status = f"gpuhealth {arguments[0]} is running"
        process = await asyncio.create_subprocess_exec(
            *_command_line(*arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        try:
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                await _stop(process)
        last_line = errors.decode(errors="replace").strip().rpartition("\n")[2]
        self._last_status = last_line or f"gpuhealth {arguments[0]} exited with code {process.returncode}"
        return output

    def _save_failure(self, started: datetime) -> None:
        """Save a failed run without results, which a restarted process finds: a node is not retried until it passes."""
        settings = self._settings
        failed = BurninRun(
            node=settings.node_name,
            boot_id=self._boot_id,
            level=settings.preflight.level,
            reason=REASON,
            started=started,
            ended=self._now(),
            status=TestStatus.FAILED,
            results=(),
        )
        try:
            results.save(failed, settings.burnin.results_dir)
        except OSError as error:
            log.error("burn-in result not saved", folder=str(settings.burnin.results_dir), error=str(error))  # noqa: TRY400

    async def _mark(
        self, patch_of: Callable[[Object, str], list[Object]], reason: str, message: str, *, warning: bool
    ) -> None:
        """Apply a patch to the current Node and post an Event, with retries until both have succeeded."""
        failures = 0
        while True:
            try:
                if patch := patch_of(await self._node(), self._key):
                    await self._client.patch(NODES, self._settings.node_name, patch, content_type=JSON_PATCH)
                    self._events.queue(node_subject(self._settings.node_name), reason, message, warning=warning)
                await self._events.flush()
            except InvalidError:  # the taints have changed meanwhile: read the Node again
                await asyncio.sleep(backoff(0))
            except ApiError as error:
                raise_if_cancelled()
                failures += 1
                pause = retry_delay(error, failures)
                log.warning("node update failed", error=str(error), failures=failures, retry_in=round(pause, 1))
                await asyncio.sleep(pause)
            else:
                return


def _command_line(*arguments: str) -> list[str]:
    """The command line of `gpuhealth ARGUMENTS…`, with the interpreter and the version of this process."""
    return [sys.executable, "-P", "-m", "gpuhealth", *arguments]


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Stop a command, with time to end its own workers first."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()  # safe: only its children call the driver


def _decoded(text: bytes, kind: type[_T]) -> _T | None:
    with contextlib.suppress(*JSON_ERRORS):
        return msgspec.json.decode(text, type=kind)
    return None  # the command could not do its work


def _failure(run: BurninRun) -> str:
    failed = [result for result in run.results if result.status is TestStatus.FAILED]
    return (
        "; ".join(f"burnin.{result.test} {result.gpu}: {result.message}" for result in failed)
        or f"the burn-in is {run.status}"
    )
