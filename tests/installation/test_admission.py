"""Admission policies as a server since 1.30 shows them: objects of the manifests, with a status.

The servers on which the other tests run have no such policies. The objects are those that `kubectl kustomize` builds,
and their status has the form that Kubernetes documents.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable

import pytest
from kube import ControlPlane, Document
from testing.kubectl import built
from testing.paths import BASE

from gpuhealth.installation.checks.admission import Installed, judge, missing_parameter
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.problem import Level, Problem
from gpuhealth.kube.client import Client

ALL = built(BASE / "admission")
TYPE_ERROR = {
    "fieldRef": "spec.validations[0].expression",
    "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n",
}
IMAGE = next(
    variable["expression"].strip("'")
    for policy in ALL
    for variable in policy["spec"].get("variables", [])
    if variable["name"] == "image"
)
INSTALLED = Installed(
    "gpuhealth",
    {"mode": "taint", "preflightTaint": "gpuhealth.io/preflight", "cordonReason": "", "image": IMAGE},
)


def installed() -> tuple[list[Document], list[Document]]:
    """Policies and bindings after the server has checked the expressions."""
    policies, bindings = [], []
    for item in copy.deepcopy(ALL):
        if item["kind"] == "ValidatingAdmissionPolicy":
            item["metadata"]["generation"] = 1
            item["status"] = {"observedGeneration": 1, "typeChecking": {}}
            policies.append(item)
        else:
            bindings.append(item)
    return policies, bindings


def named(items: list[Document], name: str) -> Document:
    """The object of this name."""
    return next(item for item in items if item["metadata"]["name"] == name)


def test_nothing_wrong() -> None:
    """The policies of the manifests, bound and checked, have no problem."""
    assert list(judge(*installed(), INSTALLED)) == []


def test_not_installed() -> None:
    """A server that could have the policies and has none is a warning."""
    (problem,) = judge([], [], INSTALLED)
    assert problem.level is Level.WARNING
    assert "a stolen token of one agent can change every Node" in problem.message


def _missing(policies: list[Document], _bindings: list[Document]) -> None:
    policies.remove(named(policies, "gpuhealth-nodes"))


def _does_not_compile(policies: list[Document], _bindings: list[Document]) -> None:
    named(policies, "gpuhealth-nodes")["status"]["typeChecking"] = {"expressionWarnings": [TYPE_ERROR]}


def _not_checked(policies: list[Document], _bindings: list[Document]) -> None:
    named(policies, "gpuhealth-nodes")["metadata"]["generation"] = 2


def _not_bound(_policies: list[Document], bindings: list[Document]) -> None:
    bindings.remove(named(bindings, "gpuhealth-nodes"))


def _audits(_policies: list[Document], bindings: list[Document]) -> None:
    named(bindings, "gpuhealth-nodes")["spec"]["validationActions"] = ["Audit"]


BROKEN: dict[str, tuple[Callable[[list[Document], list[Document]], None], Level, str]] = {
    "missing": (_missing, Level.ERROR, "admission policies are missing: gpuhealth-nodes"),
    "compile": (_does_not_compile, Level.ERROR, "does not compile, in spec.validations[0].expression: apps/v1"),
    "unchecked": (_not_checked, Level.INFO, "has not checked the expressions of the policy gpuhealth-nodes yet"),
    "unbound": (_not_bound, Level.ERROR, "the policy gpuhealth-nodes has no binding"),
    "audit": (_audits, Level.WARNING, "the binding of the policy gpuhealth-nodes does not deny"),
}


@pytest.mark.parametrize(("spoil", "level", "expected"), BROKEN.values(), ids=BROKEN)
def test_one_problem(spoil: Callable[[list[Document], list[Document]], None], level: Level, expected: str) -> None:
    """Each way in which a policy is not in force is found, and it alone."""
    policies, bindings = installed()
    spoil(policies, bindings)
    (problem,) = judge(policies, bindings, INSTALLED)
    assert problem.level is level
    assert expected in problem.message


LITERALS = {
    "preflight": ({"preflightTaint": "startup-taint.example.com/gpuhealth"}, "has preflightTaint"),
    "cordon reason": ({"cordonReason": "nodeset.slinky.slurm.net/node-cordon-reason"}, "has cordonReason"),
    "image": ({"image": "registry.example.org/burnin:2"}, "has image"),
    "namespace": ({}, "and agents run in gpu-ops"),
}


@pytest.mark.parametrize(("changed", "expected"), LITERALS.values(), ids=LITERALS)
def test_literals(changed: dict[str, str], expected: str) -> None:
    """A literal that differs from settings, PodTemplate or namespace is an error: requests of ours would be denied."""
    other = Installed("gpuhealth" if changed else "gpu-ops", {**INSTALLED.literals, **changed})
    problems = list(judge(*installed(), other))
    assert problems
    assert all(problem.level is Level.ERROR and expected in problem.message for problem in problems)


LISTS = {
    "conditions": (INSTALLED._replace(conditions=("GPUProblem",)), "gpuhealth-node-status refuses GPUProblem"),
    "cordonCodes": (INSTALLED._replace(cordons=("driver.*", "infiniband.*")), "gpuhealth-nodes refuses infiniband.*"),
}


@pytest.mark.parametrize(("other", "expected"), LISTS.values(), ids=LISTS)
def test_lists(other: Installed, expected: str) -> None:
    """A condition or a cordon of the settings that a policy does not know is an error: it would be refused."""
    (problem,) = judge(*installed(), other)
    assert problem.level is Level.ERROR
    assert expected in problem.message


def test_parameters(plane: ControlPlane) -> None:
    """A policy whose parameter is missing is an error, and none once it is there; ours have none."""
    policy = {"metadata": {"name": "p"}, "spec": {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}}}

    async def found(name: str) -> Problem | None:
        reference = {"name": name, "namespace": "gpuhealth"}
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            binding = {"spec": {"policyName": "p", "paramRef": reference}}
            return await missing_parameter(Cluster(client), [policy], binding)

    problem = asyncio.run(found("absent"))
    assert problem is not None
    assert "has the parameter ConfigMap gpuhealth/absent, which is missing" in problem.message
    assert asyncio.run(found("gpuhealth")) is None
    assert not [item for item in ALL if "paramKind" in item["spec"] or "paramRef" in item["spec"]]
