"""`gpuhealth override NODE healthy|unmanaged|none`: overrides the verdict of a node by hand."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import cluster_access

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


class OverrideValue(enum.StrEnum):
    """Values of the override annotation, and `none` to remove it."""

    HEALTHY = "healthy"
    UNMANAGED = "unmanaged"
    NONE = "none"


_EFFECTS = {
    OverrideValue.HEALTHY: "marked healthy regardless of findings, until the override is removed",
    OverrideValue.UNMANAGED: "still monitored, but no longer marked, until the override is removed",
    OverrideValue.NONE: "override removed; the findings apply again",
}


def command(
    name: cluster_access.Name,
    value: Annotated[
        OverrideValue,
        typer.Argument(
            metavar="VALUE",
            help="healthy: mark the node healthy regardless of findings; unmanaged: do not mark it; none: remove the"
            " override.",
        ),
    ],
    context: cluster_access.Context = None,
    kubeconfig: cluster_access.Kubeconfig = None,
) -> None:
    """Override the verdict of a node, or remove the override."""

    async def set_override(client: Client) -> str:
        node = await cluster_access.get_node(client, name)
        await cluster_access.annotate(client, name, OVERRIDE=None if value is OverrideValue.NONE else str(value))
        return cluster_access.agent_warning(node)

    warning = cluster_access.run(set_override, kubeconfig, context)
    typer.echo(f"{name}: {_EFFECTS[value]}.")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)
