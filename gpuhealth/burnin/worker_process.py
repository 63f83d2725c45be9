"""The parent's side of a worker process: start it, send its job, read its messages, and end it within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec

from gpuhealth.burnin import worker
from gpuhealth.burnin.protocol import DeviceList, Job, JobResult, Progress, Ready, Unsupported, WorkerMessage

STOP_SECONDS = worker.HARD_EXIT_SECONDS + 0.2
"""From SIGTERM to SIGKILL."""
_STACK_SECONDS = 2.0  # after SIGABRT, for faulthandler to write the stack
_KILL_SECONDS = 1.0  # after SIGKILL; a process in D state does not end, and is not waited for
_REAP_SECONDS = 0.2
_START_SECONDS = 180.0  # torch may come from a cold network file system, for all GPUs at once
_EVIDENCE_BYTES = 16_384
_READ_BYTES = 1 << 20
_DECODER = msgspec.json.Decoder(WorkerMessage)
_SIGNALS = {
    signal.SIGSEGV: "invalid memory access",
    signal.SIGBUS: "memory access refused by the hardware",
    signal.SIGKILL: "killed by the kernel when memory ran out, or by hand",
    signal.SIGILL: "illegal processor instruction",
    signal.SIGABRT: "aborted by a library",
    signal.SIGFPE: "arithmetic error",
}


class WorkerFailure(msgspec.Struct, frozen=True):
    """Why a worker sent no final message."""

    message: str  # one sentence
    evidence: str = ""  # the end of its standard error, with the stack that faulthandler writes there


WorkerAnswer: TypeAlias = JobResult | DeviceList | Unsupported


class Worker:
    """One worker process and its one job. Use it on the event loop's thread."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start the process. Raises OSError."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker; a file never blocks its writer
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", "gpuhealth.burnin.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # Ctrl-C at the terminal reaches the parent only, which stops the worker
        )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._pidfd = os.pidfd_open(self._process.pid)
        self._exited, self._finished = asyncio.Event(), asyncio.Event()
        self._answer: WorkerAnswer | None = None
        self._buffer = bytearray()
        self._timeout: asyncio.Timeout | None = None
        self._on_progress: Callable[[Progress], None] = lambda _: None
        self._stop_requested = False
        self._timeout_seconds = 0.0
        self._evidence = ""
        self.software: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        os.set_blocking(self._output.fileno(), False)
        loop.add_reader(self._output.fileno(), self._on_readable)
        loop.add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    async def run(
        self, job: Job, timeout_seconds: float, on_progress: Callable[[Progress], None]
    ) -> WorkerAnswer | WorkerFailure:
        """Run the job; the timeout counts from the worker's `Ready`. When this returns, the process has exited.

        The exception is a process that hangs inside the kernel, which no signal ends: it is not waited for.
        """
        self._on_progress, self._timeout_seconds = on_progress, timeout_seconds
        overdue = ""
        try:
            with contextlib.suppress(BrokenPipeError):  # it has exited already: its exit status explains why
                self._input.write(msgspec.json.encode(job))
                self._input.close()
            try:
                async with asyncio.timeout(STOP_SECONDS if self._stop_requested else _START_SECONDS) as self._timeout:
                    await self._finished.wait()
            except TimeoutError:
                overdue = f"sent no result within {timeout_seconds:.0f} s" if self.software else "did not start"
        except asyncio.CancelledError:
            self._stop_requested = True  # its results are not awaited
            raise
        finally:
            try:
                await self._terminate()
            finally:
                self._close()
        return self._result("" if self._stop_requested else overdue)

    def stop(self) -> None:
        """Ask the worker to stop, and wait for its result for STOP_SECONDS at most."""
        if not self._stop_requested:
            self._stop_requested = True
            self._signal(signal.SIGTERM)
            self._limit_wait(STOP_SECONDS)

    def _limit_wait(self, seconds: float) -> None:
        if self._timeout and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + seconds)

    def _result(self, overdue: str) -> WorkerAnswer | WorkerFailure:
        if self._answer and not overdue:
            return self._answer
        code = self._process.returncode
        if overdue:
            message = f"the test hangs: its process {overdue}{self._survivor_note()}"
        elif code is None:
            message = f"the test's process sent no result{self._survivor_note()}"
        elif code < 0:
            number = signal.Signals(-code)
            meaning = f" ({_SIGNALS[number]})" if number in _SIGNALS else ""
            message = f"the test's process was ended by {number.name}{meaning}"
        else:
            message = f"the test's process exited with code {code} and sent no result"
        return WorkerFailure(message, self._evidence)

    def _survivor_note(self) -> str:
        if self._exited.is_set():
            return ""
        state = "unknown"
        with contextlib.suppress(OSError, IndexError):
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return f"; process {self.pid} cannot be killed (state {state})"

    async def _terminate(self) -> None:
        """End the process, with SIGKILL as the last resort; of one that hangs, get its stack first."""
        self._timeout = None
        hangs = not self._finished.is_set() and not self._stop_requested
        if self._finished.is_set() or hangs:
            if hangs:
                self._signal(signal.SIGTERM)
            await self._wait_for_exit(STOP_SECONDS)
        if hangs:
            self._signal(signal.SIGABRT)  # faulthandler writes the stack even where no Python code gets to run
            await self._wait_for_exit(_STACK_SECONDS)
        self._signal(signal.SIGKILL)
        await self._wait_for_exit(_KILL_SECONDS)

    def _close(self) -> None:
        """Free the parent's descriptors, and keep the end of the worker's standard error as evidence."""
        if not self._exited.is_set():  # cancelled while it was being ended, or it cannot be killed
            self._signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_SECONDS)
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _EVIDENCE_BYTES))
        self._evidence = self._errors.read().decode(errors="replace")
        loop = asyncio.get_running_loop()
        for descriptor in (self._pidfd, self._output.fileno()):
            loop.remove_reader(descriptor)
        os.close(self._pidfd)
        for stream in (self._input, self._output, self._errors):
            stream.close()

    async def _wait_for_exit(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()

    def _signal(self, number: signal.Signals) -> None:
        if not self._exited.is_set():
            self._process.send_signal(number)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._output.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._output.fileno())
            return
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._handle(_DECODER.decode(line))

    def _handle(self, message: WorkerMessage) -> None:
        match message:
            case Ready():
                self.software = message.software
                if not self._stop_requested:
                    self._limit_wait(self._timeout_seconds)
            case Progress():
                self._on_progress(message)
            case JobResult() | DeviceList() | Unsupported():
                self._answer = message
                self._finished.set()

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._process.poll()  # reaps it
        self._on_readable()  # its last message may still be in the pipe
        self._exited.set()
        self._finished.set()
