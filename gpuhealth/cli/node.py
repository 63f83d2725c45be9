"""`gpuhealth node NODE`: all of the cluster's data about one node."""

from __future__ import annotations

from gpuhealth.cli import cluster_access, options
from gpuhealth.cli.output import console
from gpuhealth.cli.streams import standard


def command(
    name: cluster_access.Name,
    as_json: options.Json = False,
    context: cluster_access.Context = None,
    kubeconfig: cluster_access.Kubeconfig = None,
) -> None:
    """Show everything known about one node.

    That is condition, quarantine, drain, budgets, GPUs, last burn-ins, findings and Events.
    """
    import msgspec

    from gpuhealth.cli.node_report import read_node, show

    details = cluster_access.run(lambda client: read_node(client, name), kubeconfig, context)
    if as_json:
        standard.write_line(msgspec.json.encode(details))
    else:
        show(console(), details)
