"""Settings: file and environment in one model; whatever is wrong gets one sentence that names the place."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gpuhealth.monitors.settings import Settings, load
from gpuhealth.runtime import settings_text as config_text
from gpuhealth.runtime.settings import FindingSettings
from gpuhealth.runtime.settings_file import ConfigError, SettingsFile, digest, load_text


def written(path: Path, text: str) -> Path:
    """A configuration file with that text."""
    file = path / "gpuhealth.yaml"
    file.write_text(text)
    return file


def test_defaults_need_no_file() -> None:
    """Without a file every setting has its default."""
    settings = load()
    assert (settings.mode, settings.interval, settings.nvml.warn_after) == ("taint", 10.0, 20.0)


def test_a_section_changes_only_what_it_names(tmp_path: Path) -> None:
    """A file that sets one value of a section leaves the others at their defaults."""
    settings = load(written(tmp_path, "nvml: {warn_after: 30s}\nkmsg: {lookback: 1h}\n"))
    assert (settings.nvml.warn_after, settings.nvml.critical_after, settings.kmsg.lookback) == (30.0, 60.0, 3600.0)


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment variable overrides the file, value by value."""
    monkeypatch.setenv("GPUHEALTH_NVML__WARN_AFTER", "25s")
    settings = load(written(tmp_path, "mode: observe\nnvml: {warn_after: 30s, critical_after: 90s}\n"))
    assert (settings.mode, settings.nvml.warn_after, settings.nvml.critical_after) == ("observe", 25.0, 90.0)


def test_the_environment_holds_text_lists_and_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is taken as it stands, also where it looks like a number; what stands in brackets is YAML."""
    monkeypatch.setenv("GPUHEALTH_NODE_NAME", "0017")
    monkeypatch.setenv("GPUHEALTH_EXPECTED_GPUS", "8")
    monkeypatch.setenv("GPUHEALTH_FINDINGS", "{xid.94: {quarantine: true}}")
    settings = load()
    assert (settings.node_name, settings.expected_gpus) == ("0017", 8)
    assert settings.findings == {"xid.94": FindingSettings(quarantine=True)}


def test_overrides_win_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a caller sets holds against file and environment."""
    monkeypatch.setenv("GPUHEALTH_EXPECTED_GPUS", "4")
    assert load(written(tmp_path, "expected_gpus: 2\n"), expected_gpus=8).expected_gpus == 8


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("INTERVAL", "soon", "interval: 'soon' is no duration"),
        ("FINDINGS", "{a: [", "GPUHEALTH_FINDINGS is not valid YAML"),
    ],
)
def test_bad_variables_get_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str) -> None:
    """A variable with a bad value is refused like a bad line of the file."""
    monkeypatch.setenv(f"GPUHEALTH_{name}", value)
    with pytest.raises(ConfigError, match=sentence):
        load()


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUHEALTH_CONFIG is read where no file is given."""
    monkeypatch.setenv("GPUHEALTH_CONFIG", str(written(tmp_path, "mode: cordon\n")))
    assert load().mode == "cordon"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nvml: {warn_afer: 30s}", "nvml.warn_afer is not a known setting"),
        ("colour: blue", "colour is not a known setting"),
        ("mode: cordone", "mode: Input should be 'observe', 'taint' or 'cordon', not 'cordone'"),
        ("interval: 10 parsecs", "interval: '10 parsecs' is no duration"),
        ("interval: 0", "interval: Input should be greater than 0"),
        ("expected_gpus: -1", "expected_gpus: Input should be greater than or equal to 0"),
        ("findings: {xid.94: {quarantined: true}}", "findings.xid.94.quarantined is not a known setting"),
        ("monitors: {nvidai: {interval: 5s}}", "monitors: nvidai is no monitor; there are nvidia, "),
        ("monitors: {nvidia: {intervall: 5s}}", "monitors.nvidia.intervall is not a known setting"),
        ("monitors: {nvidia: {interval: 0}}", "monitors.nvidia.interval: Input should be greater than 0"),
        ("- a\n- b", "must be a mapping"),
        ("a: [1,", "is not valid YAML"),
        ("a: 1\nb: : 2", "line 2 is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    """Every kind of mistake is refused with the file, the place and what is wrong."""
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is an error, not a default."""
    with pytest.raises(ConfigError, match=r"cannot read configuration .*none.yaml: No such file"):
        load(tmp_path / "none.yaml")


