"""A worker process at arm's length: started, told, listened to, and ended within bounds, whatever it is stuck in."""

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
from gpuhealth.burnin.protocol import Devices, Job, Message, Outcome, Progress, Ready, Unable

STOP_SECONDS = worker.HARD_EXIT_SECONDS + 0.2
"""From SIGTERM to SIGKILL."""
_STACK_SECONDS = 2.0  # for faulthandler to write, on SIGABRT
_KILL_SECONDS = 1.0  # after SIGKILL; a process in D state does not go, and is not waited for
_REAP_SECONDS = 0.2
_START_SECONDS = 180.0  # torch comes from a cold network file system, on all GPUs at once
_EVIDENCE_BYTES = 16_384
_READ_BYTES = 1 << 20
_DECODER = msgspec.json.Decoder(Message)
_SIGNALS = {
    signal.SIGSEGV: "a memory access that is not allowed",
    signal.SIGBUS: "a memory access that the hardware refused",
    signal.SIGKILL: "by the kernel for want of memory, or by a person",
    signal.SIGILL: "an instruction that the processor does not know",
    signal.SIGABRT: "a library gave up",
    signal.SIGFPE: "an arithmetic error",
}


class Failure(msgspec.Struct, frozen=True):
    """How a worker ended that gave no outcome."""

    sentence: str
    evidence: str = ""  # the end of its standard error, with the stack that faulthandler leaves there


Answer: TypeAlias = Outcome | Devices | Unable


class Worker:
    """One worker and its one job."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker; a file never blocks its writer
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", "gpuhealth.burnin.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # a Ctrl-C at the terminal is for the parent, who tells us
        )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._handle = os.pidfd_open(self._process.pid)
        self._exited, self._answered = asyncio.Event(), asyncio.Event()
        self._answer: Answer | None = None
        self._buffer = bytearray()
        self._limit: asyncio.Timeout | None = None
        self._told: Callable[[Progress], None] = lambda _: None
        self._stopping = False
        self._seconds = 0.0
        self._evidence = ""
        self.software: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        os.set_blocking(self._output.fileno(), False)
        loop.add_reader(self._output.fileno(), self._readable)
        loop.add_reader(self._handle, self._gone)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    async def work(self, job: Job, seconds: float, told: Callable[[Progress], None]) -> Answer | Failure:
        """Has the job done within so many seconds of the worker's being ready. When it returns, the process is gone.

        Only one that hangs inside the kernel may be left, which is not waited for.
        """
        self._told, self._seconds = told, seconds
        late = ""
        try:
            with contextlib.suppress(BrokenPipeError):  # it has died already: its end says why
                self._input.write(msgspec.json.encode(job))
                self._input.close()
            try:
                async with asyncio.timeout(STOP_SECONDS if self._stopping else _START_SECONDS) as self._limit:
                    await self._answered.wait()
            except TimeoutError:
                late = f"gave no outcome within {seconds:.0f} s" if self.software else "did not start"
        except asyncio.CancelledError:
            self._stopping = True  # nobody waits for what it has found
            raise
        finally:
            try:
                await self._end()
            finally:
                self._close()
        return self._judged("" if self._stopping else late)

    def stop(self) -> None:
        """Tells it to stop, and shortens the wait for its outcome accordingly."""
        if not self._stopping:
            self._stopping = True
            self._signal(signal.SIGTERM)
            self._wait_at_most(STOP_SECONDS)

    def _wait_at_most(self, seconds: float) -> None:
        if self._limit and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)

    def _judged(self, late: str) -> Answer | Failure:
        if self._answer and not late:
            return self._answer
        code = self._process.returncode
        if late:
            sentence = f"the test hangs: its process {late}{self._left()}"
        elif code is None:
            sentence = f"the test's process gave no outcome{self._left()}"
        elif code < 0:
            number = signal.Signals(-code)
            meaning = f" ({_SIGNALS[number]})" if number in _SIGNALS else ""
            sentence = f"the test's process was ended by {number.name}{meaning}"
        else:
            sentence = f"the test's process ended without an outcome (exit code {code})"
        return Failure(sentence, self._evidence)

    def _left(self) -> str:
        if self._exited.is_set():
            return ""
        state = "unknown"
        with contextlib.suppress(OSError, IndexError):
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return f"; process {self.pid} cannot be ended (state {state})"

    async def _end(self) -> None:
        """Sees the process to its end, by force where it needs that."""
        self._limit = None
        hangs = not self._answered.is_set() and not self._stopping
        if self._answered.is_set() or hangs:
            if hangs:
                self._signal(signal.SIGTERM)
            await self._exit_within(STOP_SECONDS)
        if hangs:
            self._signal(signal.SIGABRT)  # faulthandler writes what hangs, also where no Python code gets to run
            await self._exit_within(_STACK_SECONDS)
        self._signal(signal.SIGKILL)
        await self._exit_within(_KILL_SECONDS)

    def _close(self) -> None:
        """Frees what the parent holds of the process, and keeps its last words."""
        if not self._exited.is_set():  # we were cancelled while it was being ended, or it cannot be
            self._signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_SECONDS)
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _EVIDENCE_BYTES))
        self._evidence = self._errors.read().decode(errors="replace")
        loop = asyncio.get_running_loop()
        for descriptor in (self._handle, self._output.fileno()):
            loop.remove_reader(descriptor)
        os.close(self._handle)
        for stream in (self._input, self._output, self._errors):
            stream.close()

    async def _exit_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()

    def _signal(self, number: signal.Signals) -> None:
        if not self._exited.is_set():
            self._process.send_signal(number)

    def _readable(self) -> None:
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
            self._take(_DECODER.decode(line))

    def _take(self, message: Message) -> None:
        match message:
            case Ready():
                self.software = message.software
                if not self._stopping:
                    self._wait_at_most(self._seconds)
            case Progress():
                self._told(message)
            case Outcome() | Devices() | Unable():
                self._answer = message
                self._answered.set()

    def _gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        self._process.poll()  # reaps it
        self._readable()  # its last words may still be in the pipe
        self._exited.set()
        self._answered.set()
