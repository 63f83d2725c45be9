"""Names and values used by other programs: conditions, taints, labels, annotations, Lease and pod names.

Each is defined only here, with its writer and its readers. Kinds of objects and their paths are in
`gpuhealth.kube.kinds`, the fields of our own kinds in `report` and `budget`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

GROUP = "gpuhealth.io"
"""API group of our kinds, and prefix of our taints, labels and annotations."""
API_VERSION = f"{GROUP}/v1alpha1"
"""Version of our kinds: GPUHealthReport and QuarantineBudget."""

# --- conditions -------------------------------------------------------------------------------------------------------

CONDITION = "GPUHealthy"
"""Condition of a Node. Written by the agent, and by the controller where the agent is silent; for people and alerts."""
FAULT_LIMIT_REACHED = "FaultLimitReached"
"""Condition of a QuarantineBudget: maxPerFault keeps nodes in service. Written by the controller, for people."""


class ConditionReason(enum.StrEnum):
    """Reasons of the condition GPUHealthy. With a finding it is the worst code in CamelCase: xid.79 is Xid79."""

    HEALTHY = "Healthy"  # by the agent: no finding
    NOT_MEASURED = "NotMeasured"  # by the agent: no finding, and an essential check could not be made
    DRIVER_RELEASED = "DriverReleased"  # by the agent: no finding, and NVML is closed on request
    OVERRIDE = "Override"  # by the agent: a person declared the node healthy
    OUT_OF_SERVICE = "OutOfService"  # by the agent: manual quarantine by a person
    AGENT_SILENT = "AgentSilent"  # by the controller: no agent is ready on the node; read by the commands


# --- taints -----------------------------------------------------------------------------------------------------------

TAINT = f"{GROUP}/unhealthy"
"""Taint of a quarantined Node; its value is a finding's code or MANUAL. Written by the agent, obeyed by schedulers.

A node that is out of service is cordoned instead in mode cordon, and for findings that pods of the GPU stack repair.
"""
PREFLIGHT_TAINT = f"{GROUP}/preflight"
"""Taint of a Node to be tested before it gets work; its value is PENDING or FAILED. Default of `preflight.taint`.

Written by kubelet when a node registers, or by the agent after a reboot; removed by a preflight that passed.
"""
PENDING = "pending"
"""Value of the preflight taint until the tests have ended."""
FAILED = "failed"
"""Value of the preflight taint after a test failed. Written by the preflight."""
MANUAL = "manual"
"""Replaces a finding's code in the taint and in the quarantine record: manual quarantine by a person."""
UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"
"""Taint of a cordoned Node. Written by Kubernetes; tolerated by burn-ins of nodes that are out of service."""

# --- labels of Nodes --------------------------------------------------------------------------------------------------

STATE_LABEL = f"{GROUP}/state"
"""Label of a Node: a NodeState. Written by agent, preflight and controller; for selectors and people.

`gpuhealth.quarantine.state` has the table of its transitions.
"""


class NodeState(enum.StrEnum):
    """Values of the label gpuhealth.io/state."""

    PREFLIGHT = "preflight"  # by the agent: the preflight taint is there; the preflight's DaemonSet selects it
    HEALTHY = "healthy"  # by the agent
    DEGRADED = "degraded"  # by the agent
    UNHEALTHY = "unhealthy"  # by the agent: in service, for instance because a budget blocks the quarantine
    UNKNOWN = "unknown"  # by the agent: in service, and an essential check could not be made
    QUARANTINED = "quarantined"  # by the agent: out of service
    DRAINING = "draining"  # by the controller: out of service, and its pods are being evicted
    DRAINED = "drained"  # by the controller: out of service, and no pod is left to evict
    TESTING = "testing"  # by the controller: in service, and a periodic burn-in runs


POOL_LABEL = f"{GROUP}/pool"
"""Label of a Node: its pool. Set by people, and the first of the default `controller.pool_labels`."""
AGENT_LABEL = f"{GROUP}/agent"
"""Label of a Node: "true" runs an agent on it even without a label of NVIDIA's. Set by people."""
GPU_NODE_LABELS: Mapping[str, tuple[str, ...]] = {
    "nvidia.com/gpu.present": ("true",),  # GPU operator, GPU feature discovery
    AGENT_LABEL: ("true",),
    "nvidia.com/gpu": ("true", "present"),  # set by people on many clouds
    "feature.node.kubernetes.io/pci-10de.present": ("true",),  # node feature discovery: any function of NVIDIA's
    "feature.node.kubernetes.io/pci-0302_10de.present": ("true",),  # 3D controllers
    "feature.node.kubernetes.io/pci-0300_10de.present": ("true",),  # display controllers
    "cloud.google.com/gke-accelerator": (),  # GKE
    "kubernetes.azure.com/accelerator": ("nvidia",),  # AKS
    "karpenter.azure.com/sku-gpu-manufacturer": ("nvidia",),
    "k8s.amazonaws.com/accelerator": (),  # EKS node groups, for the Cluster Autoscaler
    "eks.amazonaws.com/instance-gpu-manufacturer": ("nvidia",),  # EKS Auto Mode
    "karpenter.k8s.aws/instance-gpu-manufacturer": ("nvidia",),
    "doks.digitalocean.com/gpu-brand": ("nvidia",),
}
"""Labels of Nodes that have GPUs of NVIDIA's, with the values that say so; without values, any.

Set by the platform; the agents' DaemonSet selects them, and controller and commands expect an agent on such a node.
"""
DRIVER_UPGRADE_STATE = "nvidia.com/gpu-driver-upgrade-state"
"""Label of a Node: stage of a driver upgrade. Written by the NVIDIA GPU operator; the agent closes NVML in time.

`gpuhealth.quarantine.driver_work` has all labels that announce work on the driver.
"""

