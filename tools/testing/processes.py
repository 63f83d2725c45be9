"""Processes of the command `gpuhealth`: started by exec, or by a fork of a process that has imported its modules.

A start by fork costs a fifth of the CPU. After preload(), which only the tests call, it is used unless the environment
has variables of its own that the interpreter or the C library reads at its start.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

__all__ = ["COMMAND", "Process", "preload", "run", "start"]

COMMAND = Path(sys.executable).parent / "gpuhealth"
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_PRELOAD", "MALLOC_", "GLIBC_", "SSL_CERT")
_ACTIONS = {"", "error"}
"""Values of PYTHONWARNINGS that can be set later."""


class Process(Protocol):
    """What subprocess.Popen and a forked process have in common."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """The exit code once it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; the exit code. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Sends a signal, unless it has ended."""

    def kill(self) -> None:
        """Sends SIGKILL, unless it has ended."""


class _Forked:
    """A process that the fork server has started, which reports its id and its end through a pipe."""

    def __init__(self, arguments: Sequence[str], pipe: int) -> None:
        self._arguments = arguments
        self._pipe = os.fdopen(pipe, "rb", buffering=0)
        self.pid = int(self._line())
        self.returncode: int | None = None

    def _line(self) -> bytes:
        line = self._pipe.readline()
        if not line:
            raise RuntimeError("the fork server has ended")
        return line

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout or 0.0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._pipe], [], [], timeout)[0]:
            self.returncode = int(self._line())
            self._pipe.close()
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _ForkServer:
    """The fork server of this process."""

    def __init__(self) -> None:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.environment = dict(os.environ)
        tools = str(Path(__file__).parents[1])
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "testing.fork_server", str(other.fileno())],
                env={**self.environment, "PYTHONPATH": tools},
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int], code: str
    ) -> _Forked:
        message = {"arguments": arguments, "environment": dict(environment), "folder": str(Path.cwd()), "code": code}
        reading, writing = os.pipe()
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], [*streams, writing])
        finally:
            os.close(writing)
        return _Forked(arguments, reading)

    def close(self) -> None:
        self._control.close()
        self._process.wait()


_server: _ForkServer | None = None
_preloaded = False


def preload() -> None:
    """From now on, start() and run() fork where they can. The fork server is started with the first process."""
    global _preloaded
    _preloaded = True


def start(
    arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes], errors: IO[bytes], code: str = ""
) -> Process:
    """Starts `gpuhealth ARGUMENTS` without standard input; before it, the process runs the code."""
    with Path(os.devnull).open("rb") as nothing:
        return _start(arguments, environment, [nothing.fileno(), output.fileno(), errors.fileno()], code)


def run(
    arguments: Sequence[str], environment: Mapping[str, str], text: str = "", seconds: float = 300.0, code: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs `gpuhealth ARGUMENTS` with a text on its standard input, until it ends; raises subprocess.TimeoutExpired.

    Before the command, the process runs the code.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        given.write(text.encode())
        given.seek(0)
        process = _start(arguments, environment, [each.fileno() for each in (given, output, errors)], code)
        try:
            process.wait(seconds)
        except BaseException:
            process.kill()
            process.wait()
            raise
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read().decode())
        return subprocess.CompletedProcess(arguments, process.wait(), *texts)


def _start(arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int], code: str) -> Process:
    command = [str(COMMAND), *arguments]
    if _preloaded and _is_like(environment):
        return _fork_server().start(command, environment, streams, code)
    given, output, errors = streams
    if code:
        command[:1] = [sys.executable, "-c", f"{code}\nimport sys, gpuhealth.cli.main as main\nsys.exit(main.run())"]
    return subprocess.Popen(command, env=dict(environment), stdin=given, stdout=output, stderr=errors)


def _is_like(environment: Mapping[str, str]) -> bool:
    """Whether the environment is one in which a fork of the server is like a new process."""
    if environment.get("PYTHONWARNINGS", "") not in _ACTIONS:
        return False
    return _read_at_start(environment) == _read_at_start(_server.environment if _server else os.environ)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_AT_START) and name != "PYTHONWARNINGS"
    }


def _fork_server() -> _ForkServer:
    global _server
    if _server is None:
        _server = _ForkServer()
    return _server
