"""One burn-in of this node: runs test after test in worker processes, samples telemetry meanwhile, applies pass rules.

The parent never loads torch: torch costs memory, and a driver that hangs must not hang the parent too.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec

from gpuhealth.burnin.pass_rules import Attempt, judge
from gpuhealth.burnin.protocol import (
    LIST_DEVICES,
    CudaDevice,
    DeviceList,
    DeviceResult,
    Fault,
    Job,
    JobResult,
    Progress,
    Unsupported,
)
from gpuhealth.burnin.registry import TESTS, Workers
from gpuhealth.burnin.sampling import Sampler
from gpuhealth.burnin.targets import BurninError, Target
from gpuhealth.burnin.worker_process import Worker, WorkerFailure
from gpuhealth.model.burnin_run import BurninRun, TestResult, TestStatus
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.files import boot_id

_GRACE_SECONDS = 60.0  # beyond twice a test's time: a last pass over the memory, a first compilation of kernels
_PROCESSOR_BYTES = 16 << 20  # memory to test if a processor replaces a GPU

Curves: TypeAlias = dict[str, dict[str, list[tuple[float, float]]]]
"""GPU -> quantity -> (seconds since the run started, value)."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of a run: tests, targets, limits."""

    level: str
    tests: Mapping[str, float]  # test -> seconds, in the order to run them
    targets: tuple[Target, ...]
    reason: str = "manual"
    seed: int = 1
    faults: tuple[Fault, ...] = ()  # to inject on purpose
    grace_seconds: float = _GRACE_SECONDS


