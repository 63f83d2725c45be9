"""Preflight: a new node is tested, and let in by taking off the taint that it came with.

Whatever happens, the node is closed until its tests have passed: the taint is there before we are, and is taken off by
one patch at the very end. Killed at any moment, the next process starts over; a burn-in that has passed in this boot is
not repeated. The checks and the tests are run as the commands that people use, in processes of their own: a driver that
hangs cannot hold up the deadline.
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

from gpuhealth.burnin import results
from gpuhealth.kube.client import JSON_PATCH, Client, Object, backoff, patience
from gpuhealth.kube.errors import ApiError, InvalidError
from gpuhealth.kube.event_recorder import EventRecorder, node_subject
from gpuhealth.kube.kinds import NODES
from gpuhealth.model.missing import Missing
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.monitors.burnin_results.probe import BurninProbe
from gpuhealth.monitors.burnin_results.readings import BurninRun, TestStatus
from gpuhealth.monitors.node_probe import boot_id
from gpuhealth.monitors.nvidia.devices import KernelModuleProbe
from gpuhealth.monitors.nvidia.nvml.stale_library import StaleLibrary
from gpuhealth.quarantine import preflight_taint as marks
from gpuhealth.quarantine.condition import summary
from gpuhealth.quarantine.preflight_taint import FAILED
from gpuhealth.runtime.settings import Settings
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()
_T = TypeVar("_T")

_IDLE_SECONDS = 10.0
_STOP_SECONDS = 5.0  # in which a command that is told to stop has to end
_REASON_LIMIT = 800  # of an Event's message
REASON = "preflight"
_LIBRARY_FINDINGS = {"agent.nvml_library", "driver.version_mismatch"}
_FIT = (State.HEALTHY, State.DEGRADED)  # a warning keeps no node out of service


class FailedError(Exception):
    """The node has not passed; the text says why."""


class Preflight:
    """The preflight of one node."""

    def __init__(self, settings: Settings, client: Client, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._settings = settings
        self._client = client
        self._now = now
        self._key = settings.preflight.taint
        self._boot_id = boot_id(settings.roots.proc)
        node = settings.node_name
        self._events = EventRecorder(client, "gpuhealth-agent", node, host=node, now=now)
        self._module = KernelModuleProbe(settings.roots.sys)
        self._stale_library = StaleLibrary()
        self._told = ""

    async def run(self) -> None:
        """Waits for the taint, tests the node, and begins again, until cancelled by SIGTERM or SIGINT.

        Raises RestartRequiredError when the driver was loaded after us and only a new container can use it.
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
                    await self.once()
                    failures = 0
                except ApiError as error:
                    raise_if_cancelled()
                    failures += 1
                    pause = patience(error, failures)
                    log.warning("API request failed", error=str(error), failures=failures, retry_in=round(pause, 1))
                await asyncio.sleep(pause)

    async def once(self) -> None:
        """Tests the node if it waits for it, and says on the Node how that ended."""
        if not await self._is_awaited(await self._node()):
            log.info("preflight waiting", node=self._settings.node_name)
            return
        log.info("preflight started", node=self._settings.node_name, boot_id=self._boot_id)
        try:
            await self._pass()
        except FailedError as error:
            reason = str(error)[:_REASON_LIMIT]
            log.error("preflight failed", reason=reason)  # noqa: TRY400 - one sentence says it
            await self._mark(marks.failed, "PreflightFailed", f"stays closed: {reason}", warning=True)
        else:
            log.info("preflight passed")
            await self._mark(marks.passed, "PreflightPassed", "opened for work", warning=False)

    async def _node(self) -> Object:
        return await self._client.get(NODES, self._settings.node_name)

    async def _is_awaited(self, node: Object) -> bool:
        """A node that has failed waits for a person, who sets the taint's value back, or for a reboot."""
        said = marks.value(node, self._key)
        return said is not None and (said != FAILED or await self._last() is not TestStatus.FAILED)

    async def _last(self) -> TestStatus | None:
        """How the last preflight of this boot ended that did; None without one."""
        readings = await BurninProbe(self._settings.burnin.results_dir).read()
        runs = () if isinstance(readings, Missing) else readings.runs
        ours = [run.status for run in runs if run.reason == REASON and run.boot_id == self._boot_id != ""]
        return next((status for status in reversed(ours) if status.says_something), None)

    async def _pass(self) -> None:
        """Checks, then tests. Raises FailedError."""
        if await self._last() is TestStatus.PASSED:
            return
        started, limits = self._now(), self._settings.preflight
        self._told = "nothing has been measured yet"
        try:
            async with asyncio.timeout(limits.deadline):
                await self._check()
                run = await self._burnin()
        except TimeoutError:
            self._keep_failure(started)
            raise FailedError(f"not done within {limits.deadline:g} s; at last: {self._told}") from None
        except FailedError:
            self._keep_failure(started)
            raise
        if run.status is not TestStatus.PASSED:
            raise FailedError(_why(run))  # its result is kept already

    async def _check(self) -> None:
        """The passive checks, until all of them pass: on a new node the driver may still be on its way."""
        limits, loop = self._settings.preflight, asyncio.get_running_loop()
        until, elsewhere = loop.time() + limits.readiness_timeout, str(self._settings.burnin.results_dir / "none")
        while True:
            # What an earlier test has found is no reason not to test again.
            verdict = _decoded(await self._command("check", "--json", GPUHEALTH_BURNIN__RESULTS_DIR=elsewhere), Verdict)
            if verdict is not None:
                if verdict.verdict in _FIT:
                    return
                codes = {finding.code for finding in verdict.findings}
                self._stale_library.judge(self._module.read(), fails=not codes.isdisjoint(_LIBRARY_FINDINGS))
                self._told = f"{verdict.verdict}: {summary(verdict)[2]}"
            if loop.time() >= until:
                raise FailedError(f"not healthy within {limits.readiness_timeout:g} s: {self._told}")
            await asyncio.sleep(limits.retry)

    async def _burnin(self) -> BurninRun:
        """The burn-in, which leaves its result for the agent; tried again while it cannot begin, as on a GPU in use."""
        limits = self._settings.preflight
        words = ["burnin", "--reason", REASON, "--json", "--level", limits.level]
        words += ["--tests", ",".join(limits.tests)] if limits.tests else []
        words += [] if limits.duration is None else ["--duration", f"{limits.duration:g}s"]
        while True:
            run = _decoded(await self._command(*words), BurninRun)
            if run is not None and run.status is not TestStatus.STOPPED:
                return run
            await asyncio.sleep(limits.retry)

    async def _command(self, *words: str, **environment: str) -> bytes:
        """What `gpuhealth WORDS…` writes. It is stopped when we are, and waited for."""
        self._told = f"gpuhealth {words[0]} runs"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gpuhealth", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        try:
            out, errors = await process.communicate()
        finally:
            if process.returncode is None:
                await _stopped(process)
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        self._told = last or f"gpuhealth {words[0]} ended with {process.returncode}"
        return out

    def _keep_failure(self, started: datetime) -> None:
        """Leaves a run without results for a restart to find: a node is not tried again and again until it passes."""
        settings = self._settings
        failed = BurninRun(
            settings.node_name,
            self._boot_id,
            settings.preflight.level,
            REASON,
            started,
            self._now(),
            TestStatus.FAILED,
            (),
        )
        try:
            results.save(failed, settings.burnin.results_dir)
        except OSError as error:
            log.error("burn-in result not saved", folder=str(settings.burnin.results_dir), error=str(error))  # noqa: TRY400

    async def _mark(
        self, patch_of: Callable[[Object, str], list[Object]], reason: str, message: str, *, warning: bool
    ) -> None:
        """Writes the outcome on the Node as it is now, and an Event; tried again for as long as it takes."""
        failures = 0
        while True:
            try:
                if patch := patch_of(await self._node(), self._key):
                    await self._client.patch(NODES, self._settings.node_name, patch, content_type=JSON_PATCH)
                    self._events.queue(node_subject(self._settings.node_name), reason, message, warning=warning)
                await self._events.flush()
            except InvalidError:  # somebody else changed the taints meanwhile: look again
                await asyncio.sleep(backoff(0))
            except ApiError as error:
                raise_if_cancelled()
                failures += 1
                pause = patience(error, failures)
                log.warning("node update failed", error=str(error), failures=failures, retry_in=round(pause, 1))
                await asyncio.sleep(pause)
            else:
                return


async def _stopped(process: asyncio.subprocess.Process) -> None:
    """Ends a command: it gets the time to end its own workers first."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()  # a command only: what holds the driver is a child of it


def _decoded(text: bytes, kind: type[_T]) -> _T | None:
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(text, type=kind)
    return None  # it could not do what it was asked for


def _why(run: BurninRun) -> str:
    failed = [result for result in run.results if result.status is TestStatus.FAILED]
    return (
        "; ".join(f"burnin.{each.test} {each.gpu}: {each.message}" for each in failed) or f"the burn-in is {run.status}"
    )
