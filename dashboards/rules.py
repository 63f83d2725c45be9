"""What wakes people up, and what only tells them: the alerts on one node and its agent.

Critical: jobs are harmed now, or will be. Warning: somebody should look in working hours. Every alert names the node as
its agent does, also where Prometheus knows it by an address only; the one on a driver that fails everywhere names the
budget that holds the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuhealth.monitors.registry import monitors

_INFO = "on (job, instance) group_left (node) gpuhealth_agent_info"
_LATELY = "[15m]"


@dataclass(frozen=True)
class Alert:
    """One alert. `advice` is what to do, for somebody who has just been woken."""

    name: str
    expr: str
    hold: str
    severity: str
    summary: str
    description: str
    advice: str

    def rule(self) -> dict[str, Any]:
        """As Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.hold,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": f"{self.description} {self.advice}"},
        }


def essential() -> list[str]:
    """The checks without which a node's state is unknown."""
    return sorted(code.name for monitor in monitors() for code in monitor.codes if code.essential)


def findings(severity: str) -> str:
    """A template for the node's findings of a severity: each code with where it was found."""
    query = f"gpuhealth_finding{{instance='%s',severity='{severity}'}}"
    return (
        f'{{{{ range query (printf "{query}" $labels.instance) }}}}'
        "{{ .Labels.code }} on {{ .Labels.component }}. {{ end }}"
    )


_ESSENTIALS = "|".join(essential())

