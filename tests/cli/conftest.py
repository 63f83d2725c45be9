"""Nodes to run the command on, in processes of their own or in this one."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import structlog
from testing.command import Node, Run, Said

from gpuhealth.cli import logs, main, streams


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without GPUs and without a driver."""
    return Node(tmp_path)


@pytest.fixture
def gpu_node(tmp_path: Path) -> Node:
    """A healthy node with eight GPUs."""
    return Node(tmp_path).with_gpus()


@pytest.fixture
def run(node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, like `Node.run`, for tests of output and exit code alone.

    What belongs to a process of its own is not tested: its streams, signals, imports and OOM score.
    """

    def in_process(*arguments: str | Path, stdin: str = "", **more: str) -> Said:
        result, log_config = io.BytesIO(), structlog.get_config()
        with monkeypatch.context() as patch:
            environment = node.env() | more
            for name in os.environ.keys() - environment.keys():
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            patch.setattr(streams.standard, "_results", result)
            logs.log_text()
            try:
                code, problem, _ = main.execute([str(argument) for argument in arguments])
            finally:
                structlog.configure(**log_config)
        printed = capsys.readouterr()
        return Said(
            code,
            result.getvalue().decode() or printed.out,
            printed.err + (f"gpuhealth: {problem}\n" if problem else ""),
        )

    return in_process
