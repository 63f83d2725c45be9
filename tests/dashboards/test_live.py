"""Dashboard and alerts against a real Prometheus that scrapes a real agent on a simulated node."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dashboards import rules
from dashboards.generate import FOLDER
from tests.dashboards.stand import NODE, Stand, until

_BOARD = json.loads((FOLDER / "grafana/node.json").read_text())
_TARGETS = [(panel["title"], target) for panel in _BOARD["panels"] for target in panel.get("targets", [])]


def _substituted(expr: str, stand: Stand) -> str:
    """The expression as Grafana sends it."""
    values = {"instance": f"({re.escape(stand.instance)})", "node": NODE, "__rate_interval": "10s"}
    for name, value in values.items():
        expr = expr.replace(f"${name}", value.replace("\\", "\\\\"))
    assert "$" not in expr
    return expr


@pytest.fixture(scope="module")
def faulty(stand: Stand) -> Stand:
    """The same node, with a fault for every panel that is empty on a healthy one."""
    stand.node.inject("ecc_uncorrectable", gpu=0)
    stand.node.inject("error", gpu=1, call="nvmlDeviceGetPcieReplayCounter", code=999)
    stand.kernel_says(f"NVRM: Xid (PCI:{stand.pci(2)}): 79, pid=1, GPU has fallen off the bus.")
    until(lambda: stand.query('gpuhealth_xid_errors_total{xid="79"}'), "the XID is scraped")
    return stand


@pytest.mark.parametrize(("panel", "target"), _TARGETS, ids=[f"{p}-{t['refId']}" for p, t in _TARGETS])
def test_every_expression_of_the_dashboard_returns_data(faulty: Stand, panel: str, target: dict[str, Any]) -> None:
    """Prometheus takes every expression, at one time and over a range, and its series have the labels of the legend."""
    expr = _substituted(target["expr"], faulty)
    series = until(lambda: faulty.query_range(expr), f"{panel}: data for {expr}", seconds=30)
    if target.get("instant"):
        series = until(lambda: faulty.query(expr), f"{panel}: data for {expr}", seconds=30)
    for label in re.findall(r"{{(\w+)}}", target.get("legendFormat", "")):
        assert all(label in one["metric"] for one in series)
    assert len({json.dumps(one["metric"]) for one in series}) == len(series)


def test_the_tables_have_their_columns(faulty: Stand) -> None:
    """Every column of a table is a label of one of its queries, or the value of one."""
    for panel in _BOARD["panels"]:
        if panel["type"] != "table":
            continue
        there = {f"Value #{target['refId']}" for target in panel["targets"]}
        for target in panel["targets"]:
            for row in faulty.query(_substituted(target["expr"], faulty)):
                there |= set(row["metric"])
        wanted = panel["transformations"][1]["options"]["include"]["names"]
        assert set(wanted) <= there


def test_the_variables_find_the_node(stand: Stand) -> None:
    """The node's name leads to where it is scraped."""
    found = {}
    for variable in _BOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert match
            found[variable["name"]] = stand.query(_substituted(match[1], stand))[0]["metric"][match[2]]
    assert found == {"node": NODE, "instance": stand.instance}


@pytest.mark.parametrize("alert", rules.alerts(), ids=lambda alert: alert.name)
def test_every_alert_expression_is_evaluated(stand: Stand, alert: rules.Alert) -> None:
    """Prometheus takes the expression, at one time and over a range, and has evaluated the rule without error."""
    stand.query(alert.expr)
    stand.query_range(alert.expr)
    loaded = {rule["name"]: rule for rule in stand.api("rules")["groups"][0]["rules"]}
    until(lambda: loaded[alert.name]["health"] != "unknown", "the rule is evaluated")
    assert loaded[alert.name]["health"] == "ok"


@pytest.mark.parametrize(
    ("fault", "options", "alert", "code"),
    [
        ("overheat", {"gpu": 3}, "GPUNodeUnhealthy", "thermal.gpu"),
        ("lost", {"gpu": 5}, "GPUNodeUnhealthy", "gpu.lost"),
        ("hang", {}, "GPUDriverUnresponsive", "driver.unresponsive"),
        ("ecc_disabled", {"gpu": 6}, "GPUNodeDegraded", "ecc.disabled"),
    ],
)
def test_a_fault_alerts_until_it_is_gone(
    stand: Stand, fault: str, options: dict[str, Any], alert: str, code: str
) -> None:
    """A fault of the hardware is an alert that names node and finding, and clears with the fault."""
    _heal(stand)
    stand.node.inject(fault, **options)
    until(lambda: stand.query(f'gpuhealth_finding{{code="{code}"}}'), f"{code} is found")
    annotations = stand.fires(alert)["annotations"]
    assert NODE in annotations["summary"]
    if alert != "GPUDriverUnresponsive":
        until(lambda: code in (stand.alert(alert) or annotations)["annotations"]["description"], "the code is named")
    _heal(stand)
    stand.clears(alert)


def _heal(stand: Stand) -> None:
    """Takes back every fault and reboots, as far as the agent can tell, so that nothing is remembered."""
    stand.node.clear()
    stand.node.release()
