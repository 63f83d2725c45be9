"""`gpuhealth override NAME healthy|unmanaged|none`: a person's word against what is found."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.api.names import Override
from gpuhealth.cli import cluster_access as reaching

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


class Word(enum.StrEnum):
    """What can be said of a node."""

    HEALTHY = Override.HEALTHY.value
    UNMANAGED = Override.UNMANAGED.value
    NONE = "none"


_MEANS = {
    Word.HEALTHY: "marked healthy whatever is found, until the override is taken back",
    Word.UNMANAGED: "watched and not marked any more, until the override is taken back",
    Word.NONE: "no override: what is found counts again",
}


def command(
    name: reaching.Name,
    word: Annotated[
        Word, typer.Argument(help="healthy: whatever is found; unmanaged: mark nothing; none: take it back.")
    ],
    context: reaching.Context = None,
    kubeconfig: reaching.Kubeconfig = None,
) -> None:
    """Declare a node healthy or unmanaged, against what is found; or take that back."""

    async def declare(client: Client) -> str:
        node = await reaching.found(client, name)
        await reaching.annotate(client, name, OVERRIDE=None if word is Word.NONE else str(word))
        return reaching.ways_out(node)

    warning = reaching.reached(declare, kubeconfig, context)
    typer.echo(f"{name}: {_MEANS[word]}.")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)
