"""Commands that the tests start by forking a process with their modules behave as those of a new interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from testing import processes
from testing.simnode import SimulatedNode


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["explain", "xid.79"], ""),
        (["explain", "nothing"], ""),
        (["classify", "--json"], "[    1.0] NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.\n"),
        (["--help"], ""),
        (["--unknown"], ""),
    ],
)
def test_a_forked_command_is_like_an_executed_one(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code, standard output and standard error are the same."""
    forked = processes.run(arguments, os.environ, text)
    monkeypatch.setattr(processes, "_preloaded", False)
    executed = processes.run(arguments, os.environ, text)
    assert (forked.returncode, forked.stdout, forked.stderr) == (executed.returncode, executed.stdout, executed.stderr)
    assert forked.stdout or forked.stderr


def test_a_signal_is_the_exit_code() -> None:
    """A process that runs has no exit code; when a signal has ended it, that is its exit code, as in subprocess."""
    with tempfile.TemporaryFile() as log:
        process = processes.start(["classify", "--follow", "/dev/kmsg"], os.environ, log, log)
        assert not isinstance(process, subprocess.Popen)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert process.poll() is None
        process.kill()
        assert (process.wait(60), process.poll()) == (-signal.SIGKILL, -signal.SIGKILL)
        process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("variable", ["LC_ALL", "PYTHONUTF8", "PYTHONWARNINGS"])
def test_what_is_read_at_the_start_needs_a_new_interpreter(variable: str) -> None:
    """With a variable that the interpreter reads at its start, the command is executed."""
    with tempfile.TemporaryFile() as log:
        process = processes.start(["--version"], {**os.environ, variable: "ignore"}, log, log)
        assert isinstance(process, subprocess.Popen)
        process.wait(60)


def test_an_agent_of_a_new_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's whole life, as its container starts it."""
    monkeypatch.setattr(processes, "_preloaded", False)
    with SimulatedNode(tmp_path, gpus=2) as node:
        assert isinstance(node._process, subprocess.Popen)
        assert node.metric('gpuhealth_verdict{verdict="healthy"}') == 1
        assert node.stop() == 0
