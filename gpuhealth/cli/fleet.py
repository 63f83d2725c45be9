"""`gpuhealth fleet`: counts the GPU nodes of one or several clusters, and lists those that need attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import cluster_access, options
from gpuhealth.cli.output import UNKNOWN, CommandError, console
from gpuhealth.cli.streams import standard

if TYPE_CHECKING:
    from gpuhealth.cli.fleet_report import NodeRow


def command(
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context",
            metavar="CONTEXT",
            help="Context of the kubeconfig; repeatable, for several clusters in one view.",
        ),
    ] = None,
    pool: Annotated[str, typer.Option("--pool", metavar="POOL", help="Show only the nodes of this pool.")] = "",
    as_json: options.Json = False,
    kubeconfig: cluster_access.Kubeconfig = None,
    config: options.Config = None,
) -> None:
    """Count GPU nodes, and list those that need attention.

    The exit code is 3 if a cluster does not answer, or if a node with GPUs has no working agent.
    """
    import asyncio

    import msgspec

    from gpuhealth.cli.fleet_report import read_rows, show, summarize

    labels = options.load_settings(config).controller.pool_labels
    contexts: list[str | None] = list(context) if context else [None]

    async def read_all() -> list[list[NodeRow] | BaseException]:
        reads = (
            cluster_access.connect(lambda client: read_rows(client, labels), kubeconfig, name) for name in contexts
        )
        return await asyncio.gather(*reads, return_exceptions=True)

    clusters, problems = [], []
    for name, rows in zip(contexts, asyncio.run(read_all()), strict=True):
        if isinstance(rows, CommandError):
            problems.append(rows)
        elif isinstance(rows, BaseException):
            raise rows
        else:
            clusters.append(summarize(name or "", [row for row in rows if pool in {"", row.pool}]))
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
    for row in (row for cluster in clusters for row in cluster.needs_attention if row.unreadable):
        typer.echo(f"gpuhealth: {row.unreadable}", err=True)
    for problem in problems:
        typer.echo(f"gpuhealth: {problem}", err=True)
    if problems or any(cluster.unwatched for cluster in clusters):
        raise typer.Exit(UNKNOWN)
