"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from gpuhealth.monitors.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings; else the file that GPUHEALTH_CONFIG names."),
]


def load_settings(path: Path | None) -> Settings:
    """The settings in force; raises CommandError."""
    from gpuhealth.monitors.settings import load
    from gpuhealth.runtime.settings_file import ConfigError

    try:
        return load(path)
    except ConfigError as error:
        raise CommandError(str(error)) from None


def duration(text: str, option: str) -> float:
    """Seconds of `90`, `10m`, `24h`; raises CommandError."""
    from gpuhealth.runtime.settings import LONGEST_SECONDS, seconds

    try:
        value = seconds(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from None
    if not isinstance(value, float) or not 0 <= value <= LONGEST_SECONDS:
        raise CommandError(f"{option}: {text!r} is no duration up to ten years (write 30s, 10m, 24h or 14d)")
    return value
