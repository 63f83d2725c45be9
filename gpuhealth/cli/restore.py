"""`gpuhealth restore NAME`: a person declares a node well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from gpuhealth.cli import cluster_access as reaching

if TYPE_CHECKING:
    from gpuhealth.kube.client import Client


def command(name: reaching.Name, context: reaching.Context = None, kubeconfig: reaching.Kubeconfig = None) -> None:
    """Declare a node well: ends `gpuhealth quarantine`, and findings that wait for a reboot, a reset or a person.

    What is still read as faulty stays, and what is seen later counts.
    """

    async def bring_back(client: Client) -> tuple[str, dict[str, Any]]:
        from datetime import UTC, datetime

        from gpuhealth.kube.errors import NotFoundError
        from gpuhealth.kube.kinds import REPORTS
        from gpuhealth.kube.objects import format_time

        node = await reaching.found(client, name)
        try:
            report = await client.get(REPORTS, name)
        except NotFoundError:
            report = {}
        await reaching.annotate(client, name, OUT_OF_SERVICE=None, RESTORED=format_time(datetime.now(UTC)))
        return reaching.ways_out(node), report.get("status") or {}

    warning, status = reaching.reached(bring_back, kubeconfig, context)
    typer.echo(f"{name}: declared well.")
    stays = sorted({each["code"] for each in status.get("findings") or [] if _is_read_again(each)})
    if stays:
        typer.echo(f"What is read again ends only when it is read clean: {', '.join(stays)}.")
        typer.echo(f"To overrule it: gpuhealth override {name} healthy")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)


def _is_read_again(finding: dict[str, Any]) -> bool:
    from gpuhealth.model.codes import CODES, Clears
    from gpuhealth.monitors.registry import monitors

    monitors()

    try:
        return finding["severity"] != "info" and CODES.get(finding["code"]).clears is Clears.CLEAN_READING
    except (KeyError, TypeError):  # an agent of another version
        return False
