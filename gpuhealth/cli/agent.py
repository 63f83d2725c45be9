"""`gpuhealth agent`: the process that watches over this node."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from gpuhealth.cli import options
from gpuhealth.cli.output import CommandError

T = TypeVar("T")


def command(config: options.Config = None) -> None:
    """Watch over this node all the time."""
    named = os.environ.get("GPUHEALTH_CONFIG")
    path = config or (Path(named) if named else None)
    settings = options.load_settings(path)
    log_json(settings.log_level)
    from gpuhealth.agent import Agent
    from gpuhealth.probes.stale_library import RestartRequiredError
    from gpuhealth.web.node import serve

    try:
        run(Agent(settings, path, services=(serve,)).run())
    except RestartRequiredError as reason:
        raise CommandError(str(reason)) from None


def run(process: Coroutine[Any, Any, T]) -> T:
    """Runs a process to its end, and returns what it does; that it cannot serve is told in one sentence."""
    import asyncio

    from gpuhealth.web.server import ServingError

    try:
        return asyncio.run(process)
    except BaseExceptionGroup as group:
        error: BaseException | None = group.subgroup(ServingError)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            raise
        raise CommandError(str(error)) from None


def log_json(level: str) -> None:
    """Logs one JSON object a line on standard error, those of libraries too."""
    import logging
    import sys

    # structlog loads rich, if there is one, for tracebacks in colour: 4 MiB that a log in JSON never shows.
    hidden = sys.modules.get("rich")
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes its import fail
    import structlog

    sys.modules.pop("rich")
    if hidden:
        sys.modules["rich"] = hidden

    common: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*common, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *common],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)
