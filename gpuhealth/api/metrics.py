"""Metrics used by dashboards, alerts and people: name, type, help and labels of each.

The metrics of a monitor are defined in `gpuhealth/monitors/*/metric_names.py`. No label has a value taken from the text
of a log.
"""

from __future__ import annotations

import enum

import msgspec


class MetricType(enum.StrEnum):
    """Type of a metric in Prometheus."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """Declaration of a metric."""

    name: str  # with prefix, and with _total for a counter
    type: MetricType
    help: str
    labels: tuple[str, ...]


def gauge(name: str, text: str, *labels: str) -> Metric:
    """Declare the gauge gpuhealth_NAME."""
    return Metric(name=f"gpuhealth_{name}", type=MetricType.GAUGE, help=text, labels=labels)


def counter(name: str, text: str, *labels: str) -> Metric:
    """Declare the counter gpuhealth_NAME_total."""
    return Metric(name=f"gpuhealth_{name}_total", type=MetricType.COUNTER, help=text, labels=labels)


# --- agent and controller ---------------------------------------------------------------------------------------------

KUBE_REQUESTS = counter("kube_requests", "Requests to the API server; status 0 means no answer", "method", "status")
LOOP_FAILURES = counter("loop_failures", "Unexpected errors by loop", "loop")

# --- agent: the node --------------------------------------------------------------------------------------------------

NODE_HEALTHY = gauge("node_healthy", "1 while the node can be trusted with work")
VERDICT = gauge("verdict", "1 for the node's verdict", "verdict")
GPU_VERDICT = gauge("gpu_verdict", "1 for the current verdict of each GPU, missing GPUs included", "gpu", "verdict")
COMPONENT_VERDICT = gauge(
    "component_verdict",
    "1 for the current verdict of each component that is not a GPU",
    "kind",
    "component",
    "parent",
    "verdict",
)
FINDING = gauge("finding", "1 while a finding is active", "code", "severity", "kind", "component", "parent")
FINDINGS = counter("findings", "Findings raised", "code")
XID_ERRORS = counter("xid_errors", "XIDs of the kernel log or NVML; unknown ones are xid=other", "xid", "gpu")
KERNEL_EVENTS = counter("kernel_events", "Kernel-log records that were recognised", "kind")
NOT_CHECKED = gauge("not_checked", "1 for a check that could not be made", "check", "reason")
CHECK_LAST_SUCCESS = gauge(
    "check_last_success_timestamp_seconds", "Time at which a check last read all it needs", "check"
)
QUARANTINE_BLOCKED = gauge(
    "quarantine_blocked",
    "1 while the node should be out of service and is not: it finds no free slot (limit error: none could be sought;"
    " limit marks_removed: another program removes its marks)",
    "budget",
    "limit",
    "code",
)

MARKS_REMOVED = counter(
    "marks_removed", "Taints and cordons of the agent that another client has removed, by person or program", "by"
)

# --- agent: its own process -------------------------------------------------------------------------------------------

AGENT_INFO = gauge("agent_info", "Version and node of the agent", "version", "node")
AGENT_ROUNDS = counter("agent_rounds", "Rounds completed", "monitor")
AGENT_LAST_ROUND = gauge("agent_last_round_timestamp_seconds", "Time at which the last round ended", "monitor")
AGENT_ROUND_SECONDS = gauge("agent_round_seconds", "Time that reading the last round took", "monitor")
AGENT_JUDGE_SECONDS = gauge("agent_judge_seconds", "Time that the checks of the last round took", "monitor")
AGENT_MONITOR_TIMEOUTS = counter(
    "agent_monitor_timeouts", "Rounds in which nothing was read before the deadline", "monitor"
)
AGENT_MONITOR_ERRORS = counter("agent_monitor_errors", "Rounds in which reading raised an error", "monitor")
AGENT_CHECK_ERRORS = counter("agent_check_errors", "Checks that raised an error", "monitor")
AGENT_KMSG_RECORDS = counter("agent_kmsg_records", "Kernel-log records read")
AGENT_KMSG_LOST_RECORDS = counter("agent_kmsg_lost_records", "Kernel-log records overwritten before they were read")
AGENT_KMSG_LAG = gauge("agent_kmsg_lag_seconds", "Age of the last kernel-log record when it was read")
AGENT_JOURNAL_ERRORS = counter("agent_journal_errors", "Journal writes that failed")
AGENT_UNREADABLE_OBJECTS = counter("agent_unreadable_objects", "Versions of API objects that could not be read", "kind")
AGENT_CONFIG_VALID = gauge("agent_config_valid", "0 while the configuration file is not usable")
AGENT_MEMORY = gauge("agent_resident_memory_bytes", "Resident memory", "process")
AGENT_METRICS_ERRORS = counter(
    "agent_metrics_errors", "Times that a collector failed, so that its metrics are missing or incomplete", "collector"
)

# --- controller: the fleet --------------------------------------------------------------------------------------------

FLEET_NODES = gauge("fleet_nodes", "GPU nodes", "state", "pool")
UNWATCHED_NODES = gauge(
    "unwatched_nodes",
    "Nodes with GPUs and without a working agent: there is no agent, it is silent, or there is no report",
    "reason",
    "pool",
)
FLEET_GPUS = gauge("fleet_gpus", "GPUs; those of a silent agent are unknown", "verdict", "model")
FLEET_FINDING = gauge("fleet_finding", "1 for a GPU that differs from all others of its model", "code", "node", "gpu")
AGENTS_SILENT = gauge("agents_silent", "GPU nodes without a ready agent")
BUDGET_USED = gauge("budget_used", "Slots of a budget that are taken", "budget")
BUDGET_LIMIT = gauge("budget_limit", "Nodes that a budget allows to be out of service at once", "budget")
BUDGET_UNCOUNTED_NODES = gauge(
    "budget_uncounted_nodes",
    "Quarantined nodes that hold no slot of a budget that selects them",
    "budget",
)
QUARANTINE_BLOCKED_NODES = gauge(
    "quarantine_blocked_nodes",
    "Nodes that should be out of service and find no free slot, by the limit that blocks them",
    "budget",
    "limit",
    "code",
)
DRAIN_NODES = gauge("drain_nodes", "Nodes to be drained", "phase")
DRAIN_EVICTIONS = counter("drain_evictions", "Attempts to evict or delete a pod in a drain", "result")
BURNIN_RUNNING = gauge("burnin_running", "Burn-in pods that run or wait to be scheduled", "reason")
BURNIN_TESTS = counter("burnin_tests", "Burn-ins that have ended", "outcome")

# --- controller: its own process --------------------------------------------------------------------------------------

CONTROLLER_INFO = gauge("controller_info", "Version and identity of the controller", "version", "identity")
CONTROLLER_LEADING = gauge("controller_leading", "1 for the controller that holds the Lease")
CONTROLLER_UNREADABLE_OBJECTS = counter(
    "controller_unreadable_objects", "Versions of API objects that could not be read", "kind"
)
CONTROLLER_METRICS_ERRORS = counter(
    "controller_metrics_errors",
    "Times that a collector failed, so that its metrics are missing or incomplete",
    "collector",
)
