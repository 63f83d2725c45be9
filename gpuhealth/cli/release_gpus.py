"""`gpuhealth release-gpus NAME`: the node's agent lets go of the driver, for a reset or an upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import cluster_access as reaching

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


def command(
    name: reaching.Name,
    end: Annotated[bool, typer.Option("--end", help="Take the driver again.")] = False,
    context: reaching.Context = None,
    kubeconfig: reaching.Kubeconfig = None,
) -> None:
    """Have a node's agent let go of the driver, so that GPUs can be reset or the driver be unloaded."""

    async def release(client: Client) -> str:
        node = await reaching.found(client, name)
        await reaching.annotate(client, name, RELEASE_GPUS=None if end else "true")
        return reaching.ways_out(node)

    warning = reaching.reached(release, kubeconfig, context)
    if end:
        typer.echo(f"{name}: the agent takes the driver again.")
    else:
        typer.echo(f"{name}: the agent lets go of the driver. Afterwards: gpuhealth release-gpus {name} --end")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)
