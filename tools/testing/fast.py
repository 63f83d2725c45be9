"""Hooks of pytest: each test gets its markers, and with --fast those run that need no process, no cluster, no PyTorch.

With several workers of pytest-xdist, the tests are arranged for them (`testing.order`).
A test that is marked `fast` fails if it starts a process or imports PyTorch.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from testing.markers import markers
from testing.order import ordered

__all__ = ["pytest_addoption", "pytest_collection_finish", "pytest_collection_modifyitems", "pytest_configure"]

_EXAMPLES = 20
_EVENTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec"})
_MODULES = frozenset({"torch", "multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver"})
"""multiprocessing starts its processes without an audit event, unless it forks."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option --fast."""
    parser.addoption("--fast", action="store_true", help="only tests that start no process and import no PyTorch")


def pytest_configure(config: pytest.Config) -> None:
    """Installs the guard; with --fast, reduces the examples of hypothesis."""
    fast = config.getoption("fast")
    if fast:
        settings.register_profile("fast", settings.default, max_examples=_EXAMPLES)
        settings.load_profile("fast")
    starts_workers = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")
    if not starts_workers:
        config.pluginmanager.register(ProcessGuard(skips_files=fast))


@pytest.hookimpl(tryfirst=True)  # before the selection by -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Adds the markers of each test, selects with --fast those marked `fast`, and arranges them for several workers."""
    for item in items:
        if isinstance(item, pytest.Function):
            for name in sorted(markers(item)):
                item.add_marker(name)
    if config.getoption("fast"):
        config.hook.pytest_deselected(items=[item for item in items if not item.get_closest_marker("fast")])
        items[:] = [item for item in items if item.get_closest_marker("fast")]
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        items[:] = ordered(items, workers)


def pytest_collection_finish() -> None:
    """Keeps the garbage collector off what all tests share: with it, each full collection takes a third of a second."""
    gc.freeze()


class ProcessStartedError(RuntimeError):
    """A test marked `fast` has started a process, or imported PyTorch."""


class ProcessGuard:
    """A plugin of pytest that forbids fast tests to start processes and to import PyTorch.

    The call raises, and the test fails even if that is caught. With `skips_files`, a test file whose import does such a
    thing is skipped.
    """

    def __init__(self, *, skips_files: bool) -> None:
        self._in_files = _skip if skips_files else _allow
        self._refuse: Callable[[str], None] = _allow
        self._refused: list[str] = []
        sys.meta_path.insert(0, self)
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            self._refuse(f"{event} {arguments[1] if len(arguments) > 1 else ''}")  # not the environment

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """Refuses modules that are not for fast tests; finds none."""
        if name in _MODULES:
            self._refuse(f"import {name}")

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        """Skips a test file whose import does what is forbidden."""
        return (yield from self._with(self._in_files))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Raises in a fast test that does what is forbidden."""
        return (yield from self._with(self._fail if item.get_closest_marker("fast") else _allow))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        """Fails a test whose fixtures have done what is forbidden."""
        return (yield from self._checked())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        """Fails a test that has done what is forbidden."""
        return (yield from self._checked())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        """Allows everything: fixtures of other tests in the file may end with this one."""
        return (yield from self._with(_allow))

    def _with(self, refuse: Callable[[str], None]) -> Iterator[None]:
        self._refuse = refuse
        try:
            return (yield)
        finally:
            self._refuse = _allow

    def _fail(self, what: str) -> None:
        self._refused.append(what)
        raise ProcessStartedError(what)

    def _checked(self) -> Iterator[None]:
        try:
            return (yield)
        finally:
            refused, self._refused = self._refused, []
            if refused:
                pytest.fail(f"a test marked as fast has done what is forbidden to it: {'; '.join(refused)}")


def _allow(_: str) -> None:
    """Does nothing: outside of tests, pytest and its plugins may start processes."""


def _skip(what: str) -> None:
    raise pytest.skip.Exception(f"not with --fast: {what}", allow_module_level=True)
