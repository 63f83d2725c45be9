"""The second try of a run in CI: a test that passes only then is printed, and more than three of them fail the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import second_try

FLAKY = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({flaky}))
def test_flaky(number):
    tried = Path(f"tried-{{number}}")
    before = tried.exists()
    tried.touch()
    assert before

@pytest.mark.parametrize("number", range({broken}))
def test_broken(number):
    assert False

def test_sound():
    with Path("sound").open("a") as runs:
        runs.write("run ")
"""
PYTEST = (sys.executable, "-m", "pytest", "-q", "--rootdir=.")


def run(folder: Path, *command: str) -> tuple[int, str]:
    """Exit code and output of a run in a folder."""
    done = subprocess.run(
        [sys.executable, second_try.__file__, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def listed(output: str, heading: str) -> list[str]:
    """The tests that are printed under a heading, without their file."""
    _, _, rest = output.partition(f"{heading}: ")
    return [line.rpartition("::")[2] for line in rest.split("\n\n")[0].splitlines()[1:]]


@pytest.mark.parametrize(("flaky", "broken", "code"), [(0, 0, 0), (3, 0, 0), (4, 0, 1), (1, 1, 1)])
def test_flaky_tests_are_printed_and_counted(tmp_path: Path, flaky: int, broken: int, code: int) -> None:
    """Up to three pass; those that fail again fail the run; what passed at once is not run again."""
    (tmp_path / "test_it.py").write_text(FLAKY.format(flaky=flaky, broken=broken))
    status, output = run(tmp_path, *PYTEST)
    assert status == code, output
    flakes = [f"test_flaky[{number}]" for number in range(flaky)]
    assert listed(output, "Passed only at the second try") == flakes
    assert listed(output, "Failed at the first try") == flakes + [f"test_broken[{number}]" for number in range(broken)]
    assert (tmp_path / "sound").read_text() == "run "


def test_what_is_no_failure_of_a_test_is_not_tried_again(tmp_path: Path) -> None:
    """An error of pytest itself, or of a command before it, ends the run with its code, whatever failed earlier."""
    (tmp_path / "test_it.py").write_text(FLAKY.format(flaky=1, broken=0))
    subprocess.run(PYTEST, cwd=tmp_path, capture_output=True, check=False)
    assert run(tmp_path, "false") == (1, "")
    (tmp_path / "test_it.py").write_text("import missing_module")
    status, output = run(tmp_path, *PYTEST)
    assert (status, "second try" in output) == (2, False)
