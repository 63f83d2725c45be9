"""`gpuhealth restore NODE`: returns a node to service by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import typer

from gpuhealth.cli import cluster_access

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


class _Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    code: str
    severity: str


def command(
    name: cluster_access.Name, context: cluster_access.Context = None, kubeconfig: cluster_access.Kubeconfig = None
) -> None:
    """Return a node to service.

    Ends `gpuhealth quarantine`, and findings that only a reboot, reset or burn-in clears. Faults that are still
    measured stay, and new ones count as usual.
    """

    async def request_restore(client: Client) -> tuple[str, dict[str, Any]]:
        from datetime import UTC, datetime

        from gpuhealth.kube.errors import NotFoundError
        from gpuhealth.kube.kinds import REPORTS
        from gpuhealth.model.time import format_time

        node = await cluster_access.get_node(client, name)
        try:
            report = await client.get(REPORTS, name)
        except NotFoundError:
            report = {}
        await cluster_access.annotate(client, name, OUT_OF_SERVICE=None, RESTORED=format_time(datetime.now(UTC)))
        return cluster_access.agent_warning(node), report.get("status") or {}

    warning, status = cluster_access.run(request_restore, kubeconfig, context)
    typer.echo(f"{name}: restored.")
    remaining = sorted({code for finding in status.get("findings") or [] if (code := _code_measured_again(finding))})
    if remaining:
        typer.echo(f"These findings end only when a reading is clean: {', '.join(remaining)}.")
        typer.echo(f"To override them: gpuhealth override {name} healthy")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)


def _code_measured_again(raw: Any) -> str:
    """The code of a finding that only a clean reading ends; empty for another, and where it cannot be read."""
    from gpuhealth.model.codes import Clears
    from gpuhealth.model.finding import Severity
    from gpuhealth.monitors.registry import code_of

    try:
        finding = msgspec.convert(raw, _Finding)
        measured = code_of(finding.code).clears is Clears.CLEAN_READING
    except (msgspec.ValidationError, KeyError):  # of an agent of another version
        return ""
    return finding.code if measured and finding.severity != Severity.INFO else ""
