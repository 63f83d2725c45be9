"""Prometheus alert rules for GPU nodes and their agents.

Critical: jobs fail now or soon; page someone. Warning: look at it in working hours. Every alert has the node's name as
label `node`, also where Prometheus knows the target by an address only; of the controller's alerts, that on a suspect
driver has the label `budget` instead, and that on nodes without an agent only the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuhealth.monitors.registry import monitors

_INFO = "on (job, instance) group_left (node) gpuhealth_agent_info"
_LATELY = "[15m]"


@dataclass(frozen=True)
class Alert:
    """One alert. `advice` is for the person on call who was just paged."""

    name: str
    expr: str
    hold: str
    severity: str
    summary: str
    description: str
    advice: str

    def rule(self) -> dict[str, Any]:
        """Return the rule as Prometheus reads it."""
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
    """Return a template that lists the node's findings of a severity, each with its component."""
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
        "Jobs on the node are at risk. It gets no new jobs if a QuarantineBudget allows taking it out of service."
        " `gpuhealth node {{ $labels.node }}` shows details, `gpuhealth explain CODE` what to do about a finding.",
    ),
    Alert(
        "GPUDriverUnresponsive",
        f'gpuhealth_finding{{code="driver.unresponsive"}} * {_INFO} == 1',
        "1m",
        "critical",
        "The NVIDIA driver of {{ $labels.node }} does not respond",
        "Calls into the driver hang, and so do programs that use the GPUs.",
        "Do not kill processes that hang in the driver. Drain the node, look for XID 119, 120 and 79 in its kernel"
        " log, and reboot it.",
    ),
    Alert(
        "GPUQuarantineBlocked",
        f"gpuhealth_quarantine_blocked * {_INFO} == 1",
        "10m",
        "critical",
        "{{ $labels.node }} should be out of service and still takes work",
        "{{ if $labels.budget }}Budget {{ $labels.budget }} has no free slot for the node: as many nodes are out of"
        " service as it allows, too many have the same fault, or it cannot be read"
        '{{ else if eq $labels.limit "marks_removed" }}Another program removes the taint as often as the agent may put'
        " it back{{ else }}The agent cannot request a budget slot: it lacks a permission, or the API server refuses the"
        " request{{ end }}. The Node's condition"
        " GPUHealthy shows the reason.",
        "See `kubectl get qb` and the nodes that are out of service. If many have the same fault, suspect the driver"
        " or the check, and look into that first. Otherwise repair nodes, raise the budget, or take this node out of"
        " service with `gpuhealth quarantine {{ $labels.node }}`.",
    ),
    Alert(
        "GPUSuspectDriver",
        'sum by (job, budget, code) (gpuhealth_quarantine_blocked_nodes{limit="maxPerFault"}) > 0',
        "1m",
        "critical",
        "{{ $labels.code }} on more nodes than budget {{ $labels.budget }} allows per fault: suspect driver or check",
        "{{ $value }} nodes with this finding stay in service, because maxPerFault is reached: that many nodes went out"
        " of service for the same fault within the window.",
        "Compare driver, kernel and image of these nodes with the others (`kubectl get ghr -o wide`), and see"
        " `gpuhealth explain {{ $labels.code }}`. If the check is wrong, disable it with the setting"
        " findings.{{ $labels.code }}.quarantine: false. If the nodes are faulty, raise maxPerFault.",
    ),
    Alert(
        "GPUNodeUnknown",
        f'gpuhealth_verdict{{verdict="unknown"}} * {_INFO} == 1',
        "10m",
        "warning",
        "Health of GPU node {{ $labels.node }} is unknown",
        "An essential check cannot run, or the agent no longer completes its rounds.",
        "`gpuhealth node {{ $labels.node }}` and the agent's log show what is missing.",
    ),
    Alert(
        "GPUNodesUnwatched",
        "sum by (job, reason) (gpuhealth_unwatched_nodes) > 0",
        "15m",
        "warning",
        "{{ $labels.reason }}: {{ $value }} nodes with GPUs have no working gpuhealth agent",
        "Faults of their GPUs go unnoticed, and no such node counts as healthy.",
        "`gpuhealth fleet` lists them. `no_agent`: the DaemonSet does not select the node (label it"
        " gpuhealth.io/agent=true), or cannot make its Pod there. `agent_silent`: see the agent's Pod and its log."
        " `no_report`: the agent lacks a permission, or has the name of another node.",
    ),
    Alert(
        "GPUHealthMarksRemoved",
        f'increase(gpuhealth_marks_removed_total{{by="program"}}{_LATELY}) * {_INFO} > 0',
        "0s",
        "warning",
        "A program has removed the mark that keeps work off {{ $labels.node }}",
        "The agent puts its taint or cordon back, but only a few times an hour: then the node takes work again.",
        "The Event MarksRemoved names the program: make it leave the taint gpuhealth.io/unhealthy alone. If it was a"
        " person, use `gpuhealth restore {{ $labels.node }}`, or add the program to the setting quarantine.people.",
    ),
    Alert(
        "GPUHealthAgentDown",
        "max by (job, instance, node) (last_over_time(gpuhealth_agent_info[1d])) and on (job, instance) up == 0",
        "5m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} is down",
        "Prometheus cannot scrape it, and the health of this node is unknown.",
        "Check that the node is up (`kubectl get node {{ $labels.node }}`), then the agent's Pod on it and its log.",
    ),
    Alert(
        "GPUNodeDegraded",
        f'gpuhealth_verdict{{verdict="degraded"}} * {_INFO} == 1',
        "12h",
        "warning",
        "GPU node {{ $labels.node }} has been degraded for 12 hours",
        f"Warnings: {findings('warning')}",
        "`gpuhealth explain CODE` shows what to do about each; for many, reset the GPU between two jobs.",
    ),
    Alert(
        "GPUHealthNotChecked",
        f'gpuhealth_not_checked{{check=~"{_ESSENTIALS}"}} * {_INFO} == 1',
        "15m",
        "warning",
        "Essential check {{ $labels.check }} does not run on {{ $labels.node }}",
        "Reason: {{ $labels.reason }}. A fault that it would find goes unnoticed.",
        "`released`: the agent has closed the driver on request; `gpuhealth_released` shows which one. Remove the"
        " annotation gpuhealth.io/release-gpus, end the work that a label announces (driver upgrade, MIG change), or"
        " send SIGUSR1 again."
        " `no_permission`, `not_installed`: check the Pod's mounts and permissions. Otherwise see the agent's log.",
    ),
    Alert(
        "GPUHealthClusterUnreachable",
        f'(sum by (job, instance) (rate(gpuhealth_kube_requests_total{{status=~"0|401|403|5.."}}[10m])) > 0'
        f' unless sum by (job, instance) (rate(gpuhealth_kube_requests_total{{status=~"2.."}}[10m])) > 0)'
        f" * {_INFO}",
        "15m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} cannot reach the API server",
        "Its findings are kept on the node. Until it can connect, taint and condition of the Node are not updated.",
        "See the status codes in gpuhealth_kube_requests_total: 0 means no answer (network), 401 and 403 mean missing"
        " permissions.",
    ),
    Alert(
        "GPUHealthAgentFailing",
        f"increase(gpuhealth_loop_failures_total{_LATELY}) * {_INFO} > 0",
        "5m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} has internal errors",
        "Unexpected errors in its loop {{ $labels.loop }}: do not rely on the work of that loop.",
        "The agent's log has the tracebacks; please report them as a bug.",
    ),
    Alert(
        "GPUHealthJournalFailing",
        f"increase(gpuhealth_agent_journal_errors_total{_LATELY}) * {_INFO} > 0",
        "5m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} cannot write its journal",
        "Its findings would not survive a restart.",
        "Check whether the disk of journal.path is full or read-only.",
    ),
    Alert(
        "GPUHealthConfigInvalid",
        f"gpuhealth_agent_config_valid * {_INFO} == 0",
        "5m",
        "warning",
        "The gpuhealth agent of {{ $labels.node }} has rejected its changed configuration",
        "The settings before the change are still in force.",
        "The agent's log shows what is wrong in the file (event `configuration rejected`).",
    ),
    Alert(
        "GPUHealthKernelRecordsLost",
        f"increase(gpuhealth_agent_kmsg_lost_records_total{_LATELY}) * {_INFO} > 0",
        "0s",
        "warning",
        "The agent of {{ $labels.node }} has missed kernel-log records",
        "They were overwritten before the agent could read them. XIDs may have been among them.",
        "Find what floods the kernel log (`dmesg`), or enlarge its buffer with the boot option log_buf_len.",
    ),
)
"""All alerts, the most severe first."""


def document() -> dict[str, Any]:
    """Return the content of the rules file."""
    return {"groups": [{"name": "gpuhealth.node", "rules": [alert.rule() for alert in ALERTS]}]}
