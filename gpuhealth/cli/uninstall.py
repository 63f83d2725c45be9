"""`gpuhealth uninstall`: removes gpuhealth from a cluster, with every mark on the Nodes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import cluster_access, options
from gpuhealth.cli.output import CommandError, console
from gpuhealth.cli.streams import standard
from gpuhealth.cli.wording import counted
from gpuhealth.runtime.text import printable

if TYPE_CHECKING:
    from gpuhealth.installation.uninstall import Change, Removal
    from gpuhealth.kube.client import Client


def command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print each change, and make none.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    context: cluster_access.Context = None,
    namespace: cluster_access.Namespace = "",
    as_json: options.Json = False,
    kubeconfig: cluster_access.Kubeconfig = None,
) -> None:
    """Remove gpuhealth from a cluster, with every mark on the Nodes.

    Deletes agents and controller with their rights, so that nothing puts marks back; then takes taints, cordons,
    labels, annotations and conditions off the Nodes; then deletes slots, policies, roles, budgets, reports and the
    namespace. Nodes that are out of service return to service. Removes only what gpuhealth added, and prints what is
    left. If it is interrupted, run it again.
    """

    def remove(*, dry_run: bool, shown: bool) -> Removal:
        async def work(client: Client) -> Removal:
            from gpuhealth.installation.uninstall import Uninstaller

            on_change = _print if shown and not as_json else _ignore
            return await Uninstaller(client, namespace, dry_run=dry_run, on_change=on_change).run()

        return cluster_access.run(work, kubeconfig, context)

    planned = remove(dry_run=True, shown=dry_run)
    if dry_run or not planned.changes:
        _finish(planned, as_json=as_json)
        return
    if not yes:
        _confirm(planned, context)
    _finish(remove(dry_run=False, shown=True), as_json=as_json)


def _confirm(planned: Removal, context: str | None) -> None:
    where = f"context {context}" if context else "the current context"
    question = f"{counted(len(planned.changes), 'change')} in the cluster of {where}"
    if planned.returned:
        count = len(planned.returned)
        question += f"; {counted(count, 'node')} out of service {'returns' if count == 1 else 'return'} to service"
    if not sys.stdin.isatty():
        raise CommandError(f"{question}: add --yes to make them, or --dry-run to see them")
    typer.confirm(f"{question}. Go on?", abort=True, err=True)


def _ignore(_change: Change) -> None:
    pass


def _print(change: Change) -> None:
    detail = f": {change.detail}" if change.detail else ""
    typer.echo(printable(f"{change.action} {change.kind} {change.name}{detail}"))


def _finish(removal: Removal, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        standard.write_line(msgspec.json.encode(removal))
        return
    out = console()
    if not removal.changes:
        out.print("Nothing of gpuhealth is in this cluster.")
        return
    count = counted(len(removal.changes), "change")
    out.print(f"{count} would be made; none was." if removal.dry_run else f"gpuhealth is removed: {count}.")
    if removal.returned:
        nodes = ", ".join(f"{name} ({code})" for name, code in removal.returned.items())
        verb = "would return" if removal.dry_run else "have returned"
        out.print(printable(f"Nodes that were out of service and {verb} to service: {nodes}"), soft_wrap=True)
    out.print("Left:")
    for each in removal.left:
        out.print(f"  {printable(each)}", soft_wrap=True)
