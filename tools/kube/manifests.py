"""Kubernetes documents out of files: a YAML file, or a folder with a kustomization.yaml."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

_ORDER = {"CustomResourceDefinition": 0, "Namespace": 1, "PriorityClass": 2, "ServiceAccount": 3}
"""What others refer to is applied before them, as kubectl does with a kustomization."""


def documents(path: Path) -> list[Document]:
    """All documents of a file or a kustomization, those that others need first.

    Of a kustomization only `resources` and `images` are understood: the base is written so that it needs no more, and
    what this tool would silently leave out must not be there.
    """
    return ordered(_read(path))


def ordered(found: Iterable[Document]) -> list[Document]:
    """Documents in an order in which they can be applied: those that others need first."""
    return sorted(found, key=lambda document: _ORDER.get(document["kind"], 9))


def _read(path: Path) -> Iterable[Document]:
    if not path.is_dir():
        yield from (document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document)
        return
    kustomization = yaml.safe_load((path / "kustomization.yaml").read_text(encoding="utf-8"))
    if unknown := kustomization.keys() - {"apiVersion", "kind", "resources", "images"}:
        raise ValueError(f"{path}/kustomization.yaml uses {', '.join(sorted(unknown))}, which is not supported here")
    images = {each["name"]: _reference(each) for each in kustomization.get("images", ())}
    for resource in kustomization["resources"]:
        for document in _read(path / resource):
            _set_images(document, images)
            yield document


def _reference(image: dict[str, str]) -> str:
    if unknown := image.keys() - {"name", "newName", "newTag"}:
        raise ValueError(f"an entry of images uses {', '.join(sorted(unknown))}, which is not supported here")
    return f"{image.get('newName', image['name'])}:{image['newTag']}"


def _set_images(part: Any, images: dict[str, str]) -> None:
    """Sets the images of all containers at any depth, those of PodTemplates too, that are named without a tag."""
    if isinstance(part, dict):
        for container in part.get("containers") or ():
            container["image"] = images.get(container["image"], container["image"])
        for value in part.values():
            _set_images(value, images)
