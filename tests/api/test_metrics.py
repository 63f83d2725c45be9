"""gpuhealth.api.metrics: each metric is declared once, is exposed, and nothing asks for one that is not declared."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import prometheus_client.parser
import pytest
import reference
from testing.paths import ROOT
from testing.sources import literals

from gpuhealth.api import metrics
from gpuhealth.api.metrics import Metric, MetricType, counter, gauge
from gpuhealth.runtime.exposition import Rendering
from gpuhealth.runtime.metric_families import family

CODE = ROOT / "gpuhealth"
TABLES = [CODE / "api" / "metrics.py", *sorted(CODE.glob("monitors/*/metric_names.py"))]
_NAME = re.compile(r"\bgpuhealth_[a-z][a-z0-9_]*")
_USERS = [
    path
    for folder in ("daemonset", "dashboards", "README.md", "tools/README.md", "tools/benchmarks", "tools/demonstration")
    for path in ([ROOT / folder] if (ROOT / folder).is_file() else sorted((ROOT / folder).rglob("*")))
    if path.suffix in {".yaml", ".md", ".py", ".json"}
]


def declared() -> list[Metric]:
    """The metrics of all tables."""
    modules = [importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in TABLES]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Metric)]


def test_names_are_as_prometheus_wants_them() -> None:
    """Each name is there once; a counter, and nothing else, ends in _total; labels and help are those of Prometheus."""
    names = [metric.name for metric in declared()]
    assert len(names) == len(set(names))
    for metric in declared():
        assert _NAME.fullmatch(metric.name)
        assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
        assert len(metric.labels) == len(set(metric.labels))
        assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in metric.labels)
        assert metric.help[0].isupper() or metric.help[0].isdigit()
        assert not metric.help.endswith(".")


def test_every_metric_is_exposed_and_no_other() -> None:
    """The reference, which is made from what agent and controller expose, lists exactly the declared metrics."""
    text = reference.FILE.read_text(encoding="utf-8").partition("## Metrics")[2]
    rows = {
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", text, flags=re.MULTILINE)
    }
    assert rows == {(metric.name, str(metric.type), metric.labels) for metric in declared()}


@pytest.mark.parametrize("path", _USERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_asks_for_a_metric_that_does_not_exist(path: Path) -> None:
    """Each name in dashboards, alerts, manifests, documentation, benchmarks and the demonstration is declared."""
    unknown = set(_NAME.findall(path.read_text(encoding="utf-8"))) - {metric.name for metric in declared()}
    assert not unknown


def test_dashboards_are_looked_at() -> None:
    """The test above reads the generated dashboard and the alerts, and finds names in them."""
    for name in ("grafana/node.json", "prometheus/rules.yaml"):
        path = ROOT / "dashboards" / name
        assert path in _USERS
        assert len(set(_NAME.findall(path.read_text(encoding="utf-8")))) > 5


def test_no_name_is_written_elsewhere() -> None:
    """No module but the tables declares a metric or writes the name of one."""
    found = []
    for path in sorted(set(CODE.rglob("*.py")) - set(TABLES)):
        source = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in literals(source) if _NAME.search(text)]
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}: declares a metric"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom)
            and node.module in ("gpuhealth.api.metrics", "prometheus_client.core")
            and {"gauge", "counter", "GaugeMetricFamily", "CounterMetricFamily"} & {name.name for name in node.names}
            and path.name != "metric_families.py"
        ]
    assert not found


@pytest.mark.parametrize("declare", [gauge, counter])
def test_a_metric_is_exposed_as_declared(declare: object) -> None:
    """Name, type, help and labels in the text are those of the declaration."""
    assert callable(declare)
    metric: Metric = declare("things", "Things seen", "kind")
    text = Rendering(metrics.AGENT_METRICS_ERRORS, {"one": lambda: [family(metric, [("a", 2)])]}).text().decode()
    (found,) = [
        found
        for found in prometheus_client.parser.text_string_to_metric_families(text)
        if found.name.startswith("gpuhealth_things")
    ]
    assert (found.type, found.documentation) == (str(metric.type), metric.help)
    assert [(sample.name, sample.labels, sample.value) for sample in found.samples] == [(metric.name, {"kind": "a"}, 2)]
