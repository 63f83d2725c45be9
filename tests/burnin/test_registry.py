"""One list of burn-in tests: what is registered can be run, planned and judged."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from gpuhealth.burnin.registry import LEVELS, TESTS
from gpuhealth.cli.burnin import Level
from gpuhealth.monitors.burnin_results.checks import CODES
from gpuhealth.runtime.settings import Burnin


def test_every_test_has_a_finding_code_and_every_code_a_test() -> None:
    """A test without a code would run and never be judged; a code without a test could never clear."""
    assert {f"burnin.{name}" for name in TESTS} == {code.name for code in CODES}


@pytest.mark.torch
@pytest.mark.parametrize("name", TESTS)
def test_a_registered_test_can_be_run_and_planned(name: str) -> None:
    """Its module has the function that workers call, and at least the longest level gives it time."""
    assert callable(importlib.import_module(f"gpuhealth.burnin.{name}").run)
    seconds = TESTS[name].seconds
    assert set(seconds) <= set(LEVELS)
    assert all(value > 0 for value in seconds.values())
    assert "long" in seconds
    assert TESTS[name].meaning


@pytest.mark.torch
@pytest.mark.parametrize("name", TESTS)
def test_tests_do_not_import_each_other(name: str) -> None:
    """What several tests need is in a module of its own, so that each test can be read, changed and removed alone."""
    source = Path(importlib.import_module(f"gpuhealth.burnin.{name}").__file__ or "").read_text()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    modules = {node.module for node in imports}
    modules |= {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assert not modules & {f"gpuhealth.burnin.{other}" for other in TESTS}


def test_levels_have_the_same_names_everywhere() -> None:
    """The registry, the settings and the options of the command have the same levels."""
    assert LEVELS == tuple(Level) == get_args(Burnin.model_fields["level"].annotation)


def test_the_registry_does_not_load_torch() -> None:
    """The parent of the workers reads the registry; it must not load torch."""
    code = "import sys, gpuhealth.burnin.run, gpuhealth.burnin.levels; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
