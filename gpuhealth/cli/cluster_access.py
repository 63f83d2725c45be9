"""How commands reach a cluster, and what they say when they cannot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gpuhealth.cli.output import CommandError, near

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client

T = TypeVar("T")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The node.")]
Context = Annotated[
    str | None, typer.Option("--context", metavar="CONTEXT", help="Of the kubeconfig; else its current one.")
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", metavar="FILE", help="Else the one of KUBECONFIG, the pod's own, or ~/.kube/config."),
]


async def reach(work: Callable[[Client], Awaitable[T]], kubeconfig: Path | None, context: str | None) -> T:
    """What the work with the cluster gives; raises CommandError."""
    from gpuhealth.kube import errors
    from gpuhealth.kube.client import Client

    where = f"context {context}: " if context else ""
    try:
        async with Client.from_kubeconfig(kubeconfig, context, timeout=30.0, attempts=2) as client:
            return await work(client)
    except errors.ForbiddenError as error:
        raise CommandError(f"{where}you may not do this: {error}") from None
    except errors.UnauthorizedError as error:
        raise CommandError(f"{where}the cluster does not know you: {error}") from None
    except (errors.ClusterError, OSError) as error:
        raise CommandError(f"{where}{error}") from None


def reached(work: Callable[[Client], Awaitable[T]], kubeconfig: Path | None, context: str | None) -> T:
    """The same, waited for."""
    import asyncio

    return asyncio.run(reach(work, kubeconfig, context))


async def found(client: Client, name: str) -> dict[str, Any]:
    """The Node; CommandError where there is none of that name."""
    from gpuhealth.kube.errors import NotFoundError
    from gpuhealth.kube.kinds import NODES

    try:
        return await client.get(NODES, name)
    except NotFoundError:
        pages = client.pages(NODES, metadata_only=True)
        known = [item["metadata"]["name"] async for page in pages for item in page.items]
        raise CommandError(f"no node {name} in this cluster{near(name, known)}") from None


async def annotate(client: Client, name: str, **notes: str | None) -> None:
    """Put a person's words on the Node, or take them off; by the names that `kinds` has for them."""
    from gpuhealth.kube import kinds

    annotations = {getattr(kinds, key): value for key, value in notes.items()}
    await client.patch(kinds.NODES, name, {"metadata": {"annotations": annotations}})


def ways_out(node: dict[str, Any]) -> str:
    """What to say of a node whose agent will not act on what was asked of it; nothing if it will."""
    from gpuhealth.quarantine.marks import AGENT_UNREACHABLE, condition

    said = condition(node)
    if said is None:
        return "no agent has ever spoken of this node: nothing will come of it until one runs there"
    if said.get("reason") == AGENT_UNREACHABLE:
        return "the agent on this node is silent: nothing will come of it until it is back; kubectl cordon works now"
    return ""
