"""`gpuhealth controller`: the process that sees the fleet and drains nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpuhealth.cli import options
from gpuhealth.cli.agent import run
from gpuhealth.cli.logs import log_json
from gpuhealth.cli.output import COULD_NOT, CommandError

if TYPE_CHECKING:
    from gpuhealth.monitors.settings import Settings


def command(config: options.Config = None) -> None:
    """See the whole fleet, and drain the nodes that are out of service."""
    from gpuhealth.monitors.settings import Settings as AllSettings
    from gpuhealth.runtime.settings_file import SettingsFile

    named = os.environ.get("GPUHEALTH_CONFIG")
    path = config or (Path(named) if named else None)
    file = SettingsFile(AllSettings, path)  # before it is read: what changes meanwhile is seen
    known = options.load_settings(path)
    log_json(known.log_level)
    from gpuhealth.controller.controller import Controller
    from gpuhealth.controller.http_app import serve
    from gpuhealth.kube.errors import NoConfigurationError

    try:
        settings: Settings | None = known
        while settings is not None:
            settings = run(Controller(settings, services=(serve,), file=file).run(_give_up))
    except NoConfigurationError as error:
        raise CommandError(str(error)) from None


def _give_up() -> None:
    """End the process, whatever still runs in it; the kubelet starts another."""
    os._exit(COULD_NOT)
