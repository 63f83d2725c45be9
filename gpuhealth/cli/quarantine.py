"""`gpuhealth quarantine NAME`: a person takes a node out of service."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import cluster_access as reaching
from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


def command(
    name: reaching.Name,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is shown on the node.")] = "",
    context: reaching.Context = None,
    kubeconfig: reaching.Kubeconfig = None,
) -> None:
    """Take a node out of service until `gpuhealth restore`. No budget limits this; it takes a slot if one is free.

    What runs there goes on; nothing new comes.
    """
    why = f"{reason} ({getpass.getuser()})" if reason else f"by {getpass.getuser()}"

    async def take_out(client: Client) -> str:
        from gpuhealth.quarantine.marks import override

        node = await reaching.found(client, name)
        if (word := override(node)) is not None:
            raise CommandError(
                f"node {name} is declared {word} by annotation, which wins: gpuhealth override {name} none, first"
            )
        await reaching.annotate(client, name, OUT_OF_SERVICE=why)
        return reaching.ways_out(node)

    warning = reaching.reached(take_out, kubeconfig, context)
    typer.echo(f"{name}: to be taken out of service, {why}. Back with: gpuhealth restore {name}")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)
