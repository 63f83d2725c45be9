"""Is the API server new enough?"""

from __future__ import annotations

import re

from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.problem import CannotCheckError, Problem, error

OLDEST = 20
"""Minor version of the oldest Kubernetes 1 that is supported."""


async def check(cluster: Cluster) -> list[Problem]:
    """The version of the API server."""
    found = await cluster.request(cluster.client.request("GET", "/version"), "its version")
    major, minor = (re.match(r"\d+", str(found.get(key) or "")) for key in ("major", "minor"))  # minor may be "20+"
    if not (major and minor):
        raise CannotCheckError(f"the API server's version cannot be read: {str(found)[:100]}")
    if (int(major[0]), int(minor[0])) >= (1, OLDEST):
        return []
    version = f"{major[0]}.{minor[0]}"
    return [error(f"the API server is Kubernetes {version}, older than 1.{OLDEST}", "upgrade the cluster")]
