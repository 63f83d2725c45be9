"""Reads settings from one YAML file, overridden by environment variables; an error is one sentence.

`GPUHEALTH_CONFIG` names the file; `GPUHEALTH_NVML__WARN_AFTER=30s` overrides `nvml.warn_after`. Variables that the
kubelet sets for a Service named gpuhealth… are ignored.
"""

from __future__ import annotations

import io
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from gpuhealth.runtime.files import open_file
from gpuhealth.runtime.settings import CoreSettings
from gpuhealth.runtime.settings_text import MOST_CHARACTERS, TextError, values_of

SettingsT = TypeVar("SettingsT", bound=CoreSettings)

ENVIRONMENT_PREFIX = "GPUHEALTH_"
_DEEPEST = 8  # nested sections in a variable's name
_SERVICE_HOST = "_SERVICE_HOST"
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")
_REASON_CHARACTERS = 200
_SHOWN = reprlib.Repr()  # bounded for any content of the file
_SHOWN.maxlevel, _SHOWN.maxdict, _SHOWN.maxlist, _SHOWN.maxstring, _SHOWN.maxother = 2, 4, 4, 60, 60


class ConfigError(ValueError):
    """The configuration cannot be used; the text is one sentence with the problem, its place and a valid value."""


def load(model: type[SettingsT], path: Path | None = None, **overrides: Any) -> SettingsT:
    """Settings of a model: from the file (or the one in GPUHEALTH_CONFIG), then the environment, then `overrides`.

    Raises ConfigError with one sentence for an unreadable file, an unknown key or an invalid value.
    """
    if path is None and (named := os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")):
        path = Path(named)
    values = _merged(_file_values(path) if path else {}, _environment_values(model, os.environ))
    return _validated(model, _merged(values, overrides), path)


def load_text(model: type[SettingsT], text: str, environment: Mapping[str, str], source: Path) -> SettingsT:
    """Settings as a pod has them whose file has this text and whose environment has these variables.

    `source` names the text in errors. Raises ConfigError.
    """
    values = _merged(_text_values(text, source), _environment_values(model, environment))
    return _validated(model, values, source)


def digest(text: bytes) -> str:
    """Twelve hexadecimal digits that identify the content of a settings file."""
    return sha256(text).hexdigest()[:12]


def _validated(model: type[SettingsT], values: dict[str, Any], path: Path | None) -> SettingsT:
    _refuse_what_is_no_text(values, path)
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(_sentence(error, path)) from None


class SettingsFile(Generic[SettingsT]):
    """A configuration file that may change while we run."""

    def __init__(self, model: type[SettingsT], path: Path | None) -> None:
        self.path = path
        self._model = model
        self._stamp = self._stamped()
        self.digest = self._read_digest()  # of the content that was last read; empty without a file

    def changed(self) -> SettingsT | None:
        """The settings if the file has changed since the last call. Raises ConfigError, once for each change."""
        if (stamp := self._stamped()) == self._stamp:
            return None
        self._stamp = stamp
        found = self._read_digest()
        settings = load(self._model, self.path)
        self.digest = found
        return settings

    def _read_digest(self) -> str:
        try:
            with open_file(self.path or Path(os.devnull)) as file:
                return digest(file.read(MOST_CHARACTERS + 1)) if self.path else ""
        except (OSError, ValueError):  # no such file, or no file can have this name
            return ""

    def _stamped(self) -> tuple[int, int] | None:
        """Changes when the file does, also when the symbolic link of a ConfigMap has a new target."""
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


def _environment_values(model: type[CoreSettings], environment: Mapping[str, str]) -> dict[str, Any]:
    """GPUHEALTH_A__B=value as {"a": {"b": value}}; a value in brackets is parsed as YAML, any other is text."""
    values: dict[str, Any] = {}
    is_link = _service_links(environment)
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name == f"{ENVIRONMENT_PREFIX}CONFIG" or is_link(name):
            continue
        *sections, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if [*sections, key][0] not in model.model_fields or len(sections) > _DEEPEST:
            raise ConfigError(f"environment variable {_printable(name)} names no setting")
        try:
            value: Any = values_of(text) if text.startswith(("{", "[")) else text
        except TextError as error:
            raise ConfigError(f"environment variable {_printable(name)} {error.reason}: {_SHOWN.repr(text)}") from None
        for section in reversed(sections):
            key, value = section, {key: value}
        values = _merged(values, {key: value})
    return values


def _service_links(names: Iterable[str]) -> Callable[[str], bool]:
    """Names of the variables set by the kubelet for Services of our namespace, including legacy Docker links.

    Each Service has NAME_SERVICE_HOST; without it a variable such as GPUHEALTH_HTTP_PORT is a misspelt setting. The
    name of a Service may contain "--", so that "__" is no distinction.
    """
    services = [name.removesuffix(_SERVICE_HOST) for name in names if name.endswith(_SERVICE_HOST)]
    ours = [f"{service}_" for service in services if f"{service}_".startswith(ENVIRONMENT_PREFIX)]

    def is_link(name: str) -> bool:
        return any(name.startswith(each) and _SERVICE_LINK.fullmatch(name.removeprefix(each)) for each in ours)

    return is_link


def _file_values(path: Path) -> dict[str, Any]:
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"configuration {path} is not valid YAML: it is not UTF-8") from None
    except ValueError:
        raise ConfigError(f"cannot read configuration {_printable(str(path))}: no file can have this name") from None
    return _text_values(text, path)


def _text_values(text: str, path: Path) -> dict[str, Any]:
    try:
        values = values_of(text)
    except TextError as error:
        where = f" line {error.line}" if error.line else ""
        raise ConfigError(f"configuration {path}{where} {error.reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"configuration {path} must be a mapping of setting names to values")
    return values


def _refuse_what_is_no_text(value: object, path: Path | None, where: str = "") -> None:
    """Raises ConfigError for text with NUL or unpaired surrogates, which file names, hosts and labels cannot hold."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_what_is_no_text(key, path, where)
            _refuse_what_is_no_text(inner, path, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple | set):
        for number, inner in enumerate(value):
            _refuse_what_is_no_text(inner, path, f"{where}.{number}")
    elif isinstance(value, str) and ("\0" in value or _has_surrogates(value)):
        source = f"configuration {path}" if path else "configuration"
        raise ConfigError(f"{source}: {_printable(where)}: {_SHOWN.repr(value)} is no text: it has a NUL, or no UTF-8")


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _sentence(error: ValidationError, path: Path | None) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = _printable(".".join(str(part) for part in first["loc"]))
    source = f"configuration {path}" if path else "configuration"
    if first["type"] == "extra_forbidden":
        return f"{source}: {where} is not a known setting"
    reason = _printable(first["msg"].removeprefix("Value error, "))
    shown = f", not {_SHOWN.repr(first['input'])}" if "input" in first else ""
    return f"{source}: {where}: {reason}{shown}"


def _printable(text: str) -> str:
    """Text from a file or the environment, shortened and without terminal control characters."""
    cut = text if len(text) <= _REASON_CHARACTERS else f"{text[: _REASON_CHARACTERS - 1]}…"
    return cut if cut.isprintable() else repr(cut)[1:-1]
