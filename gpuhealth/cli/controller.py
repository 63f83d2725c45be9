"""`gpuhealth controller`: the process that sees the fleet and drains nodes."""

from __future__ import annotations

from gpuhealth.cli import options
from gpuhealth.cli.agent import log_json
from gpuhealth.cli.output import CommandError


def command(config: options.Config = None) -> None:
    """See the whole fleet, and drain the nodes that are out of service."""
    import asyncio

    settings = options.load_settings(config)
    log_json(settings.log_level)
    from gpuhealth.cluster.errors import NoConfigurationError
    from gpuhealth.controller.controller import Controller
    from gpuhealth.web.controller import serve

    try:
        asyncio.run(Controller(settings, services=(serve,)).run())
    except NoConfigurationError as error:
        raise CommandError(str(error)) from None
