"""`kubectl apply`, and what it leaves on the API server."""

from __future__ import annotations

from pathlib import Path

import yaml
from kube import ControlPlane, Document

from testing.kubectl import kubectl


def stored(plane: ControlPlane, file: Path, *flags: str) -> list[Document]:
    """The objects of a file after `kubectl apply` without a warning, as far as their owner decides them."""
    kubectl("apply", "--warnings-as-errors", "-f", file, *flags, kubeconfig=plane.kubeconfig)
    found = []
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        there = plane.request("GET", plane.path_of(document))
        metadata = {k: v for k, v in there["metadata"].items() if k not in {"resourceVersion", "managedFields"}}
        found.append({**there, "metadata": metadata, "status": None})  # the server writes the status of definitions
    return found
