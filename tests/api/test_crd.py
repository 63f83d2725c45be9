"""gpuhealth.api.crd: the definitions are those of the structs, and readers read nothing that no struct has."""

from __future__ import annotations

import enum
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import crds
import msgspec
import pytest
import yaml
from testing.cluster_objects import finding

from gpuhealth.api import budget, report
from gpuhealth.api.crd import descriptions, manifest, schema
from gpuhealth.api.resource import Definition, body
from gpuhealth.burnin.registry import LEVELS
from gpuhealth.cli import fleet_report, node_report, restore
from gpuhealth.fleet import views
from gpuhealth.model.burnin_run import TestStatus
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.verdict import State
from gpuhealth.quarantine.slots import budget as slot_budget

ROOT = Path(__file__).parents[2]
READERS: list[tuple[type[msgspec.Struct], type[msgspec.Struct]]] = [
    (views._Status, report.ReportStatus),
    (views._Burnin, report.Burnin),
    (views._GpuBurnin, report.GpuBurnin),
    (views._Test, report.BurninTest),
    (views._BudgetSpec, budget.BudgetSpec),
    (views._BudgetStatus, budget.BudgetStatus),
    (views.BudgetCondition, budget.BudgetCondition),
    (slot_budget._Limits, budget.BudgetSpec),
    (slot_budget._Status, budget.BudgetStatus),
    (fleet_report._Status, report.ReportStatus),
    (fleet_report._Finding, report.Finding),
    (fleet_report._Quarantine, report.Quarantine),
    (fleet_report._Drain, report.Drain),
    (node_report._Quarantine, report.Quarantine),
    (node_report._Drain, report.Drain),
    (node_report._BudgetStatus, budget.BudgetStatus),
    (restore._Finding, report.Finding),
]
"""Structs that name only the fields which a reader needs, and the structs whose fields they are."""
GPU_BURNIN = ("burnin", "properties", "gpus", "additionalProperties", "properties")