class Run:
    """A burn-in in progress. Its public attributes may be read at any time from the event loop's thread."""

    def __init__(self, plan: Plan, settings: Settings, sampler: Sampler) -> None:
        self.plan = plan
        self.sampler = sampler
        self._settings = settings
        self._workers: set[Worker] = set()
        self._stopped = asyncio.Event()
        self._started = time.monotonic()
        self._models = {target.gpu: target.model for target in plan.targets if target.model}
        self.test = ""  # the one that is running
        self.progress: dict[str, Progress] = {}  # GPU -> latest progress in the running test, oldest first
        self.rates: dict[str, list[tuple[float, str, float]]] = {}  # GPU -> (monotonic seconds, figure, rate)
        self.results: list[TestResult] = []
        self.software: dict[str, str] = {}
        self.on_test_started: Callable[[str], None] = lambda _: None
        self.on_test_ended: Callable[[Sequence[TestResult]], None] = lambda _: None

    @property
    def stopped(self) -> bool:
        """Whether stop() has been called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End the run within two seconds; results so far are kept."""
        self._stopped.set()
        for worker in self._workers:
            worker.stop()

    async def run(self) -> BurninRun:
        """Run all tests of the plan. Raises BurninError where no test can run at all."""
        started, self._started = datetime.now(UTC), time.monotonic()
        if isinstance(driver := self.sampler.nvml.driver_version, str):
            self.software["driver"] = driver
        for test, seconds in self.plan.tests.items():
            if self.stopped:
                break
            results = await self._run_test(test, seconds)
            self.results += results
            self.on_test_ended(results)
        self.test = ""
        return BurninRun(
            node=self._settings.node_name,
            # A Pod may lack the agent's roots; the boot id is the same in every container.
            boot_id=boot_id(self._settings.roots.proc) or boot_id(Path("/proc")),
            level=self.plan.level,
            reason=self.plan.reason,
            started=started,
            ended=datetime.now(UTC),
            status=self._status(),
            results=tuple(self.results),
            software=self.software,
            models=self._models,
            notes=tuple(self._notes()),
        )

    def curves(self) -> Curves:
        """Telemetry samples and rates over time, for the HTML report."""
        curves: Curves = {}
        for target in self.plan.targets:
            own = curves[target.gpu] = {}
            for sample in self.sampler.samples.get(target.gpu, []):
                for quantity, value in sample.values.items():
                    own.setdefault(quantity, []).append((sample.seconds - self._started, value))
            for seconds, figure, rate in self.rates.get(target.gpu, []):
                own.setdefault(figure, []).append((seconds - self._started, rate))
        return curves

    def _notes(self) -> Iterator[str]:
        if self.sampler.missing:
            yield f"no telemetry: {self.sampler.missing}"
        if isinstance(self.sampler.kernel_log, Missing):
            yield f"the kernel log could not be read ({self.sampler.kernel_log}); XIDs are taken from NVML events only"
        if self.plan.faults:
            yield f"faults were injected on purpose: {', '.join(fault.kind for fault in self.plan.faults)}"

    def _status(self) -> TestStatus:
        statuses = {result.status for result in self.results}
        if TestStatus.FAILED in statuses:
            return TestStatus.FAILED
        if self.stopped:
            return TestStatus.STOPPED
        passed = {result.gpu for result in self.results if result.status is TestStatus.PASSED}
        # A GPU on which no test could run has not passed.
        return TestStatus.PASSED if passed >= {target.gpu for target in self.plan.targets} else TestStatus.SKIPPED

    async def _run_test(self, test: str, seconds: float) -> tuple[TestResult, ...]:
        self.test, self.progress = test, {}
        self.sampler.begin_test()
        self.on_test_started(test)
        started, clock_start = datetime.now(UTC), time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="gpuhealth-burnin-"))
        try:
            results = await self._run_jobs(self._jobs(test, seconds, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        duration = time.monotonic() - clock_start
        telemetry = await self.sampler.end_test(self.stopped)
        attempt = Attempt(
            test=test,
            results=tuple(self._with_temperature(result) for result in results),
            started=started,
            seconds=duration,
            stopped=self.stopped,
            telemetry=telemetry,
            models=self._models,
            device_ids=self.sampler.device_ids,
        )
        return judge(attempt, self._settings.burnin.limits)

    def _jobs(self, test: str, seconds: float, folder: Path) -> list[Job]:
        """The jobs of a test, which run at the same time."""
        targets = self.plan.targets
        workers, seed = TESTS[test].workers, TESTS[test].seed
        groups = [targets] if workers is Workers.NODE else [(target,) for target in targets]
        processor = any(target.is_processor for target in targets)
        return [
            Job(
                test=test,
                devices=tuple(target.device for target in group),
                gpus=tuple(target.gpu for target in group),
                seconds=seconds,
                seed=self.plan.seed if seed is None else seed,
                small=processor,
                rank=rank if workers is Workers.RANK else 0,
                ranks=len(targets) if workers is Workers.RANK else 1,
                rendezvous=str(folder / "rendezvous") if workers is Workers.RANK else "",
                memory_bytes=_PROCESSOR_BYTES if processor else None,
                faults=tuple(fault for fault in self.plan.faults if fault.test in ("", test)),
            )
            for rank, group in enumerate(groups)
        ]

    async def _run_jobs(self, jobs: Sequence[Job]) -> list[DeviceResult]:
        tasks: list[asyncio.Task[tuple[DeviceResult, ...]]] = []
        problem: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._run_job(job)) for job in jobs]
        except* BurninError as errors:
            problem = errors.exceptions[0]
        if problem is not None:  # raised inside `except*`, it would be wrapped in a group again
            raise problem
        return [result for task in tasks for result in task.result()]

    async def _run_job(self, job: Job) -> tuple[DeviceResult, ...]:
        """One result for each GPU of the job, also where its worker crashes or hangs. Raises BurninError."""
        if self.stopped:
            return tuple(DeviceResult(gpu=gpu) for gpu in job.gpus)
        worker = Worker(_environment(self.plan.targets))
        self._workers.add(worker)
        try:
            answer = await worker.run(job, 2 * job.seconds + self.plan.grace_seconds, self._on_progress)
        finally:
            self._workers.discard(worker)
        self.software |= worker.software
        match answer:
            case JobResult(gpus=results):
                by_gpu = {result.gpu: result for result in results}
                return tuple(by_gpu.get(gpu) or self._missing_result(gpu) for gpu in job.gpus)
            case WorkerFailure() if not self.stopped:
                failure = answer.message + self._last_activity(job)
                return tuple(DeviceResult(gpu=gpu, failure=failure, evidence=answer.evidence) for gpu in job.gpus)
            case Unsupported(reason=reason):
                raise BurninError(reason)
        return tuple(DeviceResult(gpu=gpu) for gpu in job.gpus)

    def _last_activity(self, job: Job) -> str:
        """The activity that a failed worker last reported: a process for several GPUs does not show which is bad."""
        latest = [progress for gpu, progress in self.progress.items() if gpu in job.gpus][-1:]
        if not latest or (len(job.gpus) == 1 and not latest[0].activity):
            return ""
        several = f"one process tests {len(job.gpus)} GPUs; " if len(job.gpus) > 1 else ""
        return f" ({several}last activity: {latest[0].activity or latest[0].gpu})"

    def _missing_result(self, gpu: str) -> DeviceResult:
        return DeviceResult(gpu=gpu, failure="" if self.stopped else "the test's process sent no result for this GPU")

    def _on_progress(self, progress: Progress) -> None:
        self.progress.pop(progress.gpu, None)
        self.progress[progress.gpu] = progress  # moves the GPU to the end of the dict
        now = time.monotonic()
        self.rates.setdefault(progress.gpu, []).extend((now, *rate) for rate in progress.rates.items())

    def _with_temperature(self, result: DeviceResult) -> DeviceResult:
        """Add the GPU's temperature to its miscompares, which the worker cannot read."""
        sample = self.sampler.latest(result.gpu)
        celsius = sample.values.get("temperature_celsius") if sample else None
        if celsius is None:
            return result
        miscompares = (
            miss if miss.temperature_celsius is not None else msgspec.structs.replace(miss, temperature_celsius=celsius)
            for miss in result.miscompares
        )
        return msgspec.structs.replace(result, miscompares=tuple(miscompares))


async def cuda_devices() -> tuple[CudaDevice, ...]:
    """The CUDA devices that torch sees, listed by a worker process. Raises BurninError where there are none."""
    job = Job(test=LIST_DEVICES, devices=(), gpus=(), seconds=0.0, seed=0)
    answer = await Worker(os.environ).run(job, _GRACE_SECONDS, lambda _: None)
    match answer:
        case DeviceList(devices=devices):
            return devices
        case Unsupported(reason=reason):
            raise BurninError(reason)
        case WorkerFailure(message=message, evidence=evidence):
            raise BurninError(f"torch cannot list the GPUs: {message}" + (f"\n{evidence}" if evidence else ""))
    raise AssertionError(answer)


def _environment(targets: Sequence[Target]) -> dict[str, str]:
    """Environment of the workers. On processors they share the cores, else each would start a thread per core."""
    environment = dict(os.environ)
    if any(target.is_processor for target in targets):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin take the cores from one another
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // len(targets)))
    return environment
