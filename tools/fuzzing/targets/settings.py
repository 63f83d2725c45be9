"""YAML texts and environment variables, through the settings."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from pathlib import Path

import msgspec
import yaml

from fuzzing import mutate
from fuzzing.target import require, require_sentence
from gpuhealth.monitors.judge import tracker_rules
from gpuhealth.monitors.registry import enabled, monitors, unmatched_patterns
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings_file import ConfigError, load

_DEFAULTS = Settings(node_name="a").model_dump(mode="json")
_TEXTS = tuple(
    text.encode()
    for text in (
        "mode: taint\ninterval: 10s\nroots:\n  sys: /host/sys\n  proc: /host/proc\nhttp:\n  port: 9475\n",
        "findings:\n  xid.94: {severity: critical, raise_after: 1h30m}\n  'nvlink.*': {ignore: true}\n",
        "pools:\n- node_labels: {pool: a}\n  findings:\n    ecc.*: {quarantine: false}\nexpected_gpus: 8\n",
        "a: &a [x, x]\nfindings: {xid.94: {severity: *a}}\n",
        "nvml: {warn_after: 20s, critical_after: 1m}\nmonitors: {host: {interval: 5m, deadline: 10s}}\n",
        "journal: {path: /var/lib/x, retention: 14d, max_entries: 1000}\ncontroller: {election: {duration: 15s}}\n",
        yaml.safe_dump(_DEFAULTS),
    )
)
_WORDS = (
    b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ", b"!!binary ", b"!!timestamp ", b"2024-13-45", b"1e300",
    b".inf", b".nan", b"0x10",
    b"1_000", b"12:30:45", b"---\n", b"...\n", b"%YAML 9.9\n", b"? ", b"|\n", b">\n", b"\t", b"\xff",
    b"\xef\xbb\xbf", b"\x00", b"[" * 60,
    b"{" * 60, b"10d", b"-1", b"1e999d", b"null", b"~", b"yes", b"!!set {a}", b"!!omap [a: b]", b"\\u0000",
    b'"\\ud800"',
)  # fmt: skip
_VARIABLES = (
    "MODE", "INTERVAL", "NVML__WARN_AFTER", "HTTP__PORT", "FINDINGS", "POOLS", "EXPECTED_GPUS", "SERVICE_HOST",
    "CONFIGX", "HTTP__TLS__CERT", "NVML__X__Y__Z",
)  # fmt: skip


class Case(msgspec.Struct):
    """A settings file, and variables of the environment."""

    text: bytes
    environment: dict[str, str]


class Target:
    """A case is a settings file and some variables."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "gpuhealth.yaml"
        self._before = {name: text for name, text in os.environ.items() if name.startswith("GPUHEALTH_")}
        for name in self._before:
            del os.environ[name]

    def make(self, chance: random.Random) -> bytes:
        """Valid settings with changed values, or changed bytes."""
        if chance.random() < 0.5:
            values = mutate.copied(_DEFAULTS)
            for name in chance.sample([*values], len(values) - 4):
                del values[name]
            mutate.mutate_value(values, chance, 2)
            text = yaml.safe_dump(values, allow_unicode=True).encode()
        else:
            text = mutate.mutate_bytes(chance.choice(_TEXTS[:-1]), chance, _WORDS)
        environment = {}
        if chance.random() < 0.2:
            value = mutate.encodable_text(chance).replace("\0", "") or chance.choice(("[a, {b: c}]", "{x: [1}", "1h"))
            environment[f"GPUHEALTH_{chance.choice(_VARIABLES)}"] = value
        return msgspec.json.encode(Case(text, environment))

    def check(self, case: bytes) -> int:
        """The settings are refused in one sentence, or every part of the agent can work with them."""
        plan = msgspec.json.decode(case, type=Case)
        self._file.write_bytes(plan.text)
        os.environ.update(plan.environment)
        try:
            settings = load(Settings, self._file)
        except ConfigError as error:
            require_sentence(error, "the error", 1000)
            return 1
        finally:
            for name in plan.environment:
                os.environ.pop(name, None)
        self._check_use(settings)
        return 1

    def _check_use(self, settings: Settings) -> None:
        unmatched_patterns(settings)
        require(0 <= settings.longest_window() < 1e10, "a window is not bounded")
        rules = tracker_rules(settings, {"pool": "a"})
        for code in ("xid.94", "ecc.uncorrectable", "nvlink.errors"):
            policy = rules.policy(code)
            require(policy.raise_after is None or 0 <= policy.raise_after < 1e10, "a duration is not bounded")
        require(len(enabled(settings)) <= len(monitors()), "more monitors than there are")
        for path in (settings.journal.path, settings.roots.sys, settings.roots.kmsg):
            with contextlib.suppress(OSError):  # no ValueError, as for a NUL
                path.stat()
        require(Settings.model_validate_json(settings.model_dump_json()) == settings, "a capture changes the settings")

    def close(self) -> None:
        """Removes the file, and puts the environment back."""
        os.environ.update(self._before)
        self._folder.cleanup()
