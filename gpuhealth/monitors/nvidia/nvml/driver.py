"""NVML as a whole: starting it, the driver's versions, the list of GPUs, XID events. Runs in the child process only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from ctypes import CDLL, c_void_p, cast
from typing import Any

import msgspec
import pynvml

from gpuhealth.model.missing import UNREAD, Missing, MissingReason, Reading
from gpuhealth.monitors.nvidia.nvml import abi
from gpuhealth.monitors.nvidia.nvml import value as nvml_value
from gpuhealth.monitors.nvidia.nvml.calls import Progress
from gpuhealth.monitors.nvidia.nvml.gpu import Gpu
from gpuhealth.monitors.nvidia.nvml.value import missing, pci_address, unexpected, within
from gpuhealth.monitors.nvidia.readings import GpuReadings

_gpu_count = within(0, 256, "a number of GPUs")
_cuda_number = within(1000, 100_000, "a version of CUDA")


def load(paths: Sequence[str]) -> tuple[str, Missing | None]:
    """Loads the first of these libraries that can be loaded: its path, or why there is none. Without any, the path is
    empty, and the loader looks for one.

    The binding then gets this library for the name libnvidia-ml.so.1. Nothing else comes from its folder: the libraries
    that it needs are those of this process, and not those of a node with another C library.
    """
    problems = []
    for path in paths:
        try:
            CDLL(path)
        except OSError as error:
            problems.append(str(error))
        else:
            return path, None
    return "", Missing(MissingReason.NOT_INSTALLED, "; ".join(problems)) if problems else None


def start(progress: Progress) -> Missing | None:
    """Initializes NVML; returns the reason if it cannot."""
    progress("nvmlInit_v2")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _required(missing(error, "nvmlInit_v2"), "nvmlInit_v2")
    except Exception as error:  # noqa: BLE001 - a binding or library that does not match: the parent reports it
        return unexpected(error, "nvmlInit_v2")
    return None


def _required(reason: Missing, call: str) -> Missing:
    """The reason for a call without which nothing can be read: "not supported" would mean that nothing is to check."""
    return Missing(MissingReason.ERROR, f"{call}: {reason}") if reason.is_unsupported else reason


def stop(progress: Progress) -> None:
    """Closes NVML, so that the next start enumerates the GPUs again."""
    progress("nvmlShutdown")
    with contextlib.suppress(Exception):  # after any error the next start begins from scratch
        pynvml.nvmlShutdown()


class Driver:
    """NVML after a successful start: versions, and the GPUs with their fixed properties."""

    def __init__(self, progress: Progress, before: Driver | None = None) -> None:
        self._progress = progress
        self._gpus: dict[int, Gpu] = {}
        self._names: dict[int, list[str]] = {}  # uuid and address of each, by index
        self._known_before = before.known() if before else {}
        self.driver_version: Reading[str] = UNREAD
        self.nvml_version: Reading[str] = UNREAD
        self.cuda_version: Reading[str] = UNREAD

    def read_versions(self) -> None:
        """Reads the versions that have not been read yet."""
        if isinstance(self.driver_version, Missing):
            self.driver_version = self._ask("nvmlSystemGetDriverVersion", nvml_value.name)
        if isinstance(self.nvml_version, Missing):
            self.nvml_version = self._ask("nvmlSystemGetNVMLVersion", nvml_value.name)
        if isinstance(self.cuda_version, Missing):
            self.cuda_version = self._ask("nvmlSystemGetCudaDriverVersion_v2", _cuda_version)

    def _ask(self, name: str, convert: Callable[[Any], Any]) -> Any:
        self._progress(name)
        try:
            return convert(getattr(pynvml, name)())
        except pynvml.NVMLError as error:
            return missing(error, name)
        except Exception as error:  # noqa: BLE001 - bindings raise anything: this costs one reading, not the round
            return unexpected(error, name)

    def count(self) -> Reading[int]:
        """Number of GPUs that NVML enumerates."""
        count: Reading[int] = self._ask("nvmlDeviceGetCount", _gpu_count)
        return _required(count, "nvmlDeviceGetCount") if isinstance(count, Missing) else count

    def read(self, index: int, count: int) -> GpuReadings:
        """Everything about one of `count` GPUs."""
        gpu = self._gpus.get(index)
        if gpu is None:
            # A GPU that is already lost when NVML starts cannot be identified: while their number is unchanged, it is
            # the one that had this index before.
            known = self._known_before.get(index) if len(self._known_before) == count else None
            gpu = self._gpus[index] = Gpu(index, self._progress, known)
        readings = gpu.read(self._owners(index))
        if readings.error and readings.error.reason is MissingReason.DRIVER_ERROR:
            readings = self._without_blame(readings, count)
        self._names[index] = [name for name in (readings.uuid, readings.pci) if isinstance(name, str)]
        return readings

    def _without_blame(self, readings: GpuReadings, count: int) -> GpuReadings:
        """The readings of a GPU that cannot be opened; if GPUs have left since they were counted, it has no fault."""
        now = self.count()
        if isinstance(now, Missing) or now == count:
            return readings
        error = Missing(MissingReason.ERROR, f"NVML counted {count} GPUs and now {now}: {readings.error}")
        return msgspec.structs.replace(readings, error=error)

    def _owners(self, index: int) -> dict[str, str]:
        """The uuids and addresses of the GPUs other than this one, each with its owner."""
        return {
            name: f"that of GPU {other}" for other, names in self._names.items() if other != index for name in names
        }

    def ping(self) -> None:
        """Makes one call that the library cannot answer from its own cache."""
        with contextlib.suppress(Exception):  # any answer is a sign of life
            self._progress("nvmlDeviceGetPowerUsage on GPU 0")
            pynvml.nvmlDeviceGetPowerUsage(pynvml.nvmlDeviceGetHandleByIndex(0))

    def calls_of(self, index: int) -> set[str]:
        """The functions that were called about a GPU in its last round."""
        return self._gpus[index].calls.called

    def known(self) -> dict[int, dict[tuple[Any, ...], Any]]:
        """Fixed properties of each GPU, by index."""
        return {index: gpu.known for index, gpu in self._gpus.items()}


def _cuda_version(number: Any) -> str:
    return f"{_cuda_number(number) // 1000}.{number % 1000 // 10}"


def listen(seen: Callable[[int, str, str, float], None]) -> XidEvents | Missing:
    """Waits for XID events from now on; returns why NVML reports none if it does not."""
    try:
        return XidEvents(seen)
    except pynvml.NVMLError as error:
        return Missing(MissingReason.ERROR, f"XID events: {missing(error, 'nvmlDeviceRegisterEvents')}")
    except Exception as error:  # noqa: BLE001 - as for every other call: XID events are missing, the readings are not
        return unexpected(error, "XID events")


class XidEvents:
    """Waits for XID events in a thread: for nodes whose kernel log cannot be read."""

    _WAIT_MILLISECONDS = 500

    def __init__(self, seen: Callable[[int, str, str, float], None]) -> None:
        self._seen = seen
        self._stopping = threading.Event()
        self._set = pynvml.nvmlEventSetCreate()
        self._gpus: dict[int | None, tuple[str, str]] = {}  # handle -> PCI address, uuid; a lost GPU reports neither
        with contextlib.ExitStack() as undo:
            undo.callback(self._free)
            for index in range(_gpu_count(pynvml.nvmlDeviceGetCount())):
                # A GPU that is lost, too old or returns garbage delivers none; the others do.
                with contextlib.suppress(Exception):
                    self._register(pynvml.nvmlDeviceGetHandleByIndex(index))
            if not self._gpus:
                raise pynvml.NVMLError(abi.NOT_SUPPORTED)
            undo.pop_all()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _register(self, handle: Any) -> None:
        pci = pci_address(pynvml.nvmlDeviceGetPciInfo(handle))
        uuid = nvml_value.name(pynvml.nvmlDeviceGetUUID(handle))
        pynvml.nvmlDeviceRegisterEvents(handle, abi.XID_EVENT, self._set)
        self._gpus[cast(handle, c_void_p).value] = (pci, uuid)

    def _free(self) -> None:
        with contextlib.suppress(Exception):  # nothing depends on it
            pynvml.nvmlEventSetFree(self._set)

    def _wait(self) -> None:
        while not self._stopping.is_set():
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, self._WAIT_MILLISECONDS)
                xid, device = nvml_value.xid(event.eventData), cast(event.device, c_void_p).value
            except Exception as error:  # noqa: BLE001 - one odd event must not end the thread that reads all of them
                if isinstance(error, pynvml.NVMLError) and error.value == abi.TIMEOUT:
                    continue
                # After an XID 79 the wait fails immediately every time: avoid spinning.
                self._stopping.wait(self._WAIT_MILLISECONDS / 1000)
                continue
            pci, uuid = self._gpus.get(device, ("", ""))
            self._seen(xid, pci, uuid, time.time())

    def stop(self) -> None:
        """Ends the thread before NVML is shut down, which would crash during a waiting call."""
        self._stopping.set()
        self._thread.join()
        self._free()
