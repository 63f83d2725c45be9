"""`gpuhealth restore NODE`: returns a node to service by hand."""

from __future__ import annotations

import contextlib
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
    measured, tested = _not_ended(status.get("findings") or [])
    if measured:
        typer.echo(f"These findings end only when a reading is clean: {', '.join(measured)}.")
    if tested:
        typer.echo(f"These findings end only when the test passes: {', '.join(tested)}.")
        typer.echo("To test all GPUs of the node: gpuhealth burnin --save, on the node")
    if measured or tested:
        typer.echo(f"To override them: gpuhealth override {name} healthy")
    if warning:
        typer.echo(f"gpuhealth: {warning}", err=True)


def _not_ended(findings: list[Any]) -> tuple[list[str], list[str]]:
    """The codes of findings that a person does not end thereby: of those that are measured again, and of failed tests.

    Findings that cannot be read are left out, as those of an agent of another version.
    """
    from gpuhealth.model.codes import Clears
    from gpuhealth.model.finding import Severity
    from gpuhealth.monitors.registry import code_of

    codes: dict[Clears, set[str]] = {Clears.CLEAN_READING: set(), Clears.TEST_PASSED: set()}
    for raw in findings:
        with contextlib.suppress(msgspec.ValidationError, KeyError):
            finding = msgspec.convert(raw, _Finding)
            if finding.severity != Severity.INFO and (clears := code_of(finding.code).clears) in codes:
                codes[clears].add(finding.code)
    return sorted(codes[Clears.CLEAN_READING]), sorted(codes[Clears.TEST_PASSED])
