"""Settings: file and environment in one model; whatever is wrong gets one sentence that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuhealth.config import FindingPolicy
from gpuhealth.config_file import ConfigError, load


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
    monkeypatch.setenv("GPUHEALTH_EXPECT_GPUS", "8")
    monkeypatch.setenv("GPUHEALTH_FINDINGS", "{xid.94: {quarantine: true}}")
    settings = load()
    assert (settings.node_name, settings.expect_gpus) == ("0017", 8)
    assert settings.findings == {"xid.94": FindingPolicy(quarantine=True)}


def test_overrides_win_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a caller sets holds against file and environment."""
    monkeypatch.setenv("GPUHEALTH_EXPECT_GPUS", "4")
    assert load(written(tmp_path, "expect_gpus: 2\n"), expect_gpus=8).expect_gpus == 8


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
        ("expect_gpus: -1", "expect_gpus: Input should be greater than or equal to 0"),
        ("findings: {xid.94: {quarantined: true}}", "findings.xid.94.quarantined is not a known setting"),
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
