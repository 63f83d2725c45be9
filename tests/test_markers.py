"""Markers of tests follow from their code, and a test marked `fast` that starts a process all the same fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
MARKED = """
import asyncio
import functools
import subprocess

import pytest
from hypothesis import given, strategies
from kube import ControlPlane
from testing import burnin_jobs, simnode
from testing.command import Node
from testing.cluster_objects import Pool

from gpuhealth.burnin.worker_process import Worker

@pytest.fixture
def plane():
    return ControlPlane()

@pytest.fixture
def pool(plane):
    return Pool(plane)

def helper():
    subprocess.run(["true"])

class Base:
    def start(self):
        helper()

class Derived(Base):
    pass

def wrapped(function):
    return functools.wraps(function)(lambda: function())

def test_fast(tmp_path, monkeypatch):
    simnode.wait_for("it", lambda: True)

@given(strategies.just(1))
def test_fast_property(_):
    Pool.get

def test_cluster(pool):
    pass

def test_torch():
    burnin_jobs.done(None)

def test_process():
    subprocess.run(["true"])

def test_process_helper():
    [helper() for _ in "ab"]

def test_process_class():
    Derived().start()

def test_process_support(tmp_path):
    Node(tmp_path).with_gpus()

def test_process_worker():
    Worker({})

def test_process_asyncio():
    asyncio.run(asyncio.create_subprocess_exec("true"))

@given(strategies.just(1))
def test_process_property(_):
    helper()

@wrapped
def test_process_wrapped():
    helper()
"""
UNSEEN = """
import asyncio
import importlib
import os

import pytest

def load(name):
    return importlib.import_module(name)

@pytest.fixture
def started():
    load("subprocess").run(["true"])

def test_passes():
    pass

def test_raises():
    load("subprocess").run(["true"])

def test_swallows():
    try:
        load("subprocess").run(["true"])
    except Exception:
        pass

def test_forks():
    os.fork()

def test_spawns():
    os.posix_spawn("/bin/true", ["true"], {})

def test_system():
    os.system("true")

def test_imports_torch():
    load("torch")

def test_other_import():
    load("multiprocessing.popen_spawn_posix")

def test_fixture(started):
    pass

def test_asyncio():
    asyncio.run(getattr(asyncio, "create_subprocess_" + "exec")("true"))
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder in which pytest knows our hooks."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tools"), str(ROOT)]))
    pytester.makeconftest(
        "from testing.fast import *\n"
        "def pytest_collection_finish(session):\n"
        "    for item in session.items:\n"
        "        print('item', item.name, *sorted({mark.name for mark in item.iter_markers()} - {'hypothesis'}))\n"
    )
    return pytester


def test_a_test_is_marked_by_what_it_uses(run: pytest.Pytester) -> None:
    """Fixtures, helpers, base classes and decorated functions are followed; a name says what is expected."""
    run.makepyfile(MARKED)
    lines = run.runpytest_subprocess("--collect-only", "-s").outlines
    marked = {words[1]: words[2:] for words in map(str.split, lines) if words[:1] == ["item"]}
    assert len(marked) == MARKED.count("def test_")
    for name, markers in marked.items():
        expected = name.split("_")[1]
        assert markers == [expected], name


@pytest.mark.parametrize("options", [("--fast",), ()])
def test_a_fast_test_that_starts_a_process_fails(run: pytest.Pytester, options: tuple[str, ...]) -> None:
    """Whatever way it takes, also where it catches what is raised, in a run of all tests too."""
    run.makepyfile(UNSEEN)
    result = run.runpytest_subprocess("--tb=short", *options)
    tests = UNSEEN.count("def test_")
    result.assert_outcomes(passed=1, errors=1, failed=tests - 2)
    for what in ("import torch", "os.fork", "subprocess.Popen ['true']"):
        assert f"what is forbidden to it: {what}" in result.stdout.str()


def test_a_marker_by_hand(run: pytest.Pytester) -> None:
    """A test that is marked by hand is not fast."""
    run.makepyfile("import pytest\n\n@pytest.mark.process\ndef test_it():\n    pass\n")
    run.runpytest_subprocess("--fast").assert_outcomes(deselected=1)


def test_a_file_that_imports_torch_is_skipped(run: pytest.Pytester) -> None:
    """Its tests are not fast, and the import alone takes seconds."""
    run.makepyfile("import torch\n\ndef test_it():\n    pass\n")
    run.runpytest_subprocess("--fast").assert_outcomes(skipped=1)
