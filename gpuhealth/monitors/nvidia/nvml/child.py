"""The process that makes NVML calls: `python -m gpuhealth.monitors.nvidia.nvml.child`, started by process.py.

Its arguments are the pause between two attempts to start NVML, and the libraries to try, or none for the loader's own.

It reads one-line commands on standard input and answers in JSON lines on file descriptor 4. File descriptor 3 is a page
shared with the parent, with the name of the current call. Standard output and standard error are /dev/null, in case a
library prints. The process ends when standard input does: the kernel then closes every /dev/nvidia* handle, even if
nvmlShutdown would hang.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import sys
import threading
import time
import traceback
from typing import TypeAlias

import msgspec

from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.nvml import driver as nvml_driver
from gpuhealth.monitors.nvidia.readings import GpuReadings

PROGRESS_FD = 3
ANSWER_FD = 4
PROGRESS_BYTES = 256


class Began(msgspec.Struct, frozen=True, tag=True):
    """The round's first line. One `Gpu` for every index below `count` follows."""

    problem: Missing | None
    driver_version: Reading[str]
    nvml_version: Reading[str]
    cuda_version: Reading[str]
    count: Reading[int]
    library: str = ""  # path of the library that was loaded; empty if the loader found it, or none was


class Gpu(msgspec.Struct, frozen=True, tag=True):
    """One GPU of the round."""

    readings: GpuReadings


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The round's last line."""


class XidSeen(msgspec.Struct, frozen=True, tag=True):
    """An XID event from NVML: a code without text."""

    xid: int
    pci: str
    uuid: str
    time: float


class Listening(msgspec.Struct, frozen=True, tag=True):
    """Whether NVML reports XIDs, and why not if it does not."""

    problem: Missing | None


class Crashed(msgspec.Struct, frozen=True, tag=True):
    """Sent by a process that ends because of an error of its own."""

    traceback: str


Message: TypeAlias = Began | Gpu | Ended | XidSeen | Listening | Crashed


class _Child:
    def __init__(self, reinit_interval: float, libraries: list[str]) -> None:
        self._reinit_interval = reinit_interval
        self._driver: nvml_driver.Driver | None = None
        self._problem: Missing | None = Missing(MissingReason.ERROR, "not started")
        self._started_at = -reinit_interval
        self._lost = False
        self._count: Reading[int] | None = None
        self._want_events = False
        self._events: nvml_driver.XidEvents | None = None
        self._encoder = msgspec.json.Encoder()
        self._output = threading.Lock()
        self._page = mmap.mmap(PROGRESS_FD, PROGRESS_BYTES)
        self.progress("dlopen")
        self._library, self._load_problem = nvml_driver.load(libraries)

    def progress(self, call: str) -> None:
        """Shows the parent which call is about to be made."""
        self._page[:] = call.encode()[:PROGRESS_BYTES].ljust(PROGRESS_BYTES, b"\0")

    def say(self, message: Message) -> None:
        self._send(self._encoder.encode(message))

    def _send(self, line: bytes) -> None:
        with self._output:
            view = memoryview(line + b"\n")
            while view:
                view = view[os.write(ANSWER_FD, view) :]

    def serve(self) -> None:
        for line in sys.stdin.buffer:
            command = line.strip()
            if command == b"events":
                self._want_events = True
                self._listen()
            elif command == b"ping":
                self.ping()
            elif command == b"read":
                self.round()

    def ping(self) -> None:
        """Makes one call that must reach the driver; its result does not matter."""
        if self._driver is not None:
            self._driver.ping()
        self.progress("")
        self.say(Ended())

    def round(self) -> None:
        self._restart_if_due()
        self._listen()
        driver = self._driver
        if driver is None:
            unread = self._problem or Missing(MissingReason.ERROR)
            self.say(Began(self._problem, unread, unread, unread, unread, self._library))
        else:
            count = driver.count()
            if count != self._count:  # the GPU behind an index may have changed
                self._count = count
                driver = self._driver = nvml_driver.Driver(self.progress)
            driver.read_versions()
            versions = driver.driver_version, driver.nvml_version, driver.cuda_version
            self.say(Began(None, *versions, count, self._library))
            self._lost = isinstance(count, Missing)
            if not isinstance(count, Missing):
                for index in range(count):
                    if _input_ended():
                        return
                    self._send(self._gpu(driver, index, count))
        self.progress("")
        self.say(Ended())

    def _gpu(self, driver: nvml_driver.Driver, index: int, count: int) -> bytes:
        """The line of one GPU: its readings, or why there are none."""
        try:
            gpu = driver.read(index, count)
            line = self._encoder.encode(Gpu(gpu))
        except Exception:  # noqa: BLE001 - a bug with one GPU must not cost the others
            why = traceback.format_exc(limit=-1).strip().rpartition("\n")[2]
            unread = Missing(MissingReason.AGENT_FAULT, f"GPU {index} could not be read: {why}")
            gpu = GpuReadings(index=index, error=unread)
            line = self._encoder.encode(Gpu(gpu))
        self._lost |= gpu.error is not None
        return line

    def _restart_if_due(self) -> None:
        """Starts NVML, again after a failure or if a GPU is lost; not in every round, since a start can hang, too."""
        if self._driver is not None and not self._lost:
            return
        if time.monotonic() - self._started_at < self._reinit_interval:
            return
        self._started_at = time.monotonic()
        if self._events:
            self._events.stop()
            self._events = None
        before = self._driver
        if before is not None:
            nvml_driver.stop(self.progress)
        self._problem = self._load_problem or nvml_driver.start(self.progress)
        self._driver = None if self._problem else nvml_driver.Driver(self.progress, before)

    def _listen(self) -> None:
        if self._driver and self._want_events and not self._events:
            heard = nvml_driver.listen(lambda *seen: self.say(XidSeen(*seen)))
            problem = heard if isinstance(heard, Missing) else None
            self._events = None if isinstance(heard, Missing) else heard
            self.say(Listening(problem))


def _input_ended() -> bool:
    """Called between two GPUs. The parent sends nothing during a round, so readable input means end of file."""
    return bool(select.select([0], [], [], 0)[0])


def main() -> None:
    """Serves until standard input ends."""
    child = _Child(reinit_interval=float(sys.argv[1]), libraries=sys.argv[2:])
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        try:
            child.serve()
        except Exception:  # noqa: BLE001 - the parent logs any error
            child.say(Crashed(traceback.format_exc()))
    os._exit(0)


if __name__ == "__main__":
    main()
