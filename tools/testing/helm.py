"""Helm, as a child process that has the wheel helm-python-sdk.

    with Helm() as helm:
        objects = helm.render({"agent": {...}}, namespace="gpu-ops")

The library is Go code in a shared object: in a process of its own it starts no threads in that of the tests.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from kube import Document

from testing.paths import BASE

CHART = BASE / "chart"
_CHILD = Path(__file__).with_name("helm_child.py")
MISSING = "helm-python-sdk is not installed (pip install --group helm): the Helm chart is not tested"


class HelmError(RuntimeError):
    """Helm refused the chart or its values."""


class Helm:
    """Renders and installs a chart; a context manager."""

    def __init__(self, chart: Path = CHART) -> None:
        self._chart = chart

    def __enter__(self) -> Helm:
        self._process = subprocess.Popen(
            [sys.executable, _CHILD, self._chart], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    def call(self, action: str, **arguments: Any) -> Any:
        """The answer of the child to one request."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"action": action, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise HelmError(answer["error"])
        return answer["result"]

    def files(self, values: Document | None = None, namespace: str = "gpuhealth") -> dict[str, str]:
        """The text of every template, by its path."""
        found: dict[str, str] = self.call("render", values=values or {}, namespace=namespace)
        return found

    def render(self, values: Document | None = None, namespace: str = "gpuhealth") -> list[Document]:
        """All objects of a release."""
        files = {path: text for path, text in self.files(values, namespace).items() if path.endswith(".yaml")}
        return [document for text in files.values() for document in yaml.safe_load_all(text) if document]


def is_installed() -> bool:
    """Whether the wheel is there."""
    return importlib.util.find_spec("helm_python") is not None
