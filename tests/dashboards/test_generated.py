"""The generated files: fresh, and what Grafana and Prometheus take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import Panel, RowPanel

from dashboards import node, rules
from dashboards.generate import FOLDER, files

_JSON = FOLDER / "grafana/node.json"
_WIDTH = 24  # columns of Grafana's grid


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_the_files_are_fresh(path: Path) -> None:
    """What is checked in is what the Python makes; else run python -m dashboards.generate."""
    assert path.read_text(encoding="utf-8") == files()[path]


def test_nothing_else_lies_there() -> None:
    """Every file in the folders of generated files is one."""
    found = {path for folder in ("grafana", "prometheus") for path in (FOLDER / folder).iterdir()}
    assert found == {path for path in files() if path.is_relative_to(FOLDER)}


def test_grafana_s_own_types_read_the_dashboard() -> None:
    """The JSON, read into Grafana's model and written again, is the same: it holds nothing unknown to Grafana."""
    written = json.loads(_JSON.read_text())
    again = json.loads(json.dumps(dashboard.Dashboard.from_json(written), cls=JSONEncoder))
    assert again == written


def test_no_panel_lies_on_another() -> None:
    """Panels fill their rows, none outside the grid, none on another, and the titles in a row differ."""
    taken: set[tuple[int, int]] = set()
    titles: set[str] = set()
    for panel in node.board().build().panels or []:
        place = panel.grid_pos
        assert place
        assert place.x + place.w <= _WIDTH
        cells = {(x, y) for x in range(place.x, place.x + place.w) for y in range(place.y, place.y + place.h)}
        assert not cells & taken
        taken |= cells
        if isinstance(panel, RowPanel):
            titles = set()
        assert panel.title not in titles
        titles.add(panel.title or "")


def test_every_panel_explains_itself() -> None:
    """Every panel has a title, words on what it shows, a unit where it shows numbers over time, and its data source."""
    for panel in node.board().build().panels or []:
        if isinstance(panel, Panel):
            assert panel.title
            assert panel.description
            assert panel.datasource
            assert panel.datasource.uid == "${datasource}"
            assert panel.field_config
            assert panel.type_val != "timeseries" or panel.field_config.defaults.unit


def test_the_essential_checks_are_the_code_s() -> None:
    """Driver, presence, loss and ECC are among the checks whose silence is an alert."""
    assert {"driver.unresponsive", "gpu.missing", "gpu.lost", "ecc.uncorrectable"} <= set(rules.essential())


def test_every_alert_says_what_to_do() -> None:
    """Every alert has one of two severities, a summary that says where, and more than a sentence of description."""
    for alert in rules.ALERTS:
        rule = alert.rule()
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"$labels.node", "$labels.budget", "$labels.reason"} & set(
            re.findall(r"[$\w.]+", rule["annotations"]["summary"])
        )
        assert alert.description
        assert alert.advice


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_promtool_takes_the_rules() -> None:
    """promtool finds nothing wrong with the rules, nor anything twice."""
    command = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", str(FOLDER / "prometheus/rules.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