def test_an_unknown_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable of ours is an error; it would be ignored silently."""
    monkeypatch.setenv("GPUHEALTH_INTERVALL", "5s")
    with pytest.raises(ConfigError, match="GPUHEALTH_INTERVALL names no setting"):
        load()


def bomb(levels: int, key: str) -> str:
    """A mapping whose last value stands for nine times as many values with each level."""
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &x{n} [{', '.join(9 * [f'*x{n - 1}'])}]" for n in range(1, levels)]
    return "\n".join([*lines, f"{key}: *x{levels - 1}"])


HOSTILE = [
    ("interval: 1e300", "interval: Input should be less than or equal to 315360000"),
    ("interval: 9e99d", "interval: '9e99d' is no duration"),
    (f"interval: {'9' * 400}d", "interval: Input should be a finite number"),
    ("interval: .nan", "interval: Input should be a finite number"),
    ("interval: .inf", "interval: Input should be"),
    ("nvlink: {effective_ber: .inf}", "nvlink.effective_ber: Input should be a finite number"),
    ("journal: {max_entries: 99999999999999999999}", "journal.max_entries: Input should be less than or equal to"),
    ("a: 1\ninterval: 2024-13-45", "line 2 has a value that cannot be read; text goes in quotes"),
    (f"expected_gpus: {'9' * 5000}", "line 1 has a value that cannot be read"),
    (f"expected_gpus: {'9' * 4000}", "expected_gpus: "),
    (f"expected_gpus: '{'9' * 5000}'", "expected_gpus: "),
    ("!!timestamp soon", "line 1 has a value that cannot be read"),
    ("interval: 2024-12-01", "interval: Input should be a valid number"),
    ("[" * 20_000, "line 1 is nested deeper than 50 levels"),
    ("{a: " * 20_000, "line 1 is nested deeper than 50 levels"),
    ("- " * 20_000, "line 1 is nested deeper than 50 levels"),
    (bomb(9, "interval"), "makes it more than 50000 values"),
    (bomb(9, "nvml"), "makes it more than 50000 values"),
    (bomb(4, "interval"), "interval: Input should be a valid number, not [["),
    ("a: &a {<<: [" + "*b, " * 9 + "]}", "is not valid YAML"),
    ("m0: &m0 {k: 1}\n" + "\n".join(f"m{n}: &m{n} {{<<: [{', '.join(9 * [f'*m{n - 1}'])}]}}" for n in range(1, 30)),
     "makes it more than 50000 values"),
    ("interval: &x [*x]", "line 1 has an alias of a value that contains it"),
    ("node_name: &x {a: *x}", "line 1 has an alias of a value that contains it"),
    ("big: &b '" + "x" * 100_000 + "'\nmode: [" + "*b," * 10_000 + "]", "'taint' or 'cordon', not ['xxx"),
    ("mode: '" + "x" * 100_000 + "'", "mode: Input should be 'observe', 'taint' or 'cordon', not 'xxxx"),
    ("interval: '" + "x" * 100_000 + "'", "interval: 'xxxx"),
    ("x" * 1000 + ": 1", "xxx… is not a known setting"),
    ("x" * (1 << 18) + ": 1", "is longer than 256 KiB"),
    ('journal: {path: "a\\0b"}', "journal.path: 'a\\x00b' is no text"),
    ('roots: {proc: "\\ud800"}', "roots.proc: '\\ud800' is no text"),
    ('http: {host: "a\\0"}', "http.host: 'a\\x00' is no text"),
    ('"a\\0b": 1', "is no text"),
    ('"\\e[2J\\n": 1', "\\x1b[2J\\n is not a known setting"),
    ("\x00", "is not valid YAML"),
    ("{[a]: 1}", "is not valid YAML"),
    ("? {a: 1}\n: 2", "is not valid YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), HOSTILE, ids=[sentence[:40] for _, sentence in HOSTILE])
def test_whatever_a_file_says_is_one_short_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    """Values that no setting can have, and texts that stand for more than they are: refused soon, and in short."""
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_a_file_that_is_no_utf8(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are named as such."""
    (tmp_path / "f").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="is not valid YAML: it is not UTF-8"):
        load(tmp_path / "f")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe without a writer, a device without end, a folder or a socket is refused at once."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("pipe", "socket", ".", "/dev/zero", "/dev/tty"):
            with pytest.raises(ConfigError, match="cannot read configuration"):
                load(tmp_path / name)


