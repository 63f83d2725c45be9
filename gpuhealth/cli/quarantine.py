"""`gpuhealth quarantine NODE`: takes a node out of service by hand."""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import cluster_access
from gpuhealth.cli.output import CommandError

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


def command(
    name: cluster_access.Name,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason to show on the node.")] = "",
    context: cluster_access.Context = None,
    kubeconfig: cluster_access.Kubeconfig = None,
) -> None:
    """Quarantine a node by hand, until `gpuhealth restore`.

    Running pods stay; no new ones are scheduled. Not limited by budgets; counts against one if a slot is free.
    """
    requester = _requester()
    why = f"{reason} ({requester})" if reason else f"by {requester}"

    async def request_quarantine(client: Client) -> str:
        from gpuhealth.quarantine.marks import override

        node = await cluster_access.get_node(client, name)
        if (value := override(node)) is not None:
            raise CommandError(
                f"node {name} has the override {value}, which takes precedence; remove it first:"
                f" gpuhealth override {name} none"
            )
        await cluster_access.annotate(client, name, OUT_OF_SERVICE=why)
        return cluster_access.agent_warning(node)

    warning = cluster_access.run(request_quarantine, kubeconfig, context)
    typer.echo(f"{name}: quarantine requested, {why}. To end it: gpuhealth restore {name}")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)


def _requester() -> str:
    """The name of the user; the number of one that has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
