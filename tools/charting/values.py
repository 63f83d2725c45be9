"""The values of the Helm chart, as types: values.schema.json is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpuhealth.api import budget
from gpuhealth.api.crd import manifest
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings import LONGEST_SECONDS

Quantity = Annotated[str | int | float, Field(union_mode="left_to_right")]


class _Values(BaseModel):
    """Base of all parts: unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


class Image(_Values):
    """Where a container image comes from."""

    repository: str = Field(pattern=r"^[\w.:/-]+$")
    tag: str = Field(pattern=r"^(?:[\w][\w.-]{0,127})?$")
    digest: str = Field(pattern=r"^(?:sha256:[0-9a-f]{64})?$")


class SecretName(_Values):
    """The name of a Secret with the credentials of a registry."""

    name: str = Field(min_length=1)


class Resources(_Values):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class Toleration(_Values):
    """A toleration of a pod."""

    key: str = ""
    operator: Literal["Exists", "Equal", "Lt", "Gt"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    tolerationSeconds: int = 0  # noqa: N815 - the name is that of Kubernetes


class AgentValues(_Values):
    """What can be changed of the agents' DaemonSet."""

    priorityClassName: str  # noqa: N815
    nodeLabels: dict[str, list[str]]  # noqa: N815
    resources: Resources


class ControllerValues(_Values):
    """What can be changed of the controller's Deployment."""

    replicas: int = Field(ge=0, le=10)
    priorityClassName: str  # noqa: N815
    nodeSelector: dict[str, str]  # noqa: N815
    tolerations: list[Toleration]
    resources: Resources


class PreflightValues(_Values):
    """Tests of new nodes."""

    enabled: bool
    priorityClassName: str  # noqa: N815
    tolerations: list[Toleration]
    resources: Resources


class BurninValues(_Values):
    """Burn-ins of nodes in service."""

    enabled: bool
    tolerations: list[Toleration]
    resources: Resources


class Switch(_Values):
    """A part that can be left out."""

    enabled: bool


class Prometheus(_Values):
    """Objects of the Prometheus operator."""

    enabled: bool
    labels: dict[str, str]


class Budget(_Values):
    """The QuarantineBudget that a release may have."""

    enabled: bool
    name: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")
    spec: dict[str, Any]


class Values(_Values):
    """All values of the chart."""

    image: Image
    burninImage: Image  # noqa: N815
    imagePullPolicy: Literal["", "Always", "IfNotPresent", "Never"]  # noqa: N815
    imagePullSecrets: list[SecretName]  # noqa: N815
    platform: Literal["", "aks", "gke", "openshift"]
    settings: Settings
    crds: Switch
    agent: AgentValues
    controller: ControllerValues
    preflight: PreflightValues
    burnin: BurninValues
    quarantineBudget: Budget  # noqa: N815
    admissionPolicies: Switch  # noqa: N815
    runtimeClass: Switch  # noqa: N815
    unprivileged: Switch
    secureMetrics: Switch  # noqa: N815
    prometheus: Prometheus
    global_: dict[str, Any] = Field(default={}, alias="global")  # Helm adds it when the chart is part of another


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of values.yaml."""
    made = Values.model_json_schema(ref_template="#/definitions/{model}")
    definitions = made.pop("$defs")
    definitions["Budget"]["properties"]["spec"] = _budget()
    definitions["Preflight"]["properties"]["taint"]["pattern"] = r"^[\w./-]+$"  # it is part of an expression
    definitions["MirrorCondition"]["properties"]["status_when_unhealthy"] = {"enum": ["True", "False", True, False]}
    definitions["Duration"] = {
        "description": "A duration such as 30s, 10m, 24h or 14d, or a number of seconds.",
        "type": ["string", "number"],
        "pattern": r"^(?:(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+|\d+(?:\.\d+)?)$",
        "minimum": 0,
        "maximum": LONGEST_SECONDS,
    }
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart gpuhealth"}
    schema: dict[str, Any] = _plain({**made, **whole, "definitions": dict(sorted(definitions.items()))})
    return schema


def _plain(part: Any) -> Any:
    """A part of a schema without names and defaults, which repeat others, and with durations as people write them."""
    if isinstance(part, list):
        return [_plain(each) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("le") == LONGEST_SECONDS:
        return {"$ref": "#/definitions/Duration"}
    kept = {key: value for key, value in part.items() if key != "default" and not _is_title(key, value)}
    return {key: _plain(value) for key, value in kept.items()}


def _is_title(key: str, value: Any) -> bool:
    return key == "title" and isinstance(value, str) and not value.startswith("Values of")


def _budget() -> dict[str, Any]:
    """The schema of a budget's spec, from the definition that the API server checks it with."""
    (version,) = manifest(budget.DEFINITION)["spec"]["versions"]
    return dict(_strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))


def _strict(part: Any) -> Any:
    if isinstance(part, list):
        return [_strict(each) for each in part]
    if not isinstance(part, dict):
        return part
    made = {key: _strict(value) for key, value in part.items() if not key.startswith("x-kubernetes")}
    if "properties" in part and part.get("type") == "object":
        made["additionalProperties"] = False
    return made
