"""`gpuhealth agent`: the process that monitors this node."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from gpuhealth.cli import options
from gpuhealth.cli.logs import log_json
from gpuhealth.cli.output import CommandError

T = TypeVar("T")
_LOCK_SECONDS = 5.0  # for an agent that is ending


def command(config: options.Config = None) -> None:
    """Run the node agent.

    It monitors this node's GPUs, and marks the Node in the cluster.
    """
    environment = os.environ.get("GPUHEALTH_CONFIG")
    path = config or (Path(environment) if environment else None)
    settings = options.load_settings(path)
    log_json(settings.log_level)
    _be_the_only_agent(settings.journal.path.parent)
    from gpuhealth.agent.agent import Agent
    from gpuhealth.agent.http_app import serve
    from gpuhealth.monitors.monitor import RestartRequiredError

    try:
        run(Agent(settings, path, services=(serve,)).run())
    except RestartRequiredError as reason:
        raise CommandError(str(reason)) from None


def _be_the_only_agent(folder: Path) -> None:
    """Lock the folder of the journal until this process ends. Raises CommandError where another agent has it."""
    import socket

    import structlog

    from gpuhealth.runtime.single_instance import InstanceLock

    name = f"{socket.gethostname()}, pid {os.getpid()}"
    try:
        is_only = InstanceLock(folder).take(name, _LOCK_SECONDS)
    except OSError as error:  # as for the journal: the agent works without
        structlog.get_logger().warning("no lock against a second agent", error=str(error))
        return
    if not is_only:
        raise CommandError(f"another agent runs on this node: it has locked {folder}; remove one of the installations")


def run(process: Coroutine[Any, Any, T]) -> T:
    """Run a service to its end and return its result. Raises CommandError where its HTTP port or TLS cannot be used."""
    import asyncio

    from gpuhealth.runtime.http_server import ServingError

    try:
        return asyncio.run(process)
    except BaseExceptionGroup as group:
        error: BaseException | None = group.subgroup(ServingError)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            raise
        raise CommandError(str(error)) from None
