"""`gpuhealth controller`: the process that sees the whole fleet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpuhealth.cli import options
from gpuhealth.cli.agent import run
from gpuhealth.cli.logs import log_json
from gpuhealth.cli.output import UNKNOWN, CommandError

if TYPE_CHECKING:
    from gpuhealth.monitors.settings import Settings


def command(config: options.Config = None) -> None:
    """Run the fleet controller.

    It drains nodes, schedules burn-ins, compares nodes, and keeps the status of budgets.
    """
    from gpuhealth.monitors.settings import Settings as AllSettings
    from gpuhealth.runtime.settings_file import SettingsFile

    environment = os.environ.get("GPUHEALTH_CONFIG")
    path = config or (Path(environment) if environment else None)
    file = SettingsFile(AllSettings, path)  # opened before it is read, so that a change meanwhile is noticed
    initial = options.load_settings(path)
    log_json(initial.log_level)
    from gpuhealth.controller.controller import Controller
    from gpuhealth.controller.http_app import serve
    from gpuhealth.kube.errors import NoConfigurationError

    try:
        settings: Settings | None = initial
        while settings is not None:
            settings = run(Controller(settings, services=(serve,), file=file).run(_exit_now))
    except NoConfigurationError as error:
        raise CommandError(str(error)) from None


def _exit_now() -> None:
    """Exit without waiting for anything that still runs; the kubelet restarts the process."""
    os._exit(UNKNOWN)
