"""`gpuhealth fleet`: the GPU nodes of a cluster, or of several, and those that are not well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import cluster_access as reaching
from gpuhealth.cli import options
from gpuhealth.cli.output import COULD_NOT, CommandError, console
from gpuhealth.cli.streams import standard

if TYPE_CHECKING:
    from gpuhealth.cli.fleet_report import Row


def command(
    context: Annotated[
        list[str] | None,
        typer.Option("--context", metavar="CONTEXT", help="Of the kubeconfig; several: several clusters in one view."),
    ] = None,
    pool: Annotated[str, typer.Option("--pool", metavar="POOL", help="Only the nodes of this pool.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    kubeconfig: reaching.Kubeconfig = None,
    config: options.Config = None,
) -> None:
    """The GPU nodes of the fleet: how many of which kind, and each that is not well."""
    import asyncio

    import msgspec

    from gpuhealth.cli.fleet_report import counted_rows, rows_of, show

    labels = options.load_settings(config).controller.pool_labels
    contexts: list[str | None] = list(context) if context else [None]

    async def ask() -> list[list[Row] | BaseException]:
        asked = (reaching.reach(lambda client: rows_of(client, labels), kubeconfig, each) for each in contexts)
        return await asyncio.gather(*asked, return_exceptions=True)

    clusters, problems = [], []
    for each, answer in zip(contexts, asyncio.run(ask()), strict=True):
        if isinstance(answer, CommandError):
            problems.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            clusters.append(counted_rows(each or "", [row for row in answer if pool in {"", row.pool}]))
    if not clusters:
        raise problems[0]
    if as_json:
        standard.write_line(msgspec.json.encode({"clusters": clusters}))
    else:
        out = console()
        for number, cluster in enumerate(clusters):
            if number:
                out.print()
            show(out, cluster)
    for row in (row for cluster in clusters for row in cluster.not_well if row.unreadable):
        typer.echo(f"gpuhealth: {row.unreadable}", err=True)
    for problem in problems:
        typer.echo(f"gpuhealth: {problem}", err=True)
    if problems:
        raise typer.Exit(COULD_NOT)
