"""The kinds of API objects that are read and written, and their paths."""

from __future__ import annotations

import msgspec

from gpuhealth.api import budget, report
from gpuhealth.api.names import API_VERSION


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
REPORTS = Kind(API_VERSION, report.DEFINITION.kind, report.DEFINITION.plural)
BUDGETS = Kind(API_VERSION, budget.DEFINITION.kind, budget.DEFINITION.plural)