ALERTS = (
    Alert(
        "GPUNodeUnhealthy",
        f'gpuhealth_verdict{{verdict="unhealthy"}} * {_INFO} == 1',
        "1m",
        "critical",
        "GPU node {{ $labels.node }} is unhealthy",
        f"Critical findings: {findings('critical')}",
        "`gpuhealth node {{ $labels.node }}` shows them, `gpuhealth explain CODE` what to do. Jobs on the node are"
        " at risk; with a QuarantineBudget it takes no new ones.",
    ),
    Alert(
        "GPUDriverUnresponsive",
        f'gpuhealth_finding{{code="driver.unresponsive"}} * {_INFO} == 1',
        "1m",
        "critical",
        "The NVIDIA driver of {{ $labels.node }} does not answer",
        "Calls into the driver hang, and so does what uses the GPUs.",
        "Kill no process that hangs in the driver. Drain the node, look for XID 119, 120 and 79 in its kernel log,"
        " and reboot it.",
    ),
    Alert(
        "GPUQuarantineBlocked",
        f"gpuhealth_quarantine_blocked * {_INFO} == 1",
        "10m",
        "critical",
        "{{ $labels.node }} is unhealthy and still takes work",
        "{{ if $labels.budget }}Budget {{ $labels.budget }} has no free slot for it: as many nodes are out as it"
        " allows, too many failed alike, or it cannot be read{{ else }}No budget slot can be sought: a right is"
        " missing, or the API server refuses{{ end }}. The Node's condition says why.",
        "See `kubectl get qb` and the nodes that are out. Many that failed alike are a bad driver or a bad check:"
        " find that first. Else repair nodes, raise the budget, or take the node out by hand with"
        " `gpuhealth quarantine {{ $labels.node }}`.",
    ),
    Alert(
        "GPUSuspectDriver",
        'sum by (job, budget, code) (gpuhealth_quarantine_blocked_nodes{limit="maxPerFault"}) > 0',
        "1m",
        "critical",
        "{{ $labels.code }} on more nodes than budget {{ $labels.budget }} believes: a suspect driver or check",
        "{{ $value }} nodes that report it stay in service, because as many as maxPerFault allows went out for the"
        " same fault within the window.",
        "Compare driver, kernel and image of the nodes (`kubectl get ghr -o wide`) with those of the others; see"
        " `gpuhealth explain {{ $labels.code }}`. A bad check is switched off with the setting"
        " findings.{{ $labels.code }}.quarantine: false; if the nodes are bad indeed, raise maxPerFault.",
    ),
    Alert(
        "GPUNodeUnknown",
        f'gpuhealth_verdict{{verdict="unknown"}} * {_INFO} == 1',
        "10m",
        "warning",
        "Nobody knows whether GPU node {{ $labels.node }} is healthy",
        "An essential check cannot be made, or the agent's rounds have stopped.",
        "See what is missing with `gpuhealth node {{ $labels.node }}` and in the agent's log.",
    ),
    Alert(
        "GPUHealthAgentDown",
        "max by (job, instance, node) (last_over_time(gpuhealth_agent_info[1d])) and on (job, instance) up == 0",
        "5m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} does not answer",
        "Nothing is known of this node since then.",
        "Look whether the node is up (`kubectl get node {{ $labels.node }}`), then at the agent's Pod there and its"
        " log.",
    ),
    Alert(
        "GPUNodeDegraded",
        f'gpuhealth_verdict{{verdict="degraded"}} * {_INFO} == 1',
        "12h",
        "warning",
        "GPU node {{ $labels.node }} has been degraded for half a day",
        f"Warnings: {findings('warning')}",
        "`gpuhealth explain CODE` says what each needs; many end with a reset of the GPU between two jobs.",
    ),
    Alert(
        "GPUHealthNotChecked",
        f'gpuhealth_not_checked{{check=~"{_ESSENTIALS}"}} * {_INFO} == 1',
        "15m",
        "warning",
        "{{ $labels.check }} is not being checked on {{ $labels.node }}",
        "Reason: {{ $labels.reason }}. Not checked is not healthy.",
        "`released`: the agent has let go of the driver on request; `gpuhealth_released` names whose: take off the"
        " annotation gpuhealth.io/release-gpus, see the GPU operator's upgrade, or send SIGUSR1 again."
        " `no_permission`, `not_installed`: the Pod's mounts or rights. Else see the agent's log.",
    ),
    Alert(
        "GPUHealthClusterUnreachable",
        f'(sum by (job, instance) (rate(gpuhealth_kube_requests_total{{status=~"0|401|403|5.."}}[10m])) > 0'
        f' unless sum by (job, instance) (rate(gpuhealth_kube_requests_total{{status=~"2.."}}[10m])) > 0)'
        f" * {_INFO}",
        "15m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} cannot reach the API server",
        "What it finds is kept on the node; no taint and no condition is set before it can.",
        "See the answers in gpuhealth_kube_requests_total: 0 is the network, 401 and 403 the agent's rights.",
    ),
    Alert(
        "GPUHealthAgentFailing",
        f"increase(gpuhealth_loop_failures_total{_LATELY}) * {_INFO} > 0",
        "5m",
        "warning",
        "A part of the gpuhealth agent of {{ $labels.node }} fails",
        "Unexpected errors in its loop {{ $labels.loop }}.",
        "The agent's log has them with a trace: report it. Until then, do not rely on what that loop does.",
    ),
    Alert(
        "GPUHealthJournalFailing",
        f"increase(gpuhealth_agent_journal_errors_total{_LATELY}) * {_INFO} > 0",
        "5m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} cannot write its journal",
        "What it has found would not survive a restart.",
        "Look whether the disk below journal.path is full or read-only.",
    ),
    Alert(
        "GPUHealthConfigInvalid",
        f"gpuhealth_agent_config_valid * {_INFO} == 0",
        "5m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} does not use its new configuration",
        "The changed file cannot be used; the settings before it are still in force.",
        "The agent's log says in one sentence what is wrong with it.",
    ),
    Alert(
        "GPUHealthKernelRecordsLost",
        f"increase(gpuhealth_agent_kmsg_lost_records_total{_LATELY}) * {_INFO} > 0",
        "0s",
        "warning",
        "Kernel-log records of {{ $labels.node }} were overwritten unread",
        "XIDs may have been among them.",
        "Find what floods the kernel log (`dmesg`), or give it more room with the boot option log_buf_len.",
    ),
)
"""Every alert, the worst first."""


def document() -> dict[str, Any]:
    """The rules file as Prometheus reads it."""
    return {"groups": [{"name": "gpuhealth.node", "rules": [alert.rule() for alert in ALERTS]}]}
