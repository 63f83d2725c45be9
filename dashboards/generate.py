"""Writes what Grafana and Prometheus read from the Python beside it. Usage: python -m dashboards.generate"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import node, rules

FOLDER = Path(__file__).parent
_HEAD = "# Made by dashboards/generate.py; changes made here are lost. The alerts stand in dashboards/rules.py.\n"


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        FOLDER / "grafana/node.json": dashboard_text(node.board().build()),
        FOLDER / "prometheus/rules.yaml": _HEAD + rules_text(rules.document()),
    }


def dashboard_text(dashboard: Any) -> str:
    """A dashboard as Grafana imports it, its panels numbered as they stand."""
    for number, panel in enumerate(dashboard.panels, start=1):
        panel.id_val = number
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def rules_text(document: dict[str, Any]) -> str:
    """Rules as Prometheus loads them."""
    return yaml.safe_dump(document, sort_keys=False, width=120)


def main() -> None:
    """Writes every generated file to its place."""
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
