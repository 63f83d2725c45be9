"""Markers of tests by what they use: `fast`, `process`, `cluster`, `torch`, `e2e`.

What a test uses is read from code: its own, that of its fixtures, and that of the support packages which these use.
Methods that are called on objects are not followed, so a test may start a process that is not seen here.
`testing.fast` finds that: a test that is marked `fast` and starts a process fails. It is marked `process` by hand.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator

import pytest

_SUPPORT = frozenset({"tests", "testing", "kube", "nvmlsim", "benchmarks", "demonstration"})
"""Packages whose code is followed. That of gpuhealth is not: a test uses little of what is reachable there."""

_PROCESS = frozenset(
    {
        "concurrent.futures.process.ProcessPoolExecutor",
        "create_subprocess_exec",
        "gpuhealth.monitors.nvidia.nvml.process.NvmlProbe",
        "multiprocessing",
        "subprocess",
    }
)
_OWN_IMPORTS = frozenset({"multiprocessing", "subprocess", "torch"})
"""What a module that is not followed imports, all its functions and classes are taken to use."""

_CLUSTER = frozenset({"kube.control_plane.ControlPlane", "kube.policy_plugin.PolicyPlugin"})
_BY_HAND = frozenset({"process", "torch"})
"""Markers of tests that use what their code does not show."""
_E2E = ("tests/e2e/", "tests/test_demo.py")


def markers(item: pytest.Function) -> set[str]:
    """The names of the markers that apply to a test."""
    used = _used_by(item)
    found = set()
    if used & _CLUSTER:
        found.add("cluster")
    if "torch" in used:
        found.add("torch")
    if item.nodeid.startswith(_E2E):
        found.add("e2e")
    found |= {mark.name for mark in item.iter_markers()} & _BY_HAND
    return found or ({"process"} if used & _PROCESS else {"fast"})


def _used_by(item: pytest.Function) -> set[str]:
    """Everything that the code of a test reaches: qualified names, and plain ones of what it calls on objects."""
    fixtures = item._fixtureinfo.name2fixturedefs  # noqa: SLF001 - pytest has no public name for it
    todo = [_written(item.function)]
    todo += [_written(fixture.func) for name in item.fixturenames for fixture in fixtures.get(name, ())]
    names: set[str] = set()
    seen: set[object] = set()
    while todo:
        thing = todo.pop()
        if thing not in seen:
            seen.add(thing)
            used, further = _uses(thing)
            names |= used
            todo += further
    return names


def _written(function: object) -> object:
    """The function as it stands in its file, below the decorators of hypothesis and functools."""
    function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


@functools.cache
def _uses(thing: object) -> tuple[frozenset[str], tuple[object, ...]]:
    """The names in a function or in a class's methods, and the functions and classes of support code among them."""
    names: set[str] = set()
    further: list[object] = []
    for function in _functions(thing):
        words = set(_words(function.__code__))
        names |= words
        values = [function.__globals__[word] for word in words & function.__globals__.keys()]
        for module in [value for value in values if isinstance(value, types.ModuleType)]:
            names.add(module.__name__)
            values += [vars(module)[word] for word in words & vars(module).keys()]
        for value in filter(_is_code, values):
            names.add(f"{value.__module__}.{value.__qualname__}")
            if value.__module__.partition(".")[0] in _SUPPORT:
                further.append(_written(value))
            else:
                names |= _OWN_IMPORTS & vars(sys.modules[value.__module__]).keys()
    return frozenset(names), tuple(further)


def _is_code(value: object) -> bool:
    return isinstance(value, type | types.FunctionType) and value.__module__ in sys.modules


def _functions(thing: object) -> Iterator[types.FunctionType]:
    """A function; or all of a class and of the classes that it is made from."""
    if isinstance(thing, types.FunctionType):
        yield thing
    for base in thing.__mro__ if isinstance(thing, type) else ():
        for value in vars(base).values():
            method = _written(getattr(value, "fget", value))
            if isinstance(method, types.FunctionType):
                yield method


def _words(code: types.CodeType) -> Iterator[str]:
    """Names of globals and attributes in a function, and in those that are written within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _words(constant)
