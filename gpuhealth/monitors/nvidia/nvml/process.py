"""NVML in a child process, so that a call that hangs or crashes does not stop the agent. This is the parent side.

A call into a failing driver may hang for a minute or forever, and killing a process inside one has frozen GPUs. So the
child is never killed: while it hangs it is left alone, at most `max_extra_processes` others are started, and a child
that is no longer needed ends by itself when its call returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from gpuhealth.model.missing import UNREAD, Missing, MissingReason
from gpuhealth.monitors.nvidia.nvml import child as nvml_child
from gpuhealth.monitors.nvidia.nvml.library import LibraryFinder
from gpuhealth.monitors.nvidia.readings import GpuReadings, LibrarySearch, NvmlReadings
from gpuhealth.monitors.nvidia.settings import Nvml
from gpuhealth.runtime.stopwatch import Stopwatch

log = structlog.get_logger()

RELEASED = NvmlReadings(problem=Missing(MissingReason.RELEASED, "the driver was released on request"))
_NO_FIRST_LINE = Missing(MissingReason.AGENT_FAULT, "the first line of the NVML process's answer could not be read")
_UNREADABLE = Missing(MissingReason.AGENT_FAULT, "the NVML process's line for this GPU could not be read")
_NOT_SAID = Missing(MissingReason.ERROR, "it has not said whether it does")
_FIRST_BACKOFF_SECONDS = 1.0
_LONGEST_BACKOFF_SECONDS = 300.0
_RELEASE_SECONDS = 1.0
_LONGEST_LINE_BYTES = 1 << 24
_SHOWN_BYTES = 200
_DECODER = msgspec.json.Decoder(nvml_child.Message)

_STOPPED = ("T", "t")
"""Process states: stopped by a signal or a debugger. Such a child does not wait for the driver."""

_OF_THIS_PROCESS = (MissingReason.NOT_INSTALLED, MissingReason.MISMATCH)
"""Problems that may be due to the library loaded by the child: only a new process loads it again."""


class _Child:
    """One child process and its current round."""

    def __init__(
        self, reinit_interval: float, libraries: LibrarySearch, on_xid: Callable[[nvml_child.XidSeen], None]
    ) -> None:
        """Raises OSError when no process can be started; no descriptor stays open in that case."""
        self._libraries = libraries
        self._on_xid = on_xid
        arguments = [str(reinit_interval), *(library.path for library in libraries.found)]
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as childs:

            def kept(descriptor: int, owner: contextlib.ExitStack) -> int:
                owner.callback(os.close, descriptor)
                return descriptor

            page = kept(os.memfd_create("gpuhealth-nvml"), childs)
            os.ftruncate(page, nvml_child.PROGRESS_BYTES)
            self._page = mmap.mmap(page, nvml_child.PROGRESS_BYTES)
            ours.callback(self._page.close)
            ends = os.pipe2(os.O_CLOEXEC)
            child_input, self._input = kept(ends[0], childs), kept(ends[1], ours)
            ends = os.pipe2(os.O_CLOEXEC)
            self._output, child_output = kept(ends[0], ours), kept(ends[1], childs)
            os.set_blocking(self._output, False)
            self.pid = _spawn(arguments, child_input, child_output, page)
            ours.pop_all()
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._output, self._readable)
        self.exited = False
        self.crash = ""  # a traceback
        self.deaf: Missing | None = None  # why NVML reports no XIDs, if they were enabled
        self.waiting: Stopwatch | None = None  # since the oldest unanswered request
        self.in_round = False
        self._open_questions = 0
        self.silent_before = 0.0  # seconds waited for the child that this one replaces
        self.answered = asyncio.Event()
        self._began: nvml_child.Began | None = None
        self._gpus: dict[int, GpuReadings] = {}  # by index
        self.took_seconds = 0.0

    def ask(self) -> None:
        """Requests a round; if a ping is still unanswered, waiting time counts from there."""
        self._began, self._gpus = None, {}
        self.in_round = True
        self._question(b"read\n")

    def ping(self) -> None:
        """Requests any answer from the driver."""
        self._question(b"ping\n")

    def _question(self, line: bytes) -> None:
        self._open_questions += 1
        self.waiting = self.waiting or Stopwatch(self._loop)
        self.answered.clear()
        self._command(line)

    def want_events(self) -> None:
        """Enables XID events from now on."""
        self.deaf = _NOT_SAID
        self._command(b"events\n")

    def _command(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died: the reader sees end of file
            os.write(self._input, line)

    def asked_for(self) -> float:
        """Seconds since this child was sent its oldest outstanding request; 0 if there is none."""
        return 0.0 if self.waiting is None else self.waiting.seconds()

    def waiting_seconds(self) -> float:
        """Seconds without an answer from the driver; after an answer, the duration of the last round."""
        return self.took_seconds if self.waiting is None else self.silent_before + self.asked_for()

    def wait_afresh(self) -> None:
        """Counts the waiting time of outstanding requests from now on."""
        self.stop_waiting()
        self.waiting = Stopwatch(self._loop)

    def stop_waiting(self) -> None:
        """Stops counting: nothing is outstanding from now on."""
        if self.waiting is not None:
            self.waiting.stop()
            self.waiting = None

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
        self._buffer = bytearray(rest[:_LONGEST_LINE_BYTES])  # truncated, it is an unreadable line
        for line in lines:
            self._take_line(line)

    def _take_line(self, line: bytes | bytearray) -> None:
        """Handles one line. An unreadable line costs only its own content."""
        try:
            message = _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("unreadable answer from NVML process", error=str(error), line=ascii(bytes(line[:_SHOWN_BYTES])))
            return
        self._take(message)

    def _take(self, message: nvml_child.Message) -> None:
        match message:
            case nvml_child.Began():
                self._began = message
            case nvml_child.Gpu():
                self._gpus[message.readings.index] = message.readings
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
            self.wait_afresh()  # the driver answers; the remaining requests were sent after this one
            return
        self.took_seconds = self.waiting_seconds()
        self.stop_waiting()
        self.silent_before, self.in_round = 0.0, False
        self.answered.set()

    def readings(self) -> NvmlReadings:
        """The readings of the round so far."""
        waiting = self.waiting is not None
        began = self._began
        late = Missing(
            MissingReason.TIMEOUT, f"no answer for {self.waiting_seconds():.0f} s to {self.call() or 'NVML'}"
        )
        unread = late if waiting else UNREAD
        return NvmlReadings(
            problem=began.problem if began else late if waiting else _NO_FIRST_LINE,
            waiting_seconds=self.waiting_seconds(),
            waiting_for=self.call() if waiting else "",
            answered=not waiting,
            driver_version=began.driver_version if began else unread,
            nvml_version=began.nvml_version if began else unread,
            cuda_version=began.cuda_version if began else unread,
            count=began.count if began else unread,
            gpus=tuple(self._all_gpus(waiting)),
            library=began.library if began else "",
            libraries=self._libraries,
        )

    def _all_gpus(self, waiting: bool) -> Iterator[GpuReadings]:
        """The received GPUs; once the round is over, also a placeholder for every counted index without one."""
        count = self._began.count if self._began else UNREAD
        for index in range(0 if isinstance(count, Missing) else count):
            if index in self._gpus:
                yield self._gpus[index]
            elif not waiting:
                yield GpuReadings(index=index, error=_UNREADABLE)

    def call(self) -> str:
        """The NVML call that the child is executing."""
        return self._page[:].rstrip(b"\0").decode()

    def close_input(self) -> None:
        """Makes the child end when it can, by closing its input."""
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def close(self) -> None:
        """Releases the parent's resources; the child ends by itself, and no caller waits for it any longer."""
        self.close_input()
        self.stop_waiting()
        self.answered.set()
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1
            self._page.close()

    def reaped(self) -> bool:
        """Whether the process has ended. Never waits: a child in D state may take days."""
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                return False
        self.close()
        return True


