"""All settings: those of the core, and those of every monitor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import create_model, field_validator

from gpuhealth.monitors import registry
from gpuhealth.runtime import settings_file
from gpuhealth.runtime.settings import CoreSettings, Schedule

_OF_MONITORS = tuple(dict.fromkeys(monitor.settings for monitor in registry.monitors()))


def _known_monitors(schedules: dict[str, Schedule]) -> dict[str, Schedule]:
    names = [monitor.name for monitor in registry.monitors()]
    if unknown := [name for name in schedules if name not in names]:
        raise ValueError(f"{unknown[0][:100]} is no monitor; there are {', '.join(names)}")
    return schedules


if TYPE_CHECKING:
    from gpuhealth.monitors.kernel_log.settings import KernelLogSettings
    from gpuhealth.monitors.nvidia.settings import NvidiaSettings

    class Settings(CoreSettings, KernelLogSettings, NvidiaSettings):
        """All settings and their defaults, as far as code outside the monitors reads them by name."""
else:
    Settings = create_model(
        "Settings",
        __base__=(*reversed(_OF_MONITORS), CoreSettings),  # pydantic lists the fields of the last base first
        __doc__="All settings and their defaults.",
        __validators__={"known_monitors": field_validator("monitors")(_known_monitors)},
    )


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Settings from the file (or the one that GPUHEALTH_CONFIG names), then the environment, then `overrides`.

    Raises ConfigError with one sentence for an unreadable file, an unknown key or an invalid value.
    """
    return settings_file.load(Settings, path, **overrides)
