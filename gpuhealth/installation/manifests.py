"""What the manifests in daemonset/ apply: names, and the rights of each service account. Tests compare them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gpuhealth.api import names
from gpuhealth.api.names import GROUP

NAME_LABEL = "app.kubernetes.io/name"
COMPONENT_LABEL = "app.kubernetes.io/component"
NAME = "gpuhealth"
"""Value of the label app.kubernetes.io/name on everything that belongs to an installation."""
AGENT, CONTROLLER, PREFLIGHT, BURNIN = "agent", "controller", "preflight", "burnin"
"""Values of the label app.kubernetes.io/component."""

SETTINGS_KEY = "gpuhealth.yaml"
"""Key of the settings in the ConfigMap, and the name of their file."""
PLACEHOLDER_REGISTRY = "registry.example.com/"
"""Beginning of the images' names before a kustomization or chart value has replaced them."""
HOST_FOLDER = "/var/lib/gpuhealth"
"""Folder on each node that outlives the pods."""

INSTALL = "kubectl apply -k daemonset/"
POLICIES = (
    "gpuhealth-nodes",
    "gpuhealth-node-status",
    "gpuhealth-reports",
    "gpuhealth-slots",
    "gpuhealth-events",
    names.CONTROLLER,
    "gpuhealth-controller-reports",
    "gpuhealth-controller-slots",
    "gpuhealth-controller-events",
    "gpuhealth-burnins",
    "gpuhealth-pods",
)
"""Names of the admission policies, and of the binding of each."""


class Right(msgspec.Struct, frozen=True, order=True):
    """One right of a service account."""

    group: str
    resource: str  # with a subresource, as in roles
    verb: str
    namespace: str = ""  # OWN, or another one; empty: in all

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}"


OWN = "."
"""Stands for the namespace of the installation."""


def _rights(table: str) -> Iterator[Right]:
    """Rights from lines of `namespace resource verbs`; a resource is written as plural[.group][/subresource]."""
    for line in table.strip().splitlines():
        namespace, target, verbs = line.split()
        name, _, sub = target.partition("/")
        plural, _, group = name.partition(".")
        resource = f"{plural}/{sub}" if sub else plural
        yield from (Right(group, resource, verb, "" if namespace == "*" else namespace) for verb in verbs.split(","))


RIGHTS: dict[str, frozenset[Right]] = {
    AGENT: frozenset(
        _rights(f"""
            *        nodes                                get,list,watch,patch
            *        nodes/status                         patch
            *        quarantinebudgets.{GROUP}            list
            *        gpuhealthreports.{GROUP}             get,create,patch
            *        gpuhealthreports.{GROUP}/status      patch
            .        leases.coordination.k8s.io           create,list,update,delete
            default  events                               create,patch
            """)
    ),
    CONTROLLER: frozenset(
        _rights(f"""
            *        nodes                                get,list,watch,patch
            *        nodes/status                         patch
            *        namespaces                           list,watch
            *        pods                                 list,watch,delete
            *        pods/eviction                        create
            *        poddisruptionbudgets.policy          list
            *        events                               create
            *        gpuhealthreports.{GROUP}             get,list,watch
            *        gpuhealthreports.{GROUP}/status      patch
            *        quarantinebudgets.{GROUP}            list,watch
            *        quarantinebudgets.{GROUP}/status     patch
            .        podtemplates                         get
            .        pods                                 create,get
            .        leases.coordination.k8s.io           create,get,list,watch,update,delete
            """)
    ),
    PREFLIGHT: frozenset(
        _rights("""
            *        nodes                                get,patch
            default  events                               create,patch
            """)
    ),
}
"""The rights that each component needs. Those on objects of a fixed name are needed for that name at least."""

NAMES = frozenset(
    {
        "gpuhealth",  # ConfigMap
        names.AGENT,
        "gpuhealth-agent-events",
        "gpuhealth-auth-delegator",
        names.BURNIN_TEMPLATE,
        names.CONTROLLER,
        "gpuhealth-doctor",
        "gpuhealth-metrics-reader",
        "gpuhealth-operator",
        "gpuhealth-preflight",
        "gpuhealth-preflight-events",
        *POLICIES,
    }
)
"""Names of all objects that have no label app.kubernetes.io/name, whatever their kind; the Namespace is separate."""