def _spawn(arguments: list[str], child_input: int, child_output: int, page: int) -> int:
    """The pid of a new child with these descriptors. Raises OSError."""
    with contextlib.ExitStack() as copies:
        # Above the descriptors of the child, so that no copy overwrites one that is still to be copied.
        sources = []
        for descriptor in (child_input, child_output, page):
            sources.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16))
            copies.callback(os.close, sources[-1])
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "gpuhealth.monitors.nvidia.nvml.child", *arguments],
            os.environ | {"MALLOC_ARENA_MAX": "1"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, sources[0], 0),
                # Not ours: a reader of our output must not wait for a hung child.
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, sources[2], nvml_child.PROGRESS_FD),
                (os.POSIX_SPAWN_DUP2, sources[1], nvml_child.ANSWER_FD),
            ],
            setsid=True,  # a Ctrl-C at the terminal must not hit it inside a call
        )


class NvmlProbe:
    """Reads NVML without ever being blocked by it."""

    def __init__(self, settings: Nvml, proc: Path = Path("/proc"), library: LibraryFinder | None = None) -> None:
        """Without `library` the processes load what the loader finds."""
        self._settings = settings
        self._proc = proc
        self._library = library
        self._libraries = LibrarySearch()  # of the last search
        self._loader_failed = False
        self._module: str | None = None  # version of the kernel module; None: unknown
        self._child: _Child | None = None
        self._leaving: list[_Child] = []
        self._released = False
        self._events_wanted = False
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        self._not_before = 0.0
        self._last_exit: Missing | None = None
        self.starts = 0
        self.on_xid: Callable[[nvml_child.XidSeen], None] = lambda _: None

    def configure(self, settings: Nvml) -> None:
        """Applies new deadlines; a running child keeps its `reinit_interval`."""
        self._settings = settings

    @property
    def released(self) -> bool:
        """Whether the driver has been released on request."""
        return self._released

    @property
    def deaf(self) -> Missing | None:
        """Why NVML reports no XIDs, if they were enabled and it does not."""
        if self._released:
            return RELEASED.problem
        if self._child:
            return self._child.deaf
        return self._last_exit or (_NOT_SAID if self._events_wanted else None)

    @property
    def pids(self) -> list[int]:
        """Existing child processes, including hung ones."""
        return [child.pid for child in [*self._leaving, *([self._child] if self._child else [])]]

    async def read(self, wait_seconds: float) -> NvmlReadings:
        """One round, or the part of it received when `wait_seconds` are over or a deadline is crossed.

        A late round continues: the next call waits for it again. Never raises and never waits longer.
        """
        self._reap()
        if self._released:
            return RELEASED
        child = self._child or await self._start_with_present_library()
        if child is None:  # it may have been released during the search for a library
            return RELEASED if self.released else NvmlReadings(problem=self._last_exit, libraries=self._libraries)
        if not child.in_round:
            child.ask()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience(child, wait_seconds)):
                await child.answered.wait()
        if child is not self._child:  # released while we waited: it has not died, it was closed
            return RELEASED
        if child.exited:
            return self._died(child)
        if child.waiting is None:
            self._backoff_seconds = _FIRST_BACKOFF_SECONDS
            return self._complete(child)
        return self._overdue(child)

    def _complete(self, child: _Child) -> NvmlReadings:
        readings = child.readings()
        if readings.problem and readings.problem.reason in _OF_THIS_PROCESS:
            self._last_exit = readings.problem
            self._loader_failed = True
            self._not_before = time.monotonic() + self._settings.reinit_interval
            self._retire(child)
        return readings

    def restart(self) -> None:
        """Ends the present child, so that the next round starts NVML afresh, which lists the GPUs again."""
        if self._child and self._child.waiting is None and not self._released:
            self._retire(self._child)

    def follow_module(self, version: str) -> None:
        """Starts NVML afresh if the kernel module is another one than in the last round, or is gone: with its library.

        `version` is that of the loaded module, empty if there is none.
        """
        changed = self._module is not None and self._module != version
        self._module = version
        if changed:
            self._not_before = 0.0
            self._backoff_seconds = _FIRST_BACKOFF_SECONDS
            self.restart()

    def ping(self) -> None:
        """Sends a ping to the driver between two rounds, so that a hang is detected that much earlier."""
        if self._child and self._child.waiting is None and not self._child.exited:
            self._child.ping()

    def want_events(self) -> None:
        """Passes XIDs to `on_xid` as NVML reports them: without their text, but better than not at all."""
        self._events_wanted = True
        if self._child:
            self._child.want_events()

    def begin_release(self) -> None:
        """Closes the driver in all children from now on, without waiting for them."""
        self._released = True
        if self._child:
            self._retire(self._child)

    async def release(self) -> bool:
        """Closes the driver; True when no handle is left, False while a child is still inside a call."""
        self.begin_release()
        deadline = time.monotonic() + _RELEASE_SECONDS
        while self._leaving and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            self._reap()
        return not self._leaving

    def acquire(self) -> None:
        """Opens the driver again after a release."""
        self._released = False

    def close(self) -> None:
        """Ends the probe. A child inside a call is left to end by itself."""
        if self._child:
            self._retire(self._child)
        for child in self._leaving:
            child.close()
        self._reap()

    def _may_start(self) -> bool:
        return time.monotonic() >= self._not_before and len(self._leaving) <= self._settings.max_extra_processes

    async def _start_with_present_library(self) -> _Child | None:
        if self._library and self._may_start():
            paths = self._settings.library_paths
            self._libraries = await self._library.find(paths, loader_failed=self._loader_failed)
        return None if self._released else self._start()

    def _start(self) -> _Child | None:
        if not self._may_start():
            return None
        try:
            self._child = _Child(self._settings.reinit_interval, self._libraries, lambda seen: self.on_xid(seen))
        except OSError as error:
            self._back_off(f"no process can be started for NVML: {error.strerror}")
            log.warning("NVML process not started", error=str(error))
            return None
        self.starts += 1
        if self._events_wanted:
            self._child.want_events()
        return self._child

    def _patience(self, child: _Child, wait_seconds: float) -> float:
        """Seconds to wait: at most up to the next deadline, so that crossing it is reported at once."""
        waiting = child.waiting_seconds()
        crossings = (at - waiting for at in (self._settings.warn_after, self._settings.critical_after) if at > waiting)
        return max(0.0, min(wait_seconds, *crossings, wait_seconds))

    def _overdue(self, child: _Child) -> NvmlReadings:
        readings = child.readings()
        state = self._process_state(child.pid)
        if state in _STOPPED:
            child.wait_afresh()
            return NvmlReadings(problem=Missing(MissingReason.AGENT_FAULT, f"the NVML process is stopped ({state})"))
        if state:
            readings = msgspec.structs.replace(readings, waiting_for=f"{readings.waiting_for} (process state {state})")
        if child.asked_for() >= self._settings.critical_after:
            self._replace(child)
        return readings

    def _replace(self, child: _Child) -> None:
        """Starts another child in addition to a hung one: the cause may be the process and not the driver."""
        if len(self._leaving) >= self._settings.max_extra_processes:
            return
        silent = child.waiting_seconds()
        self._retire(child)
        if replacement := self._start():
            replacement.silent_before = silent
            replacement.ask()

    def _retire(self, child: _Child) -> None:
        child.close_input()
        self._leaving.append(child)
        self._child = None

    def _died(self, child: _Child) -> NvmlReadings:
        why = child.crash.strip().rpartition("\n")[2]
        detail = f"the NVML process died in {child.call() or 'no call'}" + (f" ({why})" if why else "")
        if child.crash:
            log.error("NVML process crashed", traceback=child.crash)
        self._back_off(detail)
        self._retire(child)
        self._reap()
        return NvmlReadings(problem=self._last_exit)

    def _back_off(self, why: str) -> None:
        # No duration in the text: a message that changes in every round is logged in every round.
        self._last_exit = Missing(MissingReason.AGENT_FAULT, why)
        self._not_before = time.monotonic() + self._backoff_seconds
        self._backoff_seconds = min(2 * self._backoff_seconds, _LONGEST_BACKOFF_SECONDS)

    def _reap(self) -> None:
        self._leaving = [child for child in self._leaving if not child.reaped()]

    def _process_state(self, pid: int) -> str:
        """The state of a process: S, R or D (uninterruptible: inside the kernel); empty if unknown."""
        try:
            return (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return ""
