"""Writes daemonset/crds/*.yaml from the structs in gpuhealth/api. Usage: python tools/crds.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gpuhealth.api import budget, report
from gpuhealth.api.crd import manifest
from gpuhealth.api.resource import Definition

FOLDER = Path(__file__).parents[1] / "daemonset/crds"
COMMAND = "python tools/crds.py"
DEFINITIONS = (report.DEFINITION, budget.DEFINITION)


class _Dumper(yaml.SafeDumper):
    """Writes equal parts in full: a reader need not look up an alias."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        """Whether the part is written in full wherever it stands."""
        return True


def path(definition: Definition) -> Path:
    """The file of a definition."""
    return FOLDER / f"{definition.plural}.yaml"


def text(definition: Definition) -> str:
    """The contents of its file, with the command that made it."""
    head = f"# Made from gpuhealth/api by `{COMMAND}`; changes made here are lost.\n"
    body = yaml.dump(manifest(definition), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return head + body


if __name__ == "__main__":
    for each in DEFINITIONS:
        path(each).write_text(text(each), encoding="utf-8")
