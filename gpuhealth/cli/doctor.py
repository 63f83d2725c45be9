"""`gpuhealth doctor`: checks an installation of gpuhealth in a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gpuhealth.cli import cluster_access, options
from gpuhealth.cli.output import DEGRADED, HEALTHY, UNHEALTHY, UNKNOWN, console
from gpuhealth.cli.streams import standard

if TYPE_CHECKING:
    from gpuhealth.installation.doctor import Diagnosis
    from gpuhealth.kube.client import Client


def command(
    context: cluster_access.Context = None,
    namespace: cluster_access.Namespace = "",
    as_json: options.Json = False,
    kubeconfig: cluster_access.Kubeconfig = None,
) -> None:
    """Check an installation in a cluster: what is wrong, and what to do.

    It only reads, with the rights of your kubeconfig; what these do not allow is listed as not checked.
    Exit codes: 0 fine, 1 warnings, 2 errors or not installed, 3 could not check.
    """

    async def diagnose(client: Client) -> Diagnosis:
        from gpuhealth.installation import doctor
        from gpuhealth.installation.cluster import Cluster

        return await doctor.diagnose(Cluster(client, namespace))

    found = cluster_access.run(diagnose, kubeconfig, context)
    if as_json:
        import msgspec

        standard.write_line(msgspec.json.encode(found))
    else:
        from gpuhealth.cli.doctor_report import show

        show(console(), found)
    codes = {"fine": HEALTHY, "warning": DEGRADED, "error": UNHEALTHY, "not_installed": UNHEALTHY}
    code = codes.get(found.answer, UNKNOWN)
    if code == UNKNOWN:
        count = len([each for each in found.not_checked if each.supported])
        typer.echo(f"gpuhealth: {count} of the checks could not be made", err=True)
    raise typer.Exit(code)
