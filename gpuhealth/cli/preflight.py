"""`gpuhealth preflight`: the process that tests a new node before work may come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhealth.cli import options
from gpuhealth.cli.logs import log_json
from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from gpuhealth.monitors.settings import Settings


def command(config: options.Config = None) -> None:
    """Test this node while it has the preflight taint, and take the taint off when all passes."""
    import asyncio
    import os

    if config is not None:
        os.environ["GPUHEALTH_CONFIG"] = str(config)  # for the commands that it runs
    settings = options.load_settings(None)
    log_json(settings.log_level)
    from gpuhealth.kube.errors import NoConfigurationError
    from gpuhealth.monitors.monitor import RestartRequiredError

    try:
        asyncio.run(_run(settings))
    except (NoConfigurationError, RestartRequiredError) as error:
        raise CommandError(str(error)) from None


async def _run(settings: Settings) -> None:
    from gpuhealth.agent.preflight import Preflight
    from gpuhealth.kube.client import Client

    where = settings.kubernetes
    async with Client.from_kubeconfig(where.kubeconfig, where.context) as client:
        await Preflight(settings, client).run()
