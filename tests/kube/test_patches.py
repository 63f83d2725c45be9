"""JSON patches: escaped pointers, and changes that the API server refuses once the value has changed."""

from __future__ import annotations

import asyncio

import pytest
from kube import ControlPlane
from testing.cluster_objects import Pool

from gpuhealth.kube.client import JSON_PATCH, Client
from gpuhealth.kube.errors import InvalidError
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.patches import pointer, remove_unchanged, replace_unchanged

KEY = "example.com/note"
PATH = pointer("metadata", "annotations", KEY)


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ((), ""),
        (("spec", "taints", 0), "/spec/taints/0"),
        (("metadata", "labels", "gpuhealth.io/state"), "/metadata/labels/gpuhealth.io~1state"),
        (("a~/b", "~1"), "/a~0~1b/~01"),
    ],
)
def test_pointers_are_escaped(keys: tuple[str | int, ...], path: str) -> None:
    """The tilde first, as RFC 6901 has it: a key may hold what looks like an escape."""
    assert pointer(*keys) == path


def test_changes_are_refused_after_another_change(plane: ControlPlane, pool: Pool) -> None:
    """The server takes a change of the value that was read, and refuses one of a value that is another by then."""
    node = pool.node()
    pool.patch(node, {"metadata": {"annotations": {KEY: "old"}}})

    def value() -> str | None:
        found: str | None = pool.get(node)["metadata"].get("annotations", {}).get(KEY)
        return found

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            for stale in (replace_unchanged(PATH, "older", "new"), remove_unchanged(PATH, "older")):
                with pytest.raises(InvalidError):
                    await client.patch(NODES, node, stale, content_type=JSON_PATCH)
                assert value() == "old"
            await client.patch(NODES, node, replace_unchanged(PATH, "old", "new"), content_type=JSON_PATCH)
            assert value() == "new"
            await client.patch(NODES, node, remove_unchanged(PATH, "new"), content_type=JSON_PATCH)
            assert value() is None

    asyncio.run(run())