def test_a_path_with_nul() -> None:
    """A path that no file can have is refused in one sentence."""
    with pytest.raises(ConfigError, match=r"cannot read configuration a.x00b"):
        load(Path("a\0b"))


def test_aliases_of_reasonable_size_are_fine(tmp_path: Path) -> None:
    """An anchor, an alias and a merge key in settings mean what they mean in YAML."""
    text = "findings:\n  xid.94: &q {quarantine: true}\n  xid.95: *q\n  xid.48: {<<: *q, drain: true}\n"
    findings = load(written(tmp_path, text)).findings
    assert findings["xid.94"] == findings["xid.95"] == FindingSettings(quarantine=True)
    assert findings["xid.48"] == FindingSettings(quarantine=True, drain=True)


@given(st.text(st.sampled_from("ab:,&*<[]{}-?!|>'\"#%@` \n\t~0123456789.eE+_x\\\0\ud800é"), max_size=60))
def test_any_text_is_values_or_one_error(text: str) -> None:
    """Whatever the text, reading it gives values or TextError."""
    with suppress(config_text.TextError):
        config_text.values_of(text)


def _lines() -> st.SearchStrategy[str]:
    """A line that gives some setting some value, in YAML."""

    def line(path: str, value: str) -> str:
        first, *sections = path.split("__")
        return f"{first}: " + "".join(f"{{{section}: " for section in sections) + value + "}" * len(sections)

    return st.builds(line, st.sampled_from([*_paths(Settings)]), st.sampled_from(VALUES))


VALUES = [
    "1e300", "-1", ".nan", ".inf", "9" * 5000, f"'{'9' * 5000}'", "9007199254740993", "18446744073709551616", "1e-320",
    "2024-13-45", "0001-01-01", "12:30:45", "~", "yes", "''", "[]", "{}", "[null]", "{null: 1}", "{1: 2}", "{[1]: 2}",
    '"\\0"', '"\\ud800"', '"\\e[2J"', "!!binary aGVsbG8=", "!!set {a, b}", "!!omap [a: 1]", "!!int x", "!!bool maybe",
    "999999999%", "99999999999999999999d", "'²s'", "'٣s'", "10s", "8", "text", "'*'", "<<", "{<<: [{a: 1}]}",
    "{'*': {ignore: true}}", "{xid.79: {raise_after: 1e300}}", "{xid.79: null}", "{nvidia: {enabled: maybe}}",
    "[{node_labels: {a: b}, findings: {x: {ignore: 1}}}]", "&x [*x]", "/" + "a/" * 500,
]  # fmt: skip


