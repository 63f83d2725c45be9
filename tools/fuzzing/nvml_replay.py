"""The answers of simulated drivers, recorded once and given again in place of the library's, with lies among them.

A call of the real library through ctypes takes ten times as long. The functions of `pynvml` are replaced by ones that
look an answer up, so that everything above them is the code of the NVML process.
"""

from __future__ import annotations

import copy
import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pynvml
from nvmlsim.simulator import Simulator

from gpuhealth.model.missing import Missing
from gpuhealth.monitors.nvidia.nvml import driver as nvml_driver
from gpuhealth.monitors.nvidia.nvml import lists
from gpuhealth.monitors.nvidia.readings import GpuReadings


class Lie(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One odd answer: of a call, for one GPU or all, from its nth time on."""

    call: str
    gpu: int = -1  # index; -1: of any GPU, or of calls about none
    place: int = -1  # item or member of the answer that is replaced; -1: the whole answer
    kind: str  # code, value, raise; other: the answer of the next GPU
    value: Any = None  # return code; name of the value in VALUES, or a number; name of the exception
    part: str = ""  # member of a structure


class _Strange:
    """An object of no type that NVML has."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


VALUES: dict[str, Any] = {
    "none": None, "true": True, "false": False, "zero": 0, "one": 1, "minus": -1, "half": 0.5, "nan": float("nan"),
    "inf": float("inf"),
    "empty": "", "text": "text", "bytes": b"bytes", "odd_bytes": b"\xff\xfe\x00", "long": "x" * 5000,
    "escape": "\x1b[2J", "newline": "a\nb",
    "surrogate": "\ud800", "list": [], "nested": [[[]]], "tuple": (), "triple": (1, 2, 3), "dict": {},
    "object": _Strange(),
    "huge": 2**200, "max64": 2**64 - 1, "over64": 2**64, "min64": -(2**63), "under64": -(2**63) - 1, "complex": 1j,
    "type": int,
    "many": [1] * 10_000, "bytearray": bytearray(b"x"), "pointer": ctypes.c_void_p(1), "error": ValueError("x"),
}  # fmt: skip
ERRORS: dict[str, Callable[[], Exception]] = {
    "TypeError": lambda: TypeError("an argument has another type"),
    "ValueError": lambda: ValueError("\x1b[31mred\n"),
    "AttributeError": lambda: AttributeError("'NoneType' object has no attribute 'value'"),
    "OSError": lambda: OSError(5, "Input/output error"),
    "ctypes": lambda: ctypes.ArgumentError("argument 1: wrong type"),
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "OverflowError": lambda: OverflowError("int too large"),
    "KeyError": lambda: KeyError("x"),
    "bare": lambda: Exception(),
    "long": lambda: RuntimeError("y" * 10_000),
    "no text": lambda: _NoTextError(),
}


class _NoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Node:
    """One simulated node: its answers by call and arguments, and the readings of its GPUs."""

    def __init__(self, name: str, gpus: int) -> None:
        self.name, self.count = name, gpus
        self.answers: dict[tuple[Any, ...], Any] = {}
        self.outputs: dict[tuple[Any, ...], bytes] = {}  # structures that a call fills in
        self.handles: dict[int, Any] = {}
        self.gpus: tuple[GpuReadings, ...] = ()


_HANDLE = "nvmlDeviceGetHandleByIndex"
_NAMES = [name for name in dir(pynvml) if name.startswith("nvml") and callable(getattr(pynvml, name))]
CALLS: tuple[str, ...] = ()
"""Every call that a round makes; filled in by `recorded`."""


class Replay:
    """Takes the place of the functions of `pynvml`, for one node at a time."""

    def __init__(self, specs: tuple[tuple[str, int], ...]) -> None:
        """Records the answers of a simulated node for each model and number of GPUs."""
        self._real = {name: getattr(pynvml, name) for name in _NAMES}
        self._recording: Node | None = None
        self._inside = False
        self.node = Node("", 0)
        self.lies: dict[str, list[Lie]] = {}
        self.nodes = []
        for name in _NAMES:
            setattr(pynvml, name, self._function(name))
        self._lists = lists.running_processes, lists.retired_pages
        lists.running_processes = self._list("running_processes")
        lists.retired_pages = self._list("retired_pages")
        before = os.environ.get("NVMLSIM_STATE")
        with tempfile.TemporaryDirectory() as folder:
            for number, (model, gpus) in enumerate(specs):
                place = Path(folder) / str(number)
                place.mkdir()
                self.nodes.append(self._record(Simulator(place, model, gpus), model, gpus))
        if before is None:
            os.environ.pop("NVMLSIM_STATE", None)
        else:
            os.environ["NVMLSIM_STATE"] = before

    def _record(self, simulator: Simulator, model: str, gpus: int) -> Node:
        simulator.load()
        node = self._recording = Node(model, gpus)
        problem = nvml_driver.start(lambda _: None)
        assert problem is None, problem
        driver = nvml_driver.Driver(lambda _: None)
        assert driver.count() == gpus
        node.gpus = tuple(driver.read(index, gpus) for index in range(gpus))
        assert not any(isinstance(gpu.uuid, Missing) for gpu in node.gpus)
        nvml_driver.stop(lambda _: None)
        self._recording = None
        return node

    def close(self) -> None:
        """Puts the library's functions back."""
        lists.running_processes, lists.retired_pages = self._lists
        for name, function in self._real.items():
            setattr(pynvml, name, function)

    @contextmanager
    def telling(self, node: Node, lies: list[Lie]) -> Iterator[None]:
        """The node answers, with these lies."""
        self.node, self.lies = node, {}
        for lie in lies:
            self.lies.setdefault(lie.call, []).append(lie)
        yield
        self.lies = {}

    def _function(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._inside:  # a function of pynvml that another one calls
                return self._real[name](*arguments)
            if self._recording is not None:
                return self._recorded(self._recording, name, arguments)
            lies = self.lies.get(name)
            if lies:
                gpu = self._gpu_of(name, arguments)
                for lie in lies:
                    if lie.gpu in (-1, gpu):
                        return self._lied(lie, name, arguments)
            return self._answer(name, arguments)

        call.__name__ = name
        return call

    def _list(self, name: str) -> Callable[..., Any]:
        """In place of a function that reads a list from the library itself: it has the return code of the lies."""
        real = getattr(lists, name)

        def read(*arguments: Any) -> Any:
            global CALLS
            handle = next(argument for argument in arguments if isinstance(argument, _Handle))
            call = arguments[0] if name == "running_processes" else "nvmlDeviceGetRetiredPages"
            key = (call, *(argument if argument is not handle else handle.gpu for argument in arguments))
            if self._recording is not None:
                CALLS = CALLS if call in CALLS else (*CALLS, call)
                node = self._recording
                node.answers[key] = _answered(lambda: real(*_real(node, arguments)))
            for lie in self.lies.get(call, ()):
                if lie.gpu in (-1, handle.gpu) and lie.kind in ("code", "raise"):
                    return self._lied(lie, call, arguments)
            answer = (self._recording or self.node).answers.get(key, pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
            if isinstance(answer, pynvml.NVMLError):
                raise answer
            return answer

        return read

    def _gpu_of(self, name: str, arguments: tuple[Any, ...]) -> int:
        if not arguments:
            return -1
        first = arguments[0]
        if isinstance(first, int):
            return first if name == _HANDLE else -1
        return first.gpu if isinstance(first, _Handle) else -1

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if (
            arguments and name.startswith("nvmlDevice") and name != _HANDLE and not isinstance(arguments[0], _Handle)
        ):  # a handle that is none
            if isinstance(arguments[0], int | None):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
            raise ctypes.ArgumentError("argument 1: wrong type")
        key, outputs = _key(name, arguments)
        node = self.node
        if name == _HANDLE and key in node.answers:
            return _Handle(arguments[0])
        try:
            answer = node.answers[key]
        except (KeyError, TypeError):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED) from None
        if isinstance(answer, pynvml.NVMLError):
            raise answer
        for output in outputs:
            saved = node.outputs.get(key)
            if saved is not None:
                ctypes.memmove(ctypes.addressof(output), saved, min(len(saved), ctypes.sizeof(output)))
        return answer

    def _recorded(self, node: Node, name: str, arguments: tuple[Any, ...]) -> Any:
        global CALLS
        real = _real(node, arguments)
        key, outputs = _key(name, arguments)
        if name not in CALLS:
            CALLS = (*CALLS, name)
        self._inside = True
        try:
            answer = self._real[name](*real)
        except pynvml.NVMLError as error:
            node.answers[key] = error
            raise
        finally:
            self._inside = False
        if name == _HANDLE:
            node.handles[arguments[0]] = answer
            answer = _Handle(arguments[0])
        node.answers[key] = answer
        for output in outputs:
            node.outputs[key] = bytes(output)
        return answer

    def _lied(self, lie: Lie, name: str, arguments: tuple[Any, ...]) -> Any:
        if lie.kind == "raise":
            raise ERRORS[lie.value]()
        if lie.kind == "code":
            raise pynvml.NVMLError(lie.value)
        if lie.kind == "other":
            others = (
                [_Handle((arguments[0].gpu + 1) % self.node.count)]
                if arguments and isinstance(arguments[0], _Handle)
                else []
            )
            return self._answer(name, (*others, *arguments[len(others) :]))
        value = VALUES[lie.value] if isinstance(lie.value, str) else lie.value
        if lie.place < 0 and not lie.part:
            return value
        answer = copy.copy(self._answer(name, arguments))
        if lie.part:
            target = answer if lie.place < 0 else answer[lie.place % max(len(answer), 1)]
            try:
                setattr(target, lie.part, value)
            except (TypeError, ValueError, AttributeError, OverflowError):  # the structure cannot hold it
                return value
            return answer
        changed = list(answer) if isinstance(answer, list | tuple) else [answer]
        if changed:
            changed[lie.place % len(changed)] = value
        return changed


class _Handle:
    """Stands for a GPU's handle."""

    def __init__(self, gpu: int) -> None:
        self.gpu = gpu


def _real(node: Node, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with the library's handles."""
    return tuple(node.handles[argument.gpu] if isinstance(argument, _Handle) else argument for argument in arguments)


def _answered(call: Callable[[], Any]) -> Any:
    """What a call returns, or the NVMLError that it raises."""
    try:
        return call()
    except pynvml.NVMLError as error:
        return error


def _key(name: str, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Any]]:
    """The key of an answer, and the structures that the call fills in."""
    parts: list[Any] = [name]
    outputs = []
    for argument in arguments:
        if isinstance(argument, _Handle):
            parts.append(("gpu", argument.gpu))
        elif isinstance(argument, list):
            parts.append(tuple(argument))
        elif hasattr(argument, "_obj"):  # ctypes.byref
            outputs.append(argument._obj)
            parts.append(type(argument._obj).__name__)
        else:
            parts.append(argument)
    return tuple(parts), outputs
