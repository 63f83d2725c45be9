"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from gpuhealth.monitors.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file; default: the one named by GPUHEALTH_CONFIG."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def load_settings(path: Path | None) -> Settings:
    """The settings of this file, else of GPUHEALTH_CONFIG. Raises CommandError."""
    from gpuhealth.monitors.settings import load
    from gpuhealth.runtime.settings_file import ConfigError

    try:
        return load(path)
    except ConfigError as error:
        raise CommandError(str(error)) from None


def duration(text: str, option: str) -> float:
    """Seconds in `90`, `10m` or `24h`. Raises CommandError, which names the option."""
    from gpuhealth.runtime.settings import LONGEST_SECONDS, seconds

    try:
        value = seconds(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from None
    if not isinstance(value, float) or not 0 <= value <= LONGEST_SECONDS:
        raise CommandError(f"{option}: {text!r} is no duration up to ten years (write 30s, 10m, 24h or 14d)")
    return value
