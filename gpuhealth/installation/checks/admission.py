"""Are the admission policies in force, and do their literals agree with the settings?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from gpuhealth.api.names import BURNIN_TEMPLATE
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.kinds import admission_kinds
from gpuhealth.installation.manifests import POLICIES
from gpuhealth.installation.problem import CannotCheckError, Problem, error, info, some_of, warning
from gpuhealth.kube.client import Object
from gpuhealth.kube.kinds import POD_TEMPLATES, Kind
from gpuhealth.monitors.settings import Settings

_APPLY = "kubectl apply -k daemonset/admission"
_GROUP = "admissionregistration.k8s.io"
_LITERAL = re.compile(r"\s*(?:'([^']*)'|\"([^\"]*)\")\s*")
_LIST = re.compile(r"\s*\[(.*)\]\s*", re.DOTALL)
_TEXT = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_PATCH = "patch the variable as daemonset/admission/kustomization.yaml shows"
_ACCOUNT = re.compile(r"system:serviceaccount:([a-z0-9-]+):")
_WARNING_CHARACTERS = 200


class Installed(NamedTuple):
    """What the policies have to agree with."""

    namespace: str
    literals: Mapping[str, str]  # values of variables by their names
    conditions: tuple[str, ...] = ()  # types that the agents write besides GPUHealthy
    cordons: tuple[str, ...] = ()  # codes and patterns of findings for which the settings ask for a cordon


async def check(cluster: Cluster) -> list[Problem]:
    """Every policy of daemonset/admission, and its binding."""
    versions = await cluster.request(cluster.client.served_versions(_GROUP), "its API groups")
    served = [version.rpartition("/")[2] for version in versions]
    for version in ("v1", "v1beta1"):
        if version in served:
            try:
                return await _check(cluster, version)
            except CannotCheckError as reason:
                if reason.supported:
                    raise
    raise CannotCheckError("this server has no ValidatingAdmissionPolicy (Kubernetes 1.30 has)", supported=False)


async def _check(cluster: Cluster, version: str) -> list[Problem]:
    kinds = admission_kinds(version)
    policies, bindings = [await cluster.objects(kind) for kind in kinds]
    settings = await cluster.settings()
    literals = {
        "mode": settings.mode,
        "preflightTaint": settings.preflight.taint,
        "cordonReason": settings.quarantine.cordon_reason,
    }
    template = await cluster.get(POD_TEMPLATES, BURNIN_TEMPLATE, await cluster.namespace())
    if template is not None:
        containers = ((template.get("template") or {}).get("spec") or {}).get("containers") or [{}]
        literals["image"] = str(containers[0].get("image") or "")
    mirrors = tuple(mirror.type for mirror in settings.conditions)
    installed = Installed(await cluster.namespace(), literals, mirrors, _cordons(settings))
    problems = list(judge(policies, bindings, installed))
    ours = [binding for binding in bindings if binding["spec"].get("policyName") in POLICIES]
    missing = [await missing_parameter(cluster, policies, binding) for binding in ours]
    return problems + [problem for problem in missing if problem]


async def missing_parameter(cluster: Cluster, policies: Iterable[Object], binding: Object) -> Problem | None:
    """A problem where the binding names a parameter object that does not exist: the policy then denies requests."""
    reference, name = binding["spec"].get("paramRef") or {}, binding["spec"]["policyName"]
    kinds = {item["metadata"]["name"]: (item["spec"].get("paramKind") or {}) for item in policies}
    kind = kinds.get(name) or {}
    if not (reference.get("name") and kind):
        return None
    plural = f"{kind['kind'].lower()}s"  # the regular plural, as of ConfigMap and of our own kinds
    namespace = reference.get("namespace") or ""
    found = await cluster.get(
        Kind(kind["apiVersion"], kind["kind"], plural, bool(namespace)), reference["name"], namespace
    )
    if found is not None:
        return None
    where = f"{namespace}/{reference['name']}" if namespace else reference["name"]
    text = (
        f"the policy {name} has the parameter {kind['kind']} {where}, which is missing: it may deny requests of others"
    )
    return error(text, "create it, or delete the binding", [name])


def judge(policies: Iterable[Object], bindings: Iterable[Object], installed: Installed) -> Iterator[Problem]:
    """The problems of the policies and bindings of a cluster."""
    known = {policy["metadata"]["name"]: policy for policy in policies}
    bound = {binding["spec"].get("policyName"): binding for binding in bindings}
    absent = [name for name in POLICIES if name not in known]
    if len(absent) == len(POLICIES):
        text = "the admission policies are not installed: a stolen token of one agent can change every Node"
        yield warning(text, _APPLY)
        return
    if absent:
        yield error(f"admission policies are missing: {some_of(absent)}", _APPLY, absent)
    for name in POLICIES:
        if name in known:
            yield from _policy(known[name], installed)
            yield from _binding(name, bound.get(name))


def _policy(policy: Object, installed: Installed) -> Iterator[Problem]:
    name, spec, status = policy["metadata"]["name"], policy["spec"], policy.get("status") or {}
    warnings = (status.get("typeChecking") or {}).get("expressionWarnings") or []
    if warnings:
        first = warnings[0]
        reason = " ".join(str(first.get("warning") or "").split())[:_WARNING_CHARACTERS]
        text = f"the policy {name} does not compile, in {first.get('fieldRef')}: {reason}"
        yield error(text, f"{_APPLY} of this command's version; report it if it stays", [name])
    elif status.get("observedGeneration") != policy["metadata"].get("generation"):
        yield info(f"the API server has not checked the expressions of the policy {name} yet", "", [name])
    for variable in spec.get("variables") or []:
        expected = installed.literals.get(variable.get("name", ""))
        found = _LITERAL.fullmatch(str(variable.get("expression") or ""))
        value = found and (found[1] if found[1] is not None else found[2])
        if (
            expected is not None
            and value is not None
            and value != expected
            and not _agrees(variable["name"], value, expected)
        ):
            text = f"the policy {name} has {variable['name']} '{value}', and the installation has '{expected}'"
            yield error(text, _PATCH, [name])
        yield from _list(name, variable, installed)
    expressions = " ".join(str(each.get("expression")) for each in spec.get("matchConditions") or [])
    if (named := set(_ACCOUNT.findall(expressions))) and installed.namespace not in named:
        text = (
            f"the policy {name} is for the namespace {some_of(sorted(named))}, and agents run in {installed.namespace}"
        )
        yield error(text, "use the component daemonset/admission/follow", [name])


def _cordons(settings: Settings) -> tuple[str, ...]:
    """The codes and patterns for which the settings, of all nodes or of some, ask for a cordon in mode taint."""
    if settings.mode != "taint":
        return ()
    policies = [settings.findings, *(pool.findings for pool in settings.pools)]
    return tuple(dict.fromkeys(code for found in policies for code, policy in found.items() if policy.cordon))


def _list(name: str, variable: Object, installed: Installed) -> Iterator[Problem]:
    """A problem where a list of the policy lacks what the settings make agents write."""
    listed = _LIST.fullmatch(str(variable.get("expression") or ""))
    if listed is None:
        return
    values = tuple(found[1] or found[2] or "" for found in _TEXT.finditer(listed[1]))
    lacking: list[str] = []
    if variable.get("name") == "conditions":
        lacking = [kind for kind in installed.conditions if kind not in values]
    elif variable.get("name") == "cordonCodes":
        lacking = [code for code in installed.cordons if not code.startswith(values)]
    if lacking:
        text = f"the policy {name} refuses {some_of(lacking)} of the settings, which its {variable['name']} lack"
        yield error(text, _PATCH, [name])


def _agrees(variable: str, value: str, expected: str) -> bool:
    """Whether a literal that differs from the setting denies nothing: only mode cordon needs a literal of its own."""
    return variable == "mode" and "cordon" not in {value, expected}


def _binding(name: str, binding: Object | None) -> Iterator[Problem]:
    if binding is None:
        yield error(f"the policy {name} has no binding: it is not in force", _APPLY, [name])
    elif "Deny" not in (binding["spec"].get("validationActions") or []):
        yield warning(f"the binding of the policy {name} does not deny", "set validationActions: [Deny]", [name])
