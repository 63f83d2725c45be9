"""Are the custom resources defined, served, and of this command's version?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpuhealth import __version__
from gpuhealth.api import budget, crd, report
from gpuhealth.api.names import API_VERSION
from gpuhealth.api.resource import Definition
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.kinds import CUSTOM_RESOURCES
from gpuhealth.installation.problem import Problem, error, some_of, warning
from gpuhealth.kube.client import Object

_APPLY = "kubectl apply -k daemonset/crds"
_VERSION = API_VERSION.rpartition("/")[2]


async def check(cluster: Cluster) -> list[Problem]:
    """Both CustomResourceDefinitions: present, established, with every field that this version writes."""
    problems: list[Problem] = []
    for definition in (report.DEFINITION, budget.DEFINITION):
        found = await cluster.get(CUSTOM_RESOURCES, crd.name_of(definition))
        problems += judge(definition, found)
    return problems


def judge(definition: Definition, found: Object | None) -> Iterator[Problem]:
    """The problems of one CustomResourceDefinition as the API server has it; None if it has none."""
    name = crd.name_of(definition)
    if found is None:
        yield error(f"the CustomResourceDefinition {name} is missing", _APPLY, [name])
        return
    conditions = {each["type"]: each for each in (found.get("status") or {}).get("conditions") or []}
    established = conditions.get("Established", {})
    if established.get("status") != "True":
        reason = conditions.get("NamesAccepted", {}).get("message") or established.get("message") or "no reason given"
        yield error(f"the CustomResourceDefinition {name} is not established: {reason}", _APPLY, [name])
    versions = {version["name"]: version for version in found["spec"]["versions"]}
    served = versions.get(_VERSION)
    if served is None or not served.get("served"):
        yield error(f"the CustomResourceDefinition {name} does not serve {_VERSION}", _APPLY, [name])
        return
    theirs, ours = _schema(served), _schema(crd.manifest(definition)["spec"]["versions"][0])
    if missing := sorted(set(_fields(ours)) - set(_fields(theirs))):
        yield error(
            f"the CustomResourceDefinition {name} is older than this command ({__version__}): it lacks"
            f" {some_of(missing)}, which the API server drops",
            _APPLY,
            [name],
        )
    elif _bare(theirs) != _bare(ours):
        yield warning(
            f"the CustomResourceDefinition {name} is not that of this command ({__version__})", _APPLY, [name]
        )


def _schema(version: Object) -> Object:
    schema: Object = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    return schema


def _fields(schema: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields in a schema."""
    if not isinstance(schema, dict):
        return
    for name, part in (schema.get("properties") or {}).items():
        yield f"{path}.{name}".lstrip(".")
        yield from _fields(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        yield from _fields(schema.get(key), f"{path}[]")


def _bare(schema: Any, *, properties: bool = False) -> Any:
    """A schema without descriptions; `properties`: whether the keys are names of fields."""
    if isinstance(schema, dict):
        return {
            key: _bare(value, properties=key == "properties" and not properties)
            for key, value in schema.items()
            if properties or key != "description"
        }
    return [_bare(item) for item in schema] if isinstance(schema, list) else schema
