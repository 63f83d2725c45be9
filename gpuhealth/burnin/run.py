"""One run of active tests on this node: test after test, each in processes of its own, watched and judged.

The parent never loads torch: it costs memory, and a driver that hangs must not take the parent with it.
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

from gpuhealth.burnin.pass_rules import Trial, judge
from gpuhealth.burnin.protocol import DEVICES, CudaDevice, Devices, Fault, GpuOutcome, Job, Outcome, Progress, Unable
from gpuhealth.burnin.registry import TESTS, Workers
from gpuhealth.burnin.sampling import Sampler
from gpuhealth.burnin.targets import BurninError, Target
from gpuhealth.burnin.worker_process import Failure, Worker
from gpuhealth.model.burnin_run import BurninRun, TestResult, TestStatus
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.files import boot_id

_GRACE_SECONDS = 60.0  # beyond twice the time of a test: a last pass over the memory, a first compilation of kernels
_PROCESSOR_BYTES = 16 << 20  # what a processor that stands in for a GPU is tested with

Curves: TypeAlias = dict[str, dict[str, list[tuple[float, float]]]]
"""GPU -> quantity -> (seconds since the run began, value)."""


class Plan(msgspec.Struct, frozen=True):
    """What a run is to do."""

    level: str
    tests: Mapping[str, float]  # test -> seconds, in their order
    targets: tuple[Target, ...]
    reason: str = "manual"
    seed: int = 1
    faults: tuple[Fault, ...] = ()  # put in on purpose
    grace_seconds: float = _GRACE_SECONDS


class Run:
    """A run while it goes on. What it knows may be looked at any time from the loop's thread."""

    def __init__(self, plan: Plan, settings: Settings, sampler: Sampler) -> None:
        self.plan = plan
        self.sampler = sampler
        self._settings = settings
        self._workers: set[Worker] = set()
        self._stopped = asyncio.Event()
        self._began = time.monotonic()
        self._models = {target.gpu: target.model for target in plan.targets if target.model}
        self.test = ""  # the one that runs
        self.progress: dict[str, Progress] = {}  # GPU -> the last of the running test
        self.rates: dict[str, list[tuple[float, str, float]]] = {}  # GPU -> (monotonic seconds, quantity, rate)
        self.results: list[TestResult] = []
        self.software: dict[str, str] = {}
        self.on_test: Callable[[str], None] = lambda _: None  # a test begins
        self.on_results: Callable[[Sequence[TestResult]], None] = lambda _: None  # and has ended

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Ends the run within two seconds; what is known by then is kept."""
        self._stopped.set()
        for worker in self._workers:
            worker.stop()

    async def run(self) -> BurninRun:
        """Does the plan. Raises BurninError when no test can be done at all."""
        started, self._began = datetime.now(UTC), time.monotonic()
        if isinstance(driver := self.sampler.nvml.driver_version, str):
            self.software["driver"] = driver
        for test, seconds in self.plan.tests.items():
            if self.stopped:
                break
            results = await self._test(test, seconds)
            self.results += results
            self.on_results(results)
        self.test = ""
        return BurninRun(
            node=self._settings.node_name,
            # In a Pod the agent's roots need not be there; the boot's name is the same in every container.
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
        """What was measured over time, for a picture of it."""
        curves: Curves = {}
        for target in self.plan.targets:
            own = curves[target.gpu] = {}
            for sample in self.sampler.samples.get(target.gpu, []):
                for quantity, value in sample.values.items():
                    own.setdefault(quantity, []).append((sample.seconds - self._began, value))
            for seconds, quantity, rate in self.rates.get(target.gpu, []):
                own.setdefault(quantity, []).append((seconds - self._began, rate))
        return curves

    def _notes(self) -> Iterator[str]:
        if self.sampler.missing:
            yield f"no telemetry: {self.sampler.missing}"
        if isinstance(self.sampler.kernel_log, Missing):
            yield f"the kernel log could not be read ({self.sampler.kernel_log}): XIDs are those that NVML tells of"
        if self.plan.faults:
            yield f"faults were put in on purpose: {', '.join(fault.kind for fault in self.plan.faults)}"

    def _status(self) -> TestStatus:
        statuses = {result.status for result in self.results}
        if TestStatus.FAILED in statuses:
            return TestStatus.FAILED
        if self.stopped:
            return TestStatus.STOPPED
        passed = {result.gpu for result in self.results if result.status is TestStatus.PASSED}
        # A GPU on which nothing was tested has passed nothing.
        return TestStatus.PASSED if passed >= {target.gpu for target in self.plan.targets} else TestStatus.SKIPPED

    async def _test(self, test: str, seconds: float) -> tuple[TestResult, ...]:
        self.test, self.progress = test, {}
        self.sampler.begin()
        self.on_test(test)
        started, began = datetime.now(UTC), time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="gpuhealth-burnin-"))
        try:
            answered = await self._all_done(self._jobs(test, seconds, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        lasted = time.monotonic() - began
        watched = await self.sampler.end(self.stopped)
        trial = Trial(
            test=test,
            outcomes=tuple(self._with_temperature(outcome) for outcome in answered),
            started=started,
            seconds=lasted,
            stopped=self.stopped,
            watched=watched,
            models=self._models,
            device_ids=self.sampler.device_ids,
        )
        return judge(trial, self._settings.burnin.limits)

    def _jobs(self, test: str, seconds: float, folder: Path) -> list[Job]:
        """The jobs of a test, all to be done at once."""
        targets = self.plan.targets
        workers, seed = TESTS[test].workers, TESTS[test].seed
        shares = [targets] if workers is Workers.NODE else [(target,) for target in targets]
        processor = any(target.is_processor for target in targets)
        return [
            Job(
                test=test,
                devices=tuple(target.device for target in share),
                gpus=tuple(target.gpu for target in share),
                seconds=seconds,
                seed=self.plan.seed if seed is None else seed,
                small=processor,
                rank=rank if workers is Workers.RANK else 0,
                ranks=len(targets) if workers is Workers.RANK else 1,
                rendezvous=str(folder / "rendezvous") if workers is Workers.RANK else "",
                memory_bytes=_PROCESSOR_BYTES if processor else None,
                faults=tuple(fault for fault in self.plan.faults if fault.test in ("", test)),
            )
            for rank, share in enumerate(shares)
        ]

    async def _all_done(self, jobs: Sequence[Job]) -> list[GpuOutcome]:
        tasks: list[asyncio.Task[tuple[GpuOutcome, ...]]] = []
        problem: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._done(job)) for job in jobs]
        except* BurninError as errors:
            problem = errors.exceptions[0]
        if problem is not None:  # what is raised up there would be a group again
            raise problem
        return [outcome for task in tasks for outcome in task.result()]

    async def _done(self, job: Job) -> tuple[GpuOutcome, ...]:
        """One outcome for each GPU of the job, whatever becomes of its worker."""
        if self.stopped:
            return tuple(map(GpuOutcome, job.gpus))
        worker = Worker(_environment(self.plan.targets))
        self._workers.add(worker)
        try:
            answer = await worker.work(job, 2 * job.seconds + self.plan.grace_seconds, self._heard)
        finally:
            self._workers.discard(worker)
        self.software |= worker.software
        match answer:
            case Outcome(gpus=gpus):
                told = {outcome.gpu: outcome for outcome in gpus}
                return tuple(told.get(gpu) or self._untold(gpu) for gpu in job.gpus)
            case Failure() if not self.stopped:
                sentence = answer.sentence + self._whose(job)
                return tuple(GpuOutcome(gpu, sentence, evidence=answer.evidence) for gpu in job.gpus)
            case Unable(problem=problem):
                raise BurninError(problem)
        return tuple(map(GpuOutcome, job.gpus))

    def _whose(self, job: Job) -> str:
        """One process for several GPUs does not tell whose fault its end was; what it was last heard of may."""
        last = [progress for gpu, progress in self.progress.items() if gpu in job.gpus][-1:]
        if not last or (len(job.gpus) == 1 and not last[0].doing):
            return ""
        several = f"it tests {len(job.gpus)} GPUs, and was " if len(job.gpus) > 1 else ""
        return f" ({several}last heard of {last[0].doing or last[0].gpu})"

    def _untold(self, gpu: str) -> GpuOutcome:
        return GpuOutcome(gpu, "" if self.stopped else "the test's process said nothing of this GPU")

    def _heard(self, progress: Progress) -> None:
        self.progress.pop(progress.gpu, None)
        self.progress[progress.gpu] = progress  # the last one stands last
        now = time.monotonic()
        self.rates.setdefault(progress.gpu, []).extend((now, *rate) for rate in progress.rates.items())

    def _with_temperature(self, outcome: GpuOutcome) -> GpuOutcome:
        """A worker does not know how hot its GPU is."""
        sample = self.sampler.latest(outcome.gpu)
        celsius = sample.values.get("temperature_celsius") if sample else None
        if celsius is None:
            return outcome
        misses = (
            miss if miss.temperature_celsius is not None else msgspec.structs.replace(miss, temperature_celsius=celsius)
            for miss in outcome.miscompares
        )
        return msgspec.structs.replace(outcome, miscompares=tuple(misses))


async def cuda_devices() -> tuple[CudaDevice, ...]:
    """What torch sees, asked of a process of its own. Raises BurninError, with the reason, where it sees none."""
    answer = await Worker(os.environ).work(Job(DEVICES, (), (), 0.0, 0), _GRACE_SECONDS, lambda _: None)
    match answer:
        case Devices(devices=devices):
            return devices
        case Unable(problem=problem):
            raise BurninError(problem)
        case Failure(sentence=sentence, evidence=evidence):
            raise BurninError(f"torch cannot list the GPUs: {sentence}" + (f"\n{evidence}" if evidence else ""))
    raise AssertionError(answer)


def _environment(targets: Sequence[Target]) -> dict[str, str]:
    """The workers'. On processors they share the cores, or each would start as many threads as there are."""
    environment = dict(os.environ)
    if any(target.is_processor for target in targets):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin take the cores from one another
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // len(targets)))
    return environment
