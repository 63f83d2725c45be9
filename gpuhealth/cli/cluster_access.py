"""Connecting to a cluster, with errors as one sentence; options and steps that several commands share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gpuhealth.cli.output import CommandError, did_you_mean

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client

T = TypeVar("T")

Name = Annotated[str, typer.Argument(metavar="NODE", help="Name of the node.")]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="CONTEXT", help="Context of the kubeconfig; default: the current one."),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="Default: KUBECONFIG, the pod's service account, or ~/.kube/config.",
    ),
]
Namespace = Annotated[
    str,
    typer.Option("--namespace", "-n", metavar="NAMESPACE", help="Default: that of the agents' DaemonSet."),
]


async def connect(work: Callable[[Client], Awaitable[T]], kubeconfig: Path | None, context: str | None) -> T:
    """Call `work` with a connected client and return its result. Raises CommandError."""
    from gpuhealth.kube import errors
    from gpuhealth.kube.client import Client

    where = f"context {context}: " if context else ""
    try:
        async with Client.from_kubeconfig(kubeconfig, context, timeout=30.0, attempts=2) as client:
            return await work(client)
    except errors.ForbiddenError as error:
        raise CommandError(f"{where}not permitted: {error}") from None
    except errors.UnauthorizedError as error:
        raise CommandError(f"{where}authentication failed: {error}") from None
    except (errors.ClusterError, OSError) as error:
        raise CommandError(f"{where}{error}") from None


def run(work: Callable[[Client], Awaitable[T]], kubeconfig: Path | None, context: str | None) -> T:
    """Run `connect` in an event loop of its own. Raises CommandError."""
    import asyncio

    return asyncio.run(connect(work, kubeconfig, context))


async def get_node(client: Client, name: str) -> dict[str, Any]:
    """The Node object. Raises CommandError where no node has this name, with similar names."""
    from gpuhealth.kube.errors import NotFoundError
    from gpuhealth.kube.kinds import NODES

    try:
        return await client.get(NODES, name)
    except NotFoundError:
        pages = client.pages(NODES, metadata_only=True)
        known = [item["metadata"]["name"] async for page in pages for item in page.items]
        raise CommandError(f"no node {name} in this cluster{did_you_mean(name, known)}") from None


async def annotate(client: Client, name: str, **values: str | None) -> None:
    """Set annotations of a Node, named by their constants in `api.names`; None removes an annotation."""
    from gpuhealth.api import names
    from gpuhealth.kube.kinds import NODES

    annotations = {getattr(names, constant): value for constant, value in values.items()}
    await client.patch(NODES, name, {"metadata": {"annotations": annotations}})


def agent_warning(node: dict[str, Any]) -> str:
    """A sentence where no agent will act on an annotation of the node; empty where one will."""
    from gpuhealth.api.names import ConditionReason
    from gpuhealth.quarantine.marks import condition

    healthy = condition(node)
    if healthy is None:
        return "no agent has reported for this node; this takes effect when one runs there"
    if healthy.get("reason") == ConditionReason.AGENT_SILENT:
        return "this node's agent does not respond; this takes effect when it is back. kubectl cordon works now"
    return ""
