"""Logging of all commands, to standard error: text for commands run by hand, JSON for services."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from gpuhealth.runtime.text import printable


def _structlog() -> ModuleType:
    """Import structlog without rich, which it loads for tracebacks in colour: that saves 4 MiB and 50 ms."""
    hidden = sys.modules.get("rich")
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        import structlog
    finally:
        sys.modules.pop("rich")
        if hidden:
            sys.modules["rich"] = hidden
    return structlog


def log_text() -> None:
    """Log warnings and errors as text, for a command run by hand."""
    structlog = _structlog()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, _plain],
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,  # a service reconfigures the log once it has read its settings
    )


def _plain(_: object, __: str, event: Any) -> str:
    """`warning: the event (key: value, …)`, followed by values of several lines, such as tracebacks."""
    level, name = event.pop("level"), event.pop("event")
    values = {key: str(value) for key, value in event.items()}
    short = ", ".join(f"{key}: {printable(value)}" for key, value in values.items() if "\n" not in value)
    long = [printable(line) for value in values.values() if "\n" in value for line in value.splitlines()]
    return "\n".join([f"{level}: {printable(str(name))}{f' ({short})' if short else ''}", *long])


def log_json(level: str) -> None:
    """Log one JSON object per line, also for records of libraries, for a service."""
    import logging

    structlog = _structlog()
    common = [
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
