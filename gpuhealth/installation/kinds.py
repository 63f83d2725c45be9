"""The kinds of objects of which an installation consists, beyond those that agents and controller use."""

from __future__ import annotations

from gpuhealth.kube.kinds import Kind

_RBAC = "rbac.authorization.k8s.io/v1"
_ADMISSION = "admissionregistration.k8s.io"

DAEMON_SETS = Kind("apps/v1", "DaemonSet", "daemonsets", namespaced=True)
DEPLOYMENTS = Kind("apps/v1", "Deployment", "deployments", namespaced=True)
SERVICES = Kind("v1", "Service", "services", namespaced=True)
CONFIG_MAPS = Kind("v1", "ConfigMap", "configmaps", namespaced=True)
SERVICE_ACCOUNTS = Kind("v1", "ServiceAccount", "serviceaccounts", namespaced=True)
ROLES = Kind(_RBAC, "Role", "roles", namespaced=True)
ROLE_BINDINGS = Kind(_RBAC, "RoleBinding", "rolebindings", namespaced=True)
CLUSTER_ROLES = Kind(_RBAC, "ClusterRole", "clusterroles")
CLUSTER_ROLE_BINDINGS = Kind(_RBAC, "ClusterRoleBinding", "clusterrolebindings")
PRIORITY_CLASSES = Kind("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses")
RUNTIME_CLASSES = Kind("node.k8s.io/v1", "RuntimeClass", "runtimeclasses")
CUSTOM_RESOURCES = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
SUBJECT_ACCESS_REVIEWS = Kind("authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews")


def admission_kinds(version: str) -> tuple[Kind, Kind]:
    """ValidatingAdmissionPolicy and its binding, in a version of their API group such as v1."""
    api_version = f"{_ADMISSION}/{version}"
    return (
        Kind(api_version, "ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
        Kind(api_version, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
    )


ADMISSION_POLICIES, ADMISSION_BINDINGS = admission_kinds("v1")