@given(st.data())
def test_any_value_of_any_setting_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever value a setting gets, the result is settings that can be shown, or one short printable sentence."""
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text("\n".join(data.draw(st.lists(_lines(), min_size=1, max_size=2))), errors="surrogatepass")
    refusal = ""
    try:
        settings = load(file)
    except ConfigError as error:
        refusal = str(error)
    else:
        assert settings.model_dump(mode="json")
        assert settings.longest_window() > 0
    assert len(refusal) < 600
    assert refusal.isprintable()


def kubelets(service: str, *ports: tuple[str, int, str]) -> dict[str, str]:
    """The variables that the kubelet gives every container of the namespace for a Service, as its envvars.go does."""
    name = service.upper().replace("-", "_")
    made = {f"{name}_SERVICE_HOST": "10.96.0.7", f"{name}_SERVICE_PORT": str(ports[0][1])}
    for number, (port_name, port, protocol) in enumerate(ports):
        if port_name:
            made[f"{name}_SERVICE_PORT_{port_name.upper().replace('-', '_')}"] = str(port)
        url, prefix = f"{protocol.lower()}://10.96.0.7:{port}", f"{name}_PORT_{port}_{protocol}"
        if number == 0:
            made[f"{name}_PORT"] = url
        made |= {prefix: url, f"{prefix}_PROTO": protocol.lower(), f"{prefix}_PORT": str(port)}
        made[f"{prefix}_ADDR"] = "10.96.0.7"
    return made


SERVICES = [
    "gpuhealth",
    "gpuhealth-agent",
    "gpuhealth-http",
    "gpuhealth--nvml",
    "gpuhealth--nvml--warn",
    "gpuhealth-nvml--service",
    "gpuhealth-mode",
    "gpuhealth-config",
    "gpuhealth-service-port-http",
    "gpuhealth-x-port-443-tcp",
    "gpuhealth--" + 40 * "-" + "a",
]


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_no_settings(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    """Whatever a Service of the namespace is named, what the kubelet makes of it is no setting, and no mistake."""
    ports = ("", 443, "TCP"), ("metrics", 9475, "TCP"), ("b-port", 53, "UDP"), ("assoc", 9, "SCTP")
    for name, value in kubelets(service, *ports).items():
        monkeypatch.setenv(name, value)
    assert load() == Settings()


def test_a_misspelt_setting_is_told_from_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that only resembles one of a Service is rejected, even next to real ones."""
    for name, value in kubelets("gpuhealth", ("", 443, "TCP")).items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PORT", "PORTS", "SERVICE", "SERVICE_HOSTS", "PORT_443", "AGENT_SERVICE_PORT"):
        with monkeypatch.context() as patch:
            patch.setenv(f"GPUHEALTH_{name}", "8080")
            with pytest.raises(ConfigError, match=f"GPUHEALTH_{name} names no setting"):
                load()


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        yield f"{prefix}{name}"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _paths(kind, f"{prefix}{name}__")


def test_no_setting_can_be_taken_for_a_service() -> None:
    """No setting's variable is one that the kubelet could make: a Service's name does not end with a hyphen."""
    link = re.compile(r"GPUHEALTH(_\w*[A-Z0-9])?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)")
    names = [f"GPUHEALTH_{path.upper()}" for path in _paths(Settings)]
    assert "GPUHEALTH_CONTROLLER__HTTP__PORT" in names
    assert [name for name in names if link.fullmatch(name)] == []


@pytest.mark.parametrize("name", ["NVML" + "__A" * 5000, "NVML__", "__MODE", "\x1b[2J", "NVML__WARN_AFTER__X"])
def test_odd_names_of_variables(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A variable with any other name is refused in one printable sentence."""
    monkeypatch.setenv(f"GPUHEALTH_{name}", "1")
    with pytest.raises(ConfigError) as caught:
        load()
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_settings_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text and the variables of a pod count, and not the environment of this process."""
    monkeypatch.setenv("GPUHEALTH_MODE", "observe")
    found = load_text(Settings, "interval: 20s\n", {"GPUHEALTH_MODE": "cordon", "PATH": "/bin"}, Path("gpuhealth.yaml"))
    assert (found.mode, found.interval) == ("cordon", 20.0)
    with pytest.raises(ConfigError, match=r"configuration gpuhealth\.yaml: mode: Input should be"):
        load_text(Settings, "mode: sleep\n", {}, Path("gpuhealth.yaml"))


def test_the_digest_is_that_of_the_content_in_use(tmp_path: Path) -> None:
    """The digest changes with the content; that of a file which cannot be used is not taken up."""
    path = tmp_path / "gpuhealth.yaml"
    path.write_text("mode: taint\n")
    file = SettingsFile(Settings, path)
    first = digest(b"mode: taint\n")
    assert file.digest == first
    for text, expected in (("mode: nonsense\n", first), ("mode: observe\n", digest(b"mode: observe\n"))):
        replacement = tmp_path / "new"
        replacement.write_text(text)
        replacement.replace(path)
        with suppress(ConfigError):
            file.changed()
        assert file.digest == expected
    assert SettingsFile(Settings, None).digest == ""
    assert SettingsFile(Settings, tmp_path / "absent").digest == ""
