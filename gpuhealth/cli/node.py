"""`gpuhealth node NAME`: all that the cluster knows of one node."""

from __future__ import annotations

from typing import Annotated

import typer

from gpuhealth.cli import cluster_access as reaching
from gpuhealth.cli.output import console
from gpuhealth.cli.streams import standard


def command(
    name: reaching.Name,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    context: reaching.Context = None,
    kubeconfig: reaching.Kubeconfig = None,
) -> None:
    """One node: what is wrong, how it stands with quarantine and drain, its GPUs, its last tests and Events."""
    import msgspec

    from gpuhealth.cli.node_report import ask, show

    known = reaching.reached(lambda client: ask(client, name), kubeconfig, context)
    if as_json:
        standard.write_line(msgspec.json.encode(known))
    else:
        show(console(), known)
