"""Every alert over simulated hours: quiet before the fault, patient, firing, and clear again."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import rules
from dashboards.generate import FOLDER

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")

_BEGIN = 10  # minutes of health before the fault
_STAYS = 30  # minutes that the fault stays after the alert should fire
_CLEAR = 40  # minutes after the fault by which the alert is over
_TARGET = 'job="gpuhealth",instance="10.0.0.7:9475"'
_INFO = f'gpuhealth_agent_info{{{_TARGET},node="gpu-7",version="1"}}'


@dataclass(frozen=True)
class Fault:
    """A series before, during and after a fault; "_" is no sample, "+1" counts up by one a minute."""

    series: str
    good: str
    bad: str
    agent: str = "1"  # gpuhealth_agent_info during the fault
    about: str = 'node="gpu-7"'  # labels of the alert that say where

    def values(self, minutes: int) -> str:
        """In promtool's notation, a sample a minute."""
        if self.bad.startswith("+"):
            return f"{_times('0', _BEGIN)} 0{self.bad}x{minutes - 1} {_times(str(minutes), _CLEAR)}"
        return f"{_times(self.good, _BEGIN)} {_times(self.bad, minutes)} {_times(self.good, _CLEAR)}"


def _times(value: str, count: int) -> str:
    """A value that often. promtool takes 1x9 for ten samples, and _x9 for nine."""
    return f"_x{count}" if value == "_" else f"{value}x{count - 1}"


def _series(name: str, labels: str = "") -> str:
    return f"{name}{{{_TARGET}{',' if labels else ''}{labels}}}"


FAULTS = {
    "GPUNodeUnhealthy": Fault(_series("gpuhealth_verdict", 'verdict="unhealthy"'), "0", "1"),
    "GPUDriverUnresponsive": Fault(
        _series("gpuhealth_finding", 'code="driver.unresponsive",component="node",severity="critical"'), "_", "1"
    ),
    "GPUQuarantineBlocked": Fault(
        _series("gpuhealth_quarantine_blocked", 'budget="pool-a",limit="maxUnavailable",code="xid.79"'), "_", "1"
    ),
    "GPUSuspectDriver": Fault(
        _series("gpuhealth_quarantine_blocked_nodes", 'budget="pool-a",limit="maxPerFault",code="xid.79"'),
        "_",
        "495",
        about='budget="pool-a",code="xid.79"',
    ),
    "GPUNodeUnknown": Fault(_series("gpuhealth_verdict", 'verdict="unknown"'), "0", "1"),
    "GPUNodesUnwatched": Fault(
        _series("gpuhealth_unwatched_nodes", 'reason="no_agent",pool="a"'), "_", "3", about='reason="no_agent"'
    ),
    "GPUHealthMarksRemoved": Fault(_series("gpuhealth_marks_removed_total", 'by="program"'), "0", "+1"),
    "GPUHealthAgentDown": Fault(_series("up"), "1", "0", agent="_"),
    "GPUNodeDegraded": Fault(_series("gpuhealth_verdict", 'verdict="degraded"'), "0", "1"),
    "GPUHealthNotChecked": Fault(
        _series("gpuhealth_not_checked", 'check="ecc.uncorrectable",reason="timeout"'), "_", "1"
    ),
    "GPUHealthClusterUnreachable": Fault(
        _series("gpuhealth_kube_requests_total", 'method="GET",status="0"'), "0", "+1"
    ),
    "GPUHealthAgentFailing": Fault(_series("gpuhealth_loop_failures_total", 'loop="round"'), "0", "+1"),
    "GPUHealthJournalFailing": Fault(_series("gpuhealth_agent_journal_errors_total"), "0", "+1"),
    "GPUHealthConfigInvalid": Fault(_series("gpuhealth_agent_config_valid"), "1", "0"),
    "GPUHealthKernelRecordsLost": Fault(_series("gpuhealth_agent_kmsg_lost_records_total"), "0", "+1"),
}
HARMLESS = {
    "GPUNodeUnhealthy": Fault(_series("gpuhealth_verdict", 'verdict="degraded"'), "0", "1"),
    "GPUSuspectDriver": Fault(
        _series("gpuhealth_quarantine_blocked_nodes", 'budget="pool-a",limit="maxUnavailable",code="xid.79"'), "_", "7"
    ),
    "GPUHealthNotChecked": Fault(
        _series("gpuhealth_not_checked", 'check="pcie.replay_rate",reason="no_history"'), "_", "1"
    ),
    "GPUHealthAgentDown": Fault('up{job="other",instance="10.0.0.7:9100"}', "1", "0"),
    "GPUHealthClusterUnreachable": Fault(
        _series("gpuhealth_kube_requests_total", 'method="PATCH",status="409"'), "0", "+1"
    ),
}


def _minutes(duration: str) -> int:
    match = re.fullmatch(r"(\d+)([smh])", duration)
    assert match
    return int(match[1]) * {"s": 0, "m": 1, "h": 60}[match[2]]


def _promtool(folder: Path, fault: Fault, minutes: int, expected: dict[tuple[str, int], bool]) -> None:
    """Runs promtool on one fault; `expected` says of an expression and a minute whether there is a series."""
    first = "stale" if fault.agent == "_" else fault.agent
    agent = f"{_times('1', _BEGIN)} {first} {_times(fault.agent, minutes - 1)} {_times('1', _CLEAR)}"
    checks: list[dict[str, Any]] = []
    for (query, minute), wanted in expected.items():
        samples = [{"labels": "{}", "value": 1}] if wanted else []
        checks.append({"expr": f"count({query})", "eval_time": f"{minute}m", "exp_samples": samples})
    document = {
        "rule_files": [str(FOLDER / "prometheus/rules.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": fault.series, "values": fault.values(minutes)},
                    {"series": _INFO, "values": agent},
                ],
                "promql_expr_test": checks,
            }
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", rules.ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_when_it_should(tmp_path: Path, alert: rules.Alert) -> None:
    """Nothing before the fault, pending until its time is over, then firing with its place by name, then clear."""
    hold = _minutes(alert.hold)
    minutes = hold + _STAYS
    ours = f'alertname="{alert.name}",{FAULTS[alert.name].about}'
    firing = f'ALERTS{{{ours},alertstate="firing",severity="{alert.severity}"}}'
    expected = {
        (f"ALERTS{{{ours}}}", _BEGIN - 1): False,
        (firing, _BEGIN + hold + 2): True,  # a counter needs two samples to have grown
        (firing, _BEGIN + minutes - 1): True,
        (f"ALERTS{{{ours}}}", _BEGIN + minutes + _CLEAR - 1): False,
    }
    if hold > 1:
        expected[firing, _BEGIN + hold - 1] = False
        expected[f'ALERTS{{{ours},alertstate="pending"}}', _BEGIN + hold - 1] = True
    _promtool(tmp_path, FAULTS[alert.name], minutes, expected)


@pytest.mark.parametrize("name", HARMLESS)
def test_an_alert_is_silent_when_it_should(tmp_path: Path, name: str) -> None:
    """What looks alike and is harmless, or another alert's, or no agent's at all, does not even make it pending."""
    minutes = 60
    expected = {(f'ALERTS{{alertname="{name}"}}', minute): False for minute in range(_BEGIN + minutes)}
    _promtool(tmp_path, HARMLESS[name], minutes, expected)


def test_every_alert_has_its_fault() -> None:
    """No alert is untested."""
    assert list(FAULTS) == [alert.name for alert in rules.ALERTS]