def properties(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of each field, by its name in JSON."""
    found: dict[str, Any] = schema(struct)["properties"]
    return found


def status_property(*path: str) -> Any:
    """A part of the report's schema below its status."""
    part = properties(report.ReportStatus)
    for name in path:
        part = part[name]
    return part


@pytest.mark.parametrize("definition", crds.DEFINITIONS, ids=lambda definition: definition.plural)
def test_files_are_current(definition: Definition) -> None:
    """The files in daemonset/crds are what the tool writes; the text of a stale one is in the difference."""
    assert crds.path(definition).read_text(encoding="utf-8") == crds.text(definition), f"run: {crds.COMMAND}"


def test_all_files_are_made() -> None:
    """The kustomization applies the files that the tool writes and no other."""
    kustomization = yaml.safe_load((crds.FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    assert kustomization["resources"] == [crds.path(definition).name for definition in crds.DEFINITIONS]
    assert {path.name for path in crds.FOLDER.iterdir()} == {*kustomization["resources"], "kustomization.yaml"}


@pytest.mark.parametrize(("reader", "struct"), READERS, ids=lambda struct: f"{struct.__module__}.{struct.__name__}")
def test_readers_know_no_other_fields(reader: type[msgspec.Struct], struct: type[msgspec.Struct]) -> None:
    """Each field that a reader names is one of the struct's, of the type that the API server accepts."""
    types = {name: part.get("type") for name, part in properties(struct).items()}
    assert {name: part.get("type") for name, part in properties(reader).items()}.items() <= types.items()


def test_all_readers_are_looked_at() -> None:
    """Each struct with the names of JSON fields outside of gpuhealth/api is in the list above."""
    declared = {
        (str(path.relative_to(ROOT)), name)
        for folder in ("agent", "cli", "controller", "fleet", "quarantine")
        for path in sorted((ROOT / "gpuhealth" / folder).rglob("*.py"))
        for name in re.findall(r'^class (\w+)\(.*rename="camel"', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    listed = {(f"{reader.__module__.replace('.', '/')}.py", reader.__name__) for reader, _ in READERS}
    assert declared == listed


@pytest.mark.parametrize("definition", crds.DEFINITIONS, ids=lambda definition: definition.plural)
def test_schemas_are_structural(definition: Definition) -> None:
    """Each part has a type, or is an integer or a text; only a spec has defaults; no part is a reference."""

    def look(part: dict[str, Any], *, is_spec: bool) -> None:
        assert "$ref" not in part
        assert "type" in part or "x-kubernetes-int-or-string" in part
        assert is_spec or "default" not in part, "the API server would write what nobody has reported"
        for name, inner in part.get("properties", {}).items():
            look(inner, is_spec=is_spec or name == "spec")
        for inner in (part.get("items"), part.get("additionalProperties")):
            if inner is not None:
                look(inner, is_spec=is_spec)

    (version,) = manifest(definition)["spec"]["versions"]
    look(version["schema"]["openAPIV3Schema"], is_spec=False)


def test_metadata_restricts_the_name_alone() -> None:
    """The API server refuses a definition that has anything else about metadata, be it a description."""
    metadata = properties(budget.QuarantineBudget)["metadata"]
    assert (metadata.keys(), metadata["properties"].keys()) == ({"type", "properties"}, {"name"})


def test_defaults_of_a_spec() -> None:
    """The API server fills in the defaults of a budget's spec; a limit that is absent stays absent."""
    spec = properties(budget.QuarantineBudget)["spec"]
    defaults = {name: part["default"] for name, part in spec["properties"].items() if "default" in part}
    assert defaults == {"window": "1h", "countUnavailable": False}
    assert spec["required"] == ["nodeSelector", "maxUnavailable"]


def test_a_description_is_the_text_below_a_field() -> None:
    """Lines are joined; a field without a text has the docstring of its struct, if it is one."""
    assert descriptions(report.Drain)["remaining"] == "Pods still to be evicted."
    assert descriptions(report.Drain)["phase"].startswith("draining; drained: no pod is left to evict; cancelled")
    assert properties(report.ReportStatus)["drain"]["description"].startswith("Eviction of the node's pods. Written by")


@pytest.mark.parametrize("definition", crds.DEFINITIONS, ids=lambda definition: definition.plural)
def test_every_field_is_described(definition: Definition) -> None:
    """kubectl explain has a text for each field."""

    def look(part: dict[str, Any], at: str) -> None:
        for name, inner in part.get("properties", {}).items():
            if name != "metadata":
                assert inner.get("description"), f"{at}.{name}"
                look(inner, f"{at}.{name}")
        for inner in (part.get("items"), part.get("additionalProperties")):
            if inner is not None:
                look(inner, at)

    (version,) = manifest(definition)["spec"]["versions"]
    look(version["schema"]["openAPIV3Schema"], definition.short_name)


def test_a_type_without_schema_is_refused() -> None:
    """A struct with a field that a structural schema cannot describe fails when the file is made."""

    class Odd(msgspec.Struct):
        """A struct with a field of any type."""

        anything: Any

    with pytest.raises(TypeError, match="no structural schema"):
        schema(Odd)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (("verdict",), State),
        (("findings", "items", "properties", "severity"), Severity),
        (("findings", "items", "properties", "action"), Action),
        (("quarantine", "properties", "state"), report.QuarantineState),
        (("drain", "properties", "phase"), report.DrainPhase),
        ((*GPU_BURNIN, "level"), report.BurninLevel),
        ((*GPU_BURNIN, "reason"), report.BurninReason),
        ((*GPU_BURNIN, "history", "items", "properties", "status"), TestStatus),
    ],
    ids=lambda part: ".".join(part) if isinstance(part, tuple) else part.__name__,
)
def test_the_api_server_accepts_what_is_written(path: tuple[str, ...], values: type[enum.StrEnum]) -> None:
    """Each value of an enumeration that the agent or the controller writes is allowed, and no other."""
    assert set(status_property(*path)["enum"]) == set(values)


def test_levels_are_those_of_the_burn_in() -> None:
    """A burn-in of each level can be reported."""
    assert set(report.BurninLevel) == set(LEVELS)


def test_a_finding_as_it_is_reported() -> None:
    """Every field of a finding is in the report, times to the second; what is empty is not written."""
    seen = datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC)
    found = body(report.finding_of(finding("xid.79", message="m" * 5000, first_seen=seen, last_seen=seen)))
    assert (found["code"], found["firstSeen"], len(found["message"])) == ("xid.79", "2026-03-01T12:00:00Z", 2048)
    assert found.keys() <= properties(report.Finding).keys()
    assert "" not in found.values()


def test_the_body_of_a_part_is_what_the_server_returns() -> None:
    """Lists for tuples, no field of None, times in UTC: equal parts are not written again."""
    part = report.Quarantine(
        state=report.QuarantineState.QUARANTINED, slots=("a.0",), since=datetime(2026, 3, 1, tzinfo=UTC)
    )
    assert body(part) == {
        "state": "quarantined",
        "mark": "",
        "code": "",
        "since": "2026-03-01T00:00:00Z",
        "drain": False,
        "budget": "",
        "limit": "",
        "reason": "",
        "slots": ["a.0"],
    }
    assert "since" not in body(report.Quarantine())
