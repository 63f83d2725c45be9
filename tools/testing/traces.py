"""Every trace of gpuhealth in a cluster, found in all objects of all kinds and not by what we know of ourselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kube import ControlPlane, Document
from kube.control_plane import RequestError

_WORD = "gpuhealth"
_EXPIRE = {"events"}  # the API server deletes them after an hour


def traces(plane: ControlPlane) -> list[str]:
    """`kind name: path = value` of each text with the name gpuhealth, and one line for an object named so."""
    return sorted(line for plural, item in _objects(plane) for line in _of_object(plural, item))


def _objects(plane: ControlPlane) -> Iterator[tuple[str, Document]]:
    """All objects of all kinds that the server lists, without managedFields."""
    groups = plane.request("GET", "/apis")["groups"]
    roots = ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]
    for root in roots:
        try:
            resources = plane.request("GET", root)["resources"]
        except RequestError as error:
            if error.status != 404:  # a group whose definition has just been deleted
                raise
            continue
        for resource in resources:
            name = resource["name"]
            if "/" in name or "list" not in resource["verbs"] or name in _EXPIRE:
                continue
            for item in plane.request("GET", f"{root}/{name}")["items"]:
                item["metadata"].pop("managedFields", None)
                yield name, item


def _of_object(plural: str, item: Document) -> Iterator[str]:
    metadata = item["metadata"]
    name = "/".join(part for part in (metadata.get("namespace", ""), metadata["name"]) if part)
    if _WORD in name:
        yield f"{plural} {name}"
    else:
        yield from (f"{plural} {name}: {path}" for path in _texts(item, ""))


def _texts(part: Any, path: str) -> Iterator[str]:
    """The paths of all keys and values that contain the word."""
    if isinstance(part, dict):
        for key, value in part.items():
            if _WORD in key:
                yield f"{path}.{key} = {json.dumps(value)[:80]}".lstrip(".")
            else:
                yield from _texts(value, f"{path}.{key}")
    elif isinstance(part, list):
        for value in part:
            yield from _texts(value, f"{path}[]")
    elif isinstance(part, str) and _WORD in part:
        yield f"{path} = {part[:80]}".lstrip(".")
