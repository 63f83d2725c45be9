"""Every expression of the dashboard against a real Prometheus that scrapes a real agent on a simulated node."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testing.prometheus import EVERY, Prometheus
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from dashboards.generate import FOLDER

_BOARD = json.loads((FOLDER / "grafana/node.json").read_text())
_TARGETS = [(panel["title"], target) for panel in _BOARD["panels"] for target in panel.get("targets", [])]


def _substituted(expr: str, node: SimulatedNode) -> str:
    """The expression as Grafana sends it."""
    instance = re.escape(node.url.removeprefix("http://")).replace("\\", "\\\\")
    for name, value in {"instance": f"({instance})", "node": node.name, "__rate_interval": "10s"}.items():
        expr = expr.replace(f"${name}", value)
    assert not re.search(r"\$[a-z_{]", expr), "a variable without a value; $1 is a group of label_replace"
    return expr


def _rows(prometheus: Prometheus, expr: str) -> list[Any]:
    """What the expression gives; nothing for a moment where a scrape took longer than a second."""
    return wait_for(f"data for {expr}", lambda: prometheus.query(expr), every=EVERY)


@pytest.fixture(scope="module")
def faulty(node: SimulatedNode, prometheus: Prometheus) -> SimulatedNode:
    """The node with a fault for every panel that is empty without one."""
    node.driver.inject("ecc_uncorrectable", gpu=0)
    node.driver.inject("error", gpu=1, call="nvmlDeviceGetPcieReplayCounter", code=999)
    node.xid(79, gpu=2)
    wait_for("the XID is scraped", lambda: prometheus.query('gpuhealth_xid_errors_total{xid="79"}'), every=EVERY)
    return node


@pytest.mark.parametrize(("panel", "target"), _TARGETS, ids=[f"{p}-{t['refId']}" for p, t in _TARGETS])
def test_every_expression_returns_data(
    faulty: SimulatedNode, prometheus: Prometheus, panel: str, target: dict[str, Any]
) -> None:
    """Prometheus takes every expression, now and over a range, and its series have the labels of the legend."""
    expr = _substituted(target["expr"], faulty)
    series = wait_for(f"{panel}: data over time for {expr}", lambda: prometheus.query_range(expr), every=EVERY)
    if target.get("instant"):
        series = wait_for(f"{panel}: data for {expr}", lambda: prometheus.query(expr), every=EVERY)
    for label in re.findall(r"{{(\w+)}}", target.get("legendFormat", "")):
        assert all(label in one["metric"] for one in series)


def test_the_tables_have_their_columns(faulty: SimulatedNode, prometheus: Prometheus) -> None:
    """Every column of a table is a label of one of its queries, or the value of one."""
    for panel in _BOARD["panels"]:
        if panel["type"] != "table":
            continue
        there = {f"Value #{target['refId']}" for target in panel["targets"]}
        for target in panel["targets"]:
            for row in _rows(prometheus, _substituted(target["expr"], faulty)):
                there |= set(row["metric"])
        assert set(panel["transformations"][1]["options"]["include"]["names"]) <= there


def test_the_table_of_gpus_has_a_line_each(faulty: SimulatedNode, prometheus: Prometheus) -> None:
    """Each query of the table gives every GPU exactly once, so that the merged table has a line for each."""
    (table,) = (panel for panel in _BOARD["panels"] if panel["title"] == "State")
    for target in table["targets"]:
        rows = _rows(prometheus, _substituted(target["expr"], faulty))
        gpus = [row["metric"]["gpu"] for row in rows]
        assert len(gpus) == len(set(gpus)) == 8


def test_a_first_xid_is_counted(faulty: SimulatedNode, prometheus: Prometheus) -> None:
    """A counter that begins at one has grown by one: the first XID of a GPU's life is on the panel."""
    (target,) = (target for title, target in _TARGETS if title == "XIDs")
    faulty.xid(62, gpu=4)
    expr = _substituted(target["expr"], faulty)
    (series,) = wait_for(
        "the XID on the panel",
        lambda: [one for one in prometheus.query(expr) if one["metric"]["xid"] == "62"],
        every=EVERY,
    )
    assert float(series["value"][1]) == 1


def test_the_variables_find_the_node(node: SimulatedNode, prometheus: Prometheus) -> None:
    """The node's name leads to where it is scraped."""
    found = {}
    for variable in _BOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert match
            found[variable["name"]] = _rows(prometheus, _substituted(match[1], node))[0]["metric"][match[2]]
    assert found == {"node": node.name, "instance": node.url.removeprefix("http://")}
