"""`gpuhealth release-gpus NODE`: has the node's agent close the driver, for a reset or an upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import cluster_access

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


def command(
    name: cluster_access.Name,
    end: Annotated[bool, typer.Option("--end", help="Have the agent open the driver again.")] = False,
    context: cluster_access.Context = None,
    kubeconfig: cluster_access.Kubeconfig = None,
) -> None:
    """Have a node's agent close the driver.

    Then GPUs can be reset, or the driver can be unloaded.
    """

    async def request_release(client: Client) -> str:
        node = await cluster_access.get_node(client, name)
        await cluster_access.annotate(client, name, RELEASE_GPUS=None if end else "true")
        return cluster_access.agent_warning(node)

    warning = cluster_access.run(request_release, kubeconfig, context)
    if end:
        typer.echo(f"{name}: the agent opens the driver again.")
    else:
        typer.echo(f"{name}: the agent closes the driver. When you are done: gpuhealth release-gpus {name} --end")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)
