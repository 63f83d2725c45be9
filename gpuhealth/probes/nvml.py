"""NVML at arm's length: the parent of the process in which NVML calls are made.

A call into a sick driver may hang for a minute or for ever, and a process that is killed inside one has frozen GPUs.
So the child is asked and waited for, never killed: while it hangs it is left alone, at most `max_replacements` others
are started beside it, and a child that is no longer wanted ends by itself when its call returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from gpuhealth.config import Nvml
from gpuhealth.model import Missing, MissingReason
from gpuhealth.probes import nvml_child
from gpuhealth.readings import UNREAD, GpuReadings, NvmlReadings

log = structlog.get_logger()

RELEASED = NvmlReadings(problem=Missing(MissingReason.RELEASED, "the driver was let go on request"))
_NOT_SAID = Missing(MissingReason.ERROR, "it has not said whether it does")
_LONGEST_BACKOFF_SECONDS = 300.0
_RELEASE_SECONDS = 1.0
_DECODER = msgspec.json.Decoder(nvml_child.Message)


class _Child:
    """One child process and the round it was last asked for."""

    def __init__(self, arguments: list[str], on_xid: Callable[[nvml_child.XidSeen], None]) -> None:
        self._on_xid = on_xid
        page = os.memfd_create("gpuhealth-nvml")
        os.ftruncate(page, nvml_child.PROGRESS_BYTES)
        self._page = mmap.mmap(page, nvml_child.PROGRESS_BYTES)
        child_input, self._input = os.pipe2(os.O_CLOEXEC)
        self._output, child_output = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output, False)
        self.pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "gpuhealth.probes.nvml_child", *arguments],
            os.environ | {"MALLOC_ARENA_MAX": "1"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, child_input, 0),
                (os.POSIX_SPAWN_DUP2, child_output, 1),
                # Not ours: who waits for the end of our standard error must not wait for a child that hangs.
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, page, nvml_child.PROGRESS_FD),
            ],
            setsid=True,  # a Ctrl-C at the terminal must not hit it inside a call
        )
        for descriptor in (child_input, child_output, page):
            os.close(descriptor)
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._output, self._readable)
        self.exited = False
        self.crash = ""  # a traceback
        self.deaf: Missing | None = None  # why NVML tells of no XIDs, where it was asked to
        self.asked_at: float | None = None  # the question that has waited longest
        self.in_round = False
        self._open_questions = 0
        self.silent_before = 0.0  # how long the child that this one replaces was waited for
        self.answered = asyncio.Event()
        self._began: nvml_child.Began | None = None
        self._gpus: list[GpuReadings] = []
        self.took_seconds = 0.0

    def ask(self) -> None:
        """Asks for a round; while a ping is still without an answer, the wait counts from there."""
        self._began, self._gpus = None, []
        self.in_round = True
        self._question(b"read\n")

    def ping(self) -> None:
        """Asks for any answer of the driver."""
        self._question(b"ping\n")

    def _question(self, line: bytes) -> None:
        self._open_questions += 1
        self.asked_at = self.asked_at or time.monotonic()
        self.answered.clear()
        self._command(line)

    def want_events(self) -> None:
        """Asks for XID events from now on."""
        self.deaf = _NOT_SAID
        self._command(b"events\n")

    def _command(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died: the reader sees the end of its output
            os.write(self._input, line)

    def asked_for(self) -> float:
        """How many seconds this child has been asked for its outstanding round; 0 if there is none."""
        return 0.0 if self.asked_at is None else time.monotonic() - self.asked_at

    def waiting_seconds(self) -> float:
        """How long the driver has not answered; when it has, how long the last round took."""
        return self.took_seconds if self.asked_at is None else self.silent_before + self.asked_for()

    def _readable(self) -> None:
        try:
            data = os.read(self._output, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._output)
            self.exited = True
            self.answered.set()
            return
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            self._take(_DECODER.decode(line))

    def _take(self, message: nvml_child.Message) -> None:
        match message:
            case nvml_child.Began():
                self._began = message
            case nvml_child.Gpu():
                self._gpus.append(message.readings)
            case nvml_child.Ended():
                self._answered()
            case nvml_child.XidSeen():
                self._on_xid(message)
            case nvml_child.Listening():
                self.deaf = message.problem
            case nvml_child.Crashed():
                self.crash = message.traceback

    def _answered(self) -> None:
        self._open_questions -= 1
        if self._open_questions:
            self.asked_at = time.monotonic()  # the driver lives; what is still asked was asked behind this
            return
        self.took_seconds = self.waiting_seconds()
        self.asked_at, self.silent_before, self.in_round = None, 0.0, False
        self.answered.set()

    def readings(self) -> NvmlReadings:
        """What has come of the round so far."""
        waiting = self.asked_at is not None
        began = self._began
        late = Missing(
            MissingReason.TIMEOUT, f"no answer for {self.waiting_seconds():.0f} s to {self.call() or 'NVML'}"
        )
        unread = late if waiting else UNREAD
        return NvmlReadings(
            problem=began.problem if began else late if waiting else None,
            waiting_seconds=self.waiting_seconds(),
            waiting_for=self.call() if waiting else "",
            answered=not waiting,
            driver_version=began.driver_version if began else unread,
            nvml_version=began.nvml_version if began else unread,
            cuda_version=began.cuda_version if began else unread,
            count=began.count if began else unread,
            gpus=tuple(self._gpus),
        )

    def call(self) -> str:
        """The NVML call that the child is in."""
        return self._page[:].rstrip(b"\0").decode()

    def let_go(self) -> None:
        """Tells the child to end when it can."""
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def close(self) -> None:
        """Frees what the parent holds of it; the child ends by itself. Nobody waits for it any longer."""
        self.let_go()
        self.answered.set()
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1
            self._page.close()

    def reaped(self) -> bool:
        """Whether the process is gone. Never waits: a child in D state may not go for days."""
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                return False
        self.close()
        return True


class NvmlProbe:
    """Reads NVML without ever hanging with it."""

    def __init__(self, settings: Nvml, proc: Path = Path("/proc")) -> None:
        self._settings = settings
        self._proc = proc
        self._child: _Child | None = None
        self._leaving: list[_Child] = []
        self._released = False
        self._events_wanted = False
        self._backoff_seconds = 1.0
        self._not_before = 0.0
        self._last_exit: Missing | None = None
        self.starts = 0
        self.on_xid: Callable[[nvml_child.XidSeen], None] = lambda _: None

    def configure(self, settings: Nvml) -> None:
        """Takes new deadlines; a child that runs keeps its `reinit_interval`."""
        self._settings = settings

    @property
    def released(self) -> bool:
        """Whether the driver has been let go on request."""
        return self._released

    @property
    def deaf(self) -> Missing | None:
        """Why NVML tells of no XIDs, where it was asked to and does not."""
        if self._released:
            return RELEASED.problem
        return self._child.deaf if self._child else self._last_exit

    @property
    def pids(self) -> list[int]:
        """Children that exist, those that hang included."""
        return [child.pid for child in [*self._leaving, *([self._child] if self._child else [])]]

    async def read(self, wait_seconds: float) -> NvmlReadings:
        """One round, or as much of it as has come when `wait_seconds` are over or a deadline is crossed.

        A round that is late goes on: the next call waits for it again. Never raises and never waits longer.
        """
        self._reap()
        if self._released:
            return RELEASED
        child = self._child or self._start()
        if child is None:
            return NvmlReadings(problem=self._last_exit)
        if not child.in_round:
            child.ask()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience(child, wait_seconds)):
                await child.answered.wait()
        if child is not self._child:  # released while we waited: it has not died, it was told to go
            return RELEASED
        if child.exited:
            return self._died(child)
        if child.asked_at is None:
            self._backoff_seconds = 1.0
            return child.readings()
        return self._overdue(child)

    def ping(self) -> None:
        """Asks the driver for a sign of life between two rounds, so that a hang is known that much earlier."""
        if self._child and self._child.asked_at is None and not self._child.exited:
            self._child.ping()

    def want_events(self) -> None:
        """Has XIDs told to `on_xid` as NVML reports them: without their text, but better than not at all."""
        self._events_wanted = True
        if self._child:
            self._child.want_events()

    def let_go(self) -> None:
        """Has no child hold the driver from now on, and does not wait until none does."""
        self._released = True
        if self._child:
            self._retire(self._child)

    async def release(self) -> bool:
        """Lets go of the driver; True when no handle is left, False while a child is still inside a call."""
        self.let_go()
        deadline = time.monotonic() + _RELEASE_SECONDS
        while self._leaving and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            self._reap()
        return not self._leaving

    def acquire(self) -> None:
        """Takes the driver again after a release."""
        self._released = False

    def close(self) -> None:
        """Ends the probe. A child inside a call is left to end by itself."""
        if self._child:
            self._retire(self._child)
        for child in self._leaving:
            child.close()
        self._reap()

    def _start(self) -> _Child | None:
        if time.monotonic() < self._not_before or len(self._leaving) > self._settings.max_replacements:
            return None
        self._child = _Child([str(self._settings.reinit_interval)], lambda seen: self.on_xid(seen))
        self.starts += 1
        if self._events_wanted:
            self._child.want_events()
        return self._child

    def _patience(self, child: _Child, wait_seconds: float) -> float:
        """Up to the next deadline, so that crossing it is reported at once."""
        waiting = child.waiting_seconds()
        crossings = (at - waiting for at in (self._settings.warn_after, self._settings.critical_after) if at > waiting)
        return max(0.0, min(wait_seconds, *crossings, wait_seconds))

    def _overdue(self, child: _Child) -> NvmlReadings:
        readings = child.readings()
        if state := self._process_state(child.pid):
            readings = msgspec.structs.replace(readings, waiting_for=f"{readings.waiting_for} (process state {state})")
        if child.asked_for() >= self._settings.critical_after:
            self._replace(child)
        return readings

    def _replace(self, child: _Child) -> None:
        """Starts another child beside one that hangs: what hangs may be the process and not the driver."""
        if len(self._leaving) >= self._settings.max_replacements:
            return
        silent = child.waiting_seconds()
        self._retire(child)
        if replacement := self._start():
            replacement.silent_before = silent
            replacement.ask()

    def _retire(self, child: _Child) -> None:
        child.let_go()
        self._leaving.append(child)
        self._child = None

    def _died(self, child: _Child) -> NvmlReadings:
        why = child.crash.strip().rpartition("\n")[2]
        detail = f"the NVML process died in {child.call() or 'no call'}" + (f" ({why})" if why else "")
        if child.crash:
            log.error("the NVML process has failed", traceback=child.crash)
        self._last_exit = Missing(MissingReason.ERROR, f"{detail}; next start in {self._backoff_seconds:.0f} s")
        self._not_before = time.monotonic() + self._backoff_seconds
        self._backoff_seconds = min(2 * self._backoff_seconds, _LONGEST_BACKOFF_SECONDS)
        self._retire(child)
        self._reap()
        return NvmlReadings(problem=self._last_exit)

    def _reap(self) -> None:
        self._leaving = [child for child in self._leaving if not child.reaped()]

    def _process_state(self, pid: int) -> str:
        """S, R or D (uninterruptible: inside the kernel)."""
        try:
            return (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return ""
