"""`gpuhealth preflight`: the process that tests a new node before pods are scheduled on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhealth.cli import options
from gpuhealth.cli.logs import log_json
from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from gpuhealth.monitors.settings import Settings


def command(config: options.Config = None) -> None:
    """Test a new node, and remove its preflight taint.

    The taint is removed only when all checks and tests have passed.
    """
    import asyncio
    import os

    if config is not None:
        os.environ["GPUHEALTH_CONFIG"] = str(config)  # for the commands that the preflight runs
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

    cluster = settings.kubernetes
    async with Client.from_kubeconfig(cluster.kubeconfig, cluster.context, user_agent="gpuhealth-preflight") as client:
        await Preflight(settings, client).run()