# --- annotations of Nodes ---------------------------------------------------------------------------------------------

OVERRIDE = f"{GROUP}/override"
"""Annotation: an Override that takes precedence over the findings. Set by people; applied by agent and controller."""


class Override(enum.StrEnum):
    """Values of the annotation gpuhealth.io/override."""

    HEALTHY = "healthy"  # marked healthy, regardless of findings
    UNMANAGED = "unmanaged"  # not marked at all


OUT_OF_SERVICE = f"{GROUP}/out-of-service"
"""Annotation: why the node should be out of service. Set by people, obeyed by the agent until it is removed."""
RESTORED = f"{GROUP}/restored"
"""Annotation: time at which the node was declared healthy. Set by people; the agent clears earlier findings."""
RELEASE_GPUS = f"{GROUP}/release-gpus"
"""Annotation: "true" while the driver should be closed. Set by people; the agent closes NVML until it is removed."""
QUARANTINE = f"{GROUP}/quarantine"
"""Annotation: JSON record of the agent's changes to the Node, written in the request that makes them.

Only recorded changes may be removed by the agent. Written and read by the agent, read by controller and commands.
"""
CORDON_REASON = "gpuhealth: "
"""Begins the value of the annotation `quarantine.cordon_reason` of a Node that we have cordoned; then the code."""
DISMISSED = f"{GROUP}/dismissed"
"""Annotation: finding codes, comma-separated, whose quarantine a person ended by removing our taint or cordon.

Written and obeyed by the agent until those findings have cleared.
"""
FLEET_FINDINGS = f"{GROUP}/fleet-findings"
"""Annotation: JSON list of the Node's GPUs that differ from all others of their model.

Written by the controller; the agent makes a finding of each.
"""

# --- pods and namespaces ----------------------------------------------------------------------------------------------

DRAIN = f"{GROUP}/drain"
"""Annotation or label of a pod, label of a namespace: "false" exempts it from drains. Set by people."""
GPU_RESOURCE = "nvidia.com/gpu"
"""Extended resource for whole GPUs. Offered by NVIDIA's device plugin; requested by burn-in pods."""
AGENT_PODS = "app.kubernetes.io/name=gpuhealth,app.kubernetes.io/component=agent"
"""Selector of the agents' pods. The DaemonSet sets these labels; the controller watches the pods."""
BURNIN_PODS = "app.kubernetes.io/name=gpuhealth,app.kubernetes.io/component=burnin"
"""Selector of burn-in pods. The PodTemplate sets these labels; the controller watches the pods."""
BURNIN_TEMPLATE = "gpuhealth-burnin"
"""Name of the PodTemplate of burn-in pods. Applied by people, read by the controller."""
BURNIN_REASON_LABEL = f"{GROUP}/burnin-reason"
"""Label of a burn-in pod: why it runs, periodic or return. Written and read by the controller."""
BURNIN_NODE = f"{GROUP}/node"
"""Annotation of a burn-in pod: the node that it tests. Written and read by the controller."""

# --- Leases -----------------------------------------------------------------------------------------------------------

CONTROLLER_LEASE = "gpuhealth-controller"
"""Name of the Lease of the leading controller. Default of `controller.election.lease`."""
BUDGET_LABEL = f"{GROUP}/budget"
"""Label of a budget slot: its QuarantineBudget. Written by the client that takes it; selected by agents, controller."""
SLOT_SET_LABEL = f"{GROUP}/slot-set"
"""Label of a budget slot: its set within the budget. Written by the client that takes it; agents select by it."""
SLOT_NODE_LABEL = f"{GROUP}/node"
"""Label of a budget slot: the node that holds it. Written by the client that takes it; agents find slots by it."""
UNAVAILABLE_SLOTS = "unavailable"
"""Set of maxUnavailable: slots are named `<budget>.<k>`, and held while a node is out."""
WINDOW_SLOTS = "window"
"""Set of maxPerWindow: slots are named `<budget>.window.<k>`, and run out after the window."""
FAULT_SLOTS = "fault"
"""Sets of maxPerFault: slots are named `<budget>.fault.<code>.<k>`, and run out after the window."""

PEOPLE = (
    "kubectl*",
    "oc",
    "k9s",
    "lens",
    "openlens",
    "freelens",
    "node-fetch",
    "headlamp*",
    "mozilla",
    "dashboard*",
    "kubernetes-dashboard*",
    "octant",
    "aptakube",
    "gpuhealth",
)
"""Field managers of the programs that people use, as patterns: command lines, desktop programs, and web pages.

A client that names no field manager gets the first part of its user agent: Mozilla for a web page, node-fetch for Lens.
Default of `quarantine.people`.
"""

# --- who writes -------------------------------------------------------------------------------------------------------

NAMESPACE = "gpuhealth"
"""Namespace of agents, controller and Leases. Default of `kubernetes.namespace`."""
AGENT = "gpuhealth-agent"
"""Source of the agents' Events; `gpuhealth node` shows the Events whose source has gpuhealth in its name."""
CONTROLLER = "gpuhealth-controller"
"""Source of the controller's Events."""
RESERVED_SLOT_PREFIX = f"{CONTROLLER}/"
"""Prefix of the node's name in the holder of a slot that the controller took for it; node names have no slash."""
