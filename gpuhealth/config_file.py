"""Where settings come from: one YAML file, overridden by the environment; an error is one sentence.

`GPUHEALTH_CONFIG` names the file; `GPUHEALTH_NVML__WARN_AFTER=30s` overrides `nvml.warn_after`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gpuhealth.config import Settings

ENVIRONMENT_PREFIX = "GPUHEALTH_"


class ConfigError(ValueError):
    """The configuration cannot be used; the text is one sentence that says what, where and what would be right."""


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Settings from the file (or the one that GPUHEALTH_CONFIG names), then the environment, then `overrides`.

    Raises ConfigError with one sentence for a file that cannot be read, a key that is not known, a bad value.
    """
    if path is None and (named := os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")):
        path = Path(named)
    values = _file_values(path) if path else {}
    try:
        return Settings(**_merged(_merged(values, _environment_values()), overrides))
    except ValidationError as error:
        raise ConfigError(_sentence(error, path)) from None


class SettingsFile:
    """A configuration file that may change while we run."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._stamp = self._stamped()

    def changed(self) -> Settings | None:
        """The settings if the file has changed since it was last looked at. Raises ConfigError, once for a change."""
        if (stamp := self._stamped()) == self._stamp:
            return None
        self._stamp = stamp
        return load(self.path)

    def _stamped(self) -> tuple[int, int] | None:
        """Changes when the file does, also when a ConfigMap's link is turned to another one."""
        try:
            status = self.path.stat() if self.path else None
        except OSError:
            return None
        return status and (status.st_mtime_ns, status.st_ino)


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _environment_values() -> dict[str, Any]:
    """GPUHEALTH_A__B=value as {"a": {"b": value}}; a value in brackets is read as YAML, any other is taken as text."""
    values: dict[str, Any] = {}
    for name, text in os.environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name == f"{ENVIRONMENT_PREFIX}CONFIG":
            continue
        *sections, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if [*sections, key][0] not in Settings.model_fields:
            raise ConfigError(f"environment variable {name} names no setting")
        try:
            value: Any = yaml.safe_load(text) if text.startswith(("{", "[")) else text
        except yaml.YAMLError:
            raise ConfigError(f"environment variable {name} is not valid YAML: {text!r}") from None
        for section in reversed(sections):
            key, value = section, {key: value}
        values = _merged(values, {key: value})
    return values


def _file_values(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f" line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""  # type: ignore[union-attr]
        raise ConfigError(f"configuration {path}{where} is not valid YAML") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"configuration {path} must be a mapping of setting names to values")
    return values


def _sentence(error: ValidationError, path: Path | None) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    source = f"configuration {path}" if path else "configuration"
    if first["type"] == "extra_forbidden":
        return f"{source}: {where} is not a known setting"
    reason = first["msg"].removeprefix("Value error, ")
    return (
        f"{source}: {where}: {reason}, not {first['input']!r}" if "input" in first else f"{source}: {where}: {reason}"
    )
