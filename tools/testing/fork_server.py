"""A server that starts gpuhealth by forking, with its modules already imported: `python -m testing.fork_server FD`.

FD is a socket of the kind SOCK_SEQPACKET. Each message on it starts one command: JSON with its arguments, environment,
folder, and code to run before it; and four descriptors: its standard input, output and error, and a pipe to which
process id and exit code are written, one a line. The server ends with the other end of the socket.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import warnings
from typing import Any

import gpuhealth.agent
import gpuhealth.cli.main
import gpuhealth.controller
import gpuhealth.monitors

_MESSAGE_BYTES = 1 << 20


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Starts what is asked for. Returns None at the end, and in a new process the message that asks for it."""
    pipes: dict[int, int] = {}  # the pipe of each running process
    request, descriptors = b"", list[int]()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only a signal that is handled wakes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the other end of the socket
    with selectors.DefaultSelector() as selector:
        for source in (control.fileno(), woken):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, 4096)
                _reap(pipes)
            if control.fileno() in ready:
                request, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 4)
                if not request:
                    return None
                pid = os.fork()
                if not pid:
                    break
                os.write(descriptors[3], f"{pid}\n".encode())
                pipes[pid] = descriptors[3]
                for descriptor in descriptors[:3]:
                    os.close(descriptor)
    return _prepared(control, request, descriptors)


def _prepared(control: socket.socket, request: bytes, descriptors: list[int]) -> dict[str, Any]:
    """In a new process: gives up what belongs to the server, and takes over the standard streams."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    control.detach()
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    os.closerange(3, 1 << 20)
    message: dict[str, Any] = json.loads(request)
    return message


def _reap(pipes: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                os.write(pipes[pid], f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(pipes.pop(pid))


def _become(message: dict[str, Any]) -> None:
    """Takes over the arguments, environment and folder of the command."""
    sys.argv = message["arguments"]
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["folder"])
    if os.environ.get("PYTHONWARNINGS") == "error":
        warnings.simplefilter("error")
    exec(message["code"], {})  # of a test


def main() -> int:
    """Runs the server; in each new process, runs the command."""
    for package in (gpuhealth.agent, gpuhealth.cli, gpuhealth.controller, gpuhealth.monitors):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    gc.freeze()  # the collector of a new process leaves these pages shared
    message = serve(socket.socket(fileno=int(sys.argv[1])))
    if message is None:
        return 0
    _become(message)
    return gpuhealth.cli.main.run()


if __name__ == "__main__":
    sys.exit(main())
