"""From the fault to the alert: simulated driver, real agent, real Prometheus."""

from __future__ import annotations

import os
import signal

import pytest
from testing.prometheus import EVERY, Prometheus
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from dashboards import rules


@pytest.mark.parametrize("alert", rules.ALERTS, ids=lambda alert: alert.name)
def test_every_expression_is_evaluated(node: SimulatedNode, prometheus: Prometheus, alert: rules.Alert) -> None:
    """Prometheus takes the expression, now and over a range, and has evaluated the rule without error."""
    prometheus.query(alert.expr)
    prometheus.query_range(alert.expr)

    def health() -> str:
        loaded = {rule["name"]: rule["health"] for rule in prometheus.api("rules")["groups"][0]["rules"]}
        return "" if loaded[alert.name] == "unknown" else str(loaded[alert.name])

    assert wait_for("the rule is evaluated", health, every=EVERY) == "ok"


@pytest.mark.parametrize(
    ("fault", "gpu", "alert", "code"),
    [
        ("overheat", 3, "GPUNodeUnhealthy", "thermal.gpu"),
        ("lost", 5, "GPUNodeUnhealthy", "gpu.lost"),
        ("hang", None, "GPUDriverUnresponsive", "driver.unresponsive"),
        ("ecc_disabled", 6, "GPUNodeDegraded", "ecc.disabled"),
    ],
)
def test_a_fault_alerts_until_it_is_gone(
    healthy: SimulatedNode, prometheus: Prometheus, fault: str, gpu: int | None, alert: str, code: str
) -> None:
    """A fault of the hardware is an alert that names node and finding, and clears with the fault."""
    healthy.driver.inject(fault, gpu=gpu)
    annotations = prometheus.fires(alert)["annotations"]
    assert healthy.name in annotations["summary"]
    if alert != "GPUDriverUnresponsive":
        assert f"{code} on " in annotations["description"]
    healthy.driver.clear()
    healthy.driver.release()
    prometheus.clears(alert)


def test_a_driver_released_for_too_long_is_unknown(healthy: SimulatedNode, prometheus: Prometheus) -> None:
    """After the release limit the node is unknown, with the reason; both alerts clear when the driver is reopened."""
    healthy.configure({"driver_release": {"max_duration": "1s"}})
    os.kill(healthy.pid, signal.SIGUSR1)
    prometheus.fires("GPUNodeUnknown")
    assert prometheus.fires("GPUHealthNotChecked")["labels"]["reason"] == "released"
    os.kill(healthy.pid, signal.SIGUSR1)
    prometheus.clears("GPUHealthNotChecked")
    prometheus.clears("GPUNodeUnknown")


def test_a_bad_configuration_alerts_until_it_is_mended(healthy: SimulatedNode, prometheus: Prometheus) -> None:
    """An invalid configuration raises an alert, and the agent keeps running."""
    healthy.configure({"no_such_setting": 1})
    prometheus.fires("GPUHealthConfigInvalid")
    del healthy.settings["no_such_setting"]
    healthy.configure({})
    prometheus.clears("GPUHealthConfigInvalid")


def test_lost_kernel_records_alert(healthy: SimulatedNode, prometheus: Prometheus) -> None:
    """A gap in the kernel log sequence numbers raises an alert: it may have hidden an XID."""
    healthy.kernel_says("something")
    wait_for("the record is read", lambda: healthy.metric("gpuhealth_agent_kmsg_records_total"), every=EVERY)
    healthy._sequence += 7
    healthy.kernel_says("something else")
    prometheus.fires("GPUHealthKernelRecordsLost")


def test_an_api_server_that_is_away_alerts(node: SimulatedNode, prometheus: Prometheus) -> None:
    """An agent that never reaches its API server says so."""
    assert node.name in prometheus.fires("GPUHealthClusterUnreachable")["annotations"]["summary"]


def test_an_agent_that_is_gone_alerts_until_it_is_back(healthy: SimulatedNode, prometheus: Prometheus) -> None:
    """Silence is an alert of its own, with the name that the node had."""
    healthy.stop()
    assert prometheus.fires("GPUHealthAgentDown")["labels"]["node"] == healthy.name
    healthy.start()
    prometheus.clears("GPUHealthAgentDown")
