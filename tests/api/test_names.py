"""gpuhealth.api.names: the one place for the names of our marks, in the code, the manifests and the documentation."""

from __future__ import annotations

import ast
import enum
import re
from pathlib import Path

import pytest
from testing.paths import ROOT
from testing.sources import literals

from gpuhealth.api import names

CODE = ROOT / "gpuhealth"
NAMES = CODE / "api" / "names.py"
_OURS = re.compile(r"gpuhealth\.io/([\w.-]*\w)")
_WRITTEN = [
    path
    for folder in ("daemonset", "dashboards", "README.md", "tools/README.md")
    for path in ([ROOT / folder] if (ROOT / folder).is_file() else sorted((ROOT / folder).rglob("*")))
    if path.suffix in {".yaml", ".md", ".py", ".json"}
]


def marks() -> set[str]:
    """The part behind the group of every name that is ours, and the version of our kinds."""
    values = (value for value in vars(names).values() if type(value) is str)
    return {value.removeprefix("gpuhealth.io/") for value in values if value.startswith("gpuhealth.io/")}


def test_no_name_is_written_elsewhere() -> None:
    """No module but names.py writes our API group, so a mark's name cannot be written a second time."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted(CODE.rglob("*.py"))
        if path != NAMES
        for line, text in literals(path.read_text(encoding="utf-8"))
        if names.GROUP in text
    ]
    assert not found


def test_no_value_is_written_elsewhere() -> None:
    """No other module writes a name outside of our group, or a value, that cannot be just a word."""
    values = {value for value in vars(names).values() if type(value) is str}
    values |= {str(member) for kind in vars(names).values() if isinstance(kind, type(enum.StrEnum)) for member in kind}
    marked = {value for value in values if re.search(r"[A-Z/-]", value)}
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted(CODE.rglob("*.py"))
        if path != NAMES
        for line, text in literals(path.read_text(encoding="utf-8"))
        if text in marked
    ]
    assert not found


def test_no_name_is_made_from_the_group_elsewhere() -> None:
    """Only the definitions of our kinds, their rights, and what shows or removes all annotations of ours use it."""
    users = [
        str(path.relative_to(CODE))
        for path in sorted(CODE.rglob("*.py"))
        if re.search(r"\bGROUP\b", path.read_text(encoding="utf-8"))
    ]
    others = ["cli/node_report.py", "installation/manifests.py", "installation/node_marks.py"]
    assert users == ["api/crd.py", "api/names.py", *others]


@pytest.mark.parametrize("path", _WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_manifests_and_documentation_use_names_that_exist(path: Path) -> None:
    """Every name of ours in manifests, admission policies, rules and documentation is one of names.py."""
    unknown = set(_OURS.findall(path.read_text(encoding="utf-8"))) - marks()
    assert not unknown


def test_manifests_are_looked_at() -> None:
    """The test above reads the admission policies and finds names in them."""
    text = (ROOT / "daemonset" / "admission" / "nodes.yaml").read_text(encoding="utf-8")
    assert {"unhealthy", "state", "quarantine", "dismissed"} <= set(_OURS.findall(text))
    assert ROOT / "daemonset" / "admission" / "nodes.yaml" in _WRITTEN


def test_every_name_says_who_writes_it() -> None:
    """Each constant is followed by a text, and each class has one, about who writes the name and who obeys it."""
    body = ast.parse(NAMES.read_text(encoding="utf-8")).body
    undocumented = []
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign) and not isinstance(after, ast.Expr):
            undocumented.append(ast.unparse(statement.targets[0]))
        if isinstance(statement, ast.ClassDef) and not ast.get_docstring(statement):
            undocumented.append(statement.name)
    assert not undocumented


def test_each_name_stands_for_one_thing() -> None:
    """No two constants of one section have the same value, and no value of an enumeration is another's."""
    for section in NAMES.read_text(encoding="utf-8").split("\n# --- ")[1:]:
        constants = re.findall(r"^([A-Z_]+) = ", section, flags=re.MULTILINE)
        values = [getattr(names, constant) for constant in constants]
        assert len(values) == len(set(values)), f"two names for one value: {section.splitlines()[0]}"
    for value in vars(names).values():
        if isinstance(value, type) and issubclass(value, enum.Enum):
            assert len(value) == len(value.__members__), f"{value.__name__} has a second name for a value"
