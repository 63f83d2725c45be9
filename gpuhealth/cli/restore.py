"""`gpuhealth restore NAME`: a person declares a node well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import typer

from gpuhealth.cli import cluster_access as reaching

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


class _Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    code: str
    severity: str


def command(name: reaching.Name, context: reaching.Context = None, kubeconfig: reaching.Kubeconfig = None) -> None:
    """Declare a node well: ends `gpuhealth quarantine`, and findings that wait for a reboot, a reset or a person.

    What is still read as faulty stays, and what is seen later counts.
    """

    async def bring_back(client: Client) -> tuple[str, dict[str, Any]]:
        from datetime import UTC, datetime

        from gpuhealth.kube.errors import NotFoundError
        from gpuhealth.kube.kinds import REPORTS
        from gpuhealth.quarantine.marks import written_time

        node = await reaching.found(client, name)
        try:
            report = await client.get(REPORTS, name)
        except NotFoundError:
            report = {}
        await reaching.annotate(client, name, OUT_OF_SERVICE=None, RESTORED=written_time(datetime.now(UTC)))
        return reaching.ways_out(node), report.get("status") or {}

    warning, status = reaching.reached(bring_back, kubeconfig, context)
    typer.echo(f"{name}: declared well.")
    stays = sorted({code for finding in status.get("findings") or [] if (code := _code_read_again(finding))})
    if stays:
        typer.echo(f"What is read again ends only when it is read clean: {', '.join(stays)}.")
        typer.echo(f"To overrule it: gpuhealth override {name} healthy")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)


def _code_read_again(raw: Any) -> str:
    """The code of a finding that only a clean reading ends; empty for another, and where it cannot be read."""
    from gpuhealth import monitors as checks
    from gpuhealth.model.code import Clears
    from gpuhealth.model.finding import Severity

    try:
        finding = msgspec.convert(raw, _Finding)
        is_read_again = checks.code(finding.code).clears is Clears.REREAD
    except (msgspec.ValidationError, KeyError):  # a code of another version
        return ""
    return finding.code if is_read_again and finding.severity != Severity.INFO else ""
