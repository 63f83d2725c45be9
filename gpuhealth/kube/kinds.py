"""The kinds of objects that are read and written, and the names of our marks."""

from __future__ import annotations

import msgspec

GROUP = "gpuhealth.io"
VERSION = f"{GROUP}/v1alpha1"

CONDITION = "GPUHealthy"
TAINT = f"{GROUP}/unhealthy"
PREFLIGHT_TAINT = f"{GROUP}/preflight"
STATE_LABEL = f"{GROUP}/state"
OVERRIDE = f"{GROUP}/override"
RELEASE_GPUS = f"{GROUP}/release-gpus"
OUT_OF_SERVICE = f"{GROUP}/out-of-service"
"""Annotation, by a person: the node is to be out of service; the value says why. Removed, the wish is over."""
RESTORED = f"{GROUP}/restored"
"""Annotation, by a person: the time at which the node was declared well; what is seen later is not meant."""
QUARANTINE = f"{GROUP}/quarantine"
"""Annotation: JSON of what we put on this Node, written in the same request as the taint it speaks of."""
RELEASED = f"{GROUP}/released"
"""Annotation: finding codes whose quarantine a person ended by removing our taint or cordon, comma-separated."""

FLEET_FINDINGS = f"{GROUP}/fleet-findings"
"""Annotation: JSON of the GPUs of this Node that differ from all others of their kind, by the controller."""

DRIVER_UPGRADE_STATE = "nvidia.com/gpu-driver-upgrade-state"
"""Label of the NVIDIA GPU operator: where the upgrade of this node's driver stands."""

DRAIN = f"{GROUP}/drain"
"""Annotation or label of a pod, label of a namespace: "false" keeps our drains away from it."""


class Kind(msgspec.Struct, frozen=True):
    """A kind of object and where the API server serves it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = False

    def path(self, name: str = "", namespace: str = "", subresource: str = "") -> str:
        """The URL path of an object, or of all objects of the kind, in one namespace where one is given."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(part for part in (f"{root}{scope}/{self.plural}", name, subresource) if part)


NODES = Kind("v1", "Node", "nodes")
NAMESPACES = Kind("v1", "Namespace", "namespaces")
PODS = Kind("v1", "Pod", "pods", namespaced=True)
POD_TEMPLATES = Kind("v1", "PodTemplate", "podtemplates", namespaced=True)
EVENTS = Kind("v1", "Event", "events", namespaced=True)
LEASES = Kind("coordination.k8s.io/v1", "Lease", "leases", namespaced=True)
REPORTS = Kind(VERSION, "GPUHealthReport", "gpuhealthreports")
BUDGETS = Kind(VERSION, "QuarantineBudget", "quarantinebudgets")
