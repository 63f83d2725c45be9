"""What the API server refuses becomes the reason why a check could not be made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpuhealth.installation import doctor
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.problem import CannotCheckError, NotChecked, Problem
from gpuhealth.kube import errors
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import from_status

REFUSALS = {
    403: ("not permitted to read pods", True),
    404: ("this server does not serve pods", False),
    410: ("pods changed faster than they could be read", True),
    429: ("the API server is overloaded and refused to send pods", True),
    500: ("pods: etcd is away", True),
}


@pytest.mark.parametrize("status", REFUSALS)
def test_refusals(status: int) -> None:
    """Each refusal is a reason; only a kind that the server lacks is nothing to check."""

    async def refused() -> None:
        raise from_status(status, {"message": "etcd is away"})

    expected, supported = REFUSALS[status]
    with pytest.raises(CannotCheckError) as raised:
        asyncio.run(Cluster(Client()).request(refused(), "pods"))
    assert (str(raised.value), raised.value.supported) == (expected, supported)


def test_a_timeout() -> None:
    """No response in time is a reason, too."""

    async def refused() -> None:
        raise errors.UnavailableError("no response within 30 s")

    with pytest.raises(CannotCheckError, match="pods: no response within 30 s"):
        asyncio.run(Cluster(Client()).request(refused(), "pods"))


@pytest.mark.parametrize(
    "content", [TypeError("'int' object is not iterable"), KeyError("metadata"), ValueError("year 0")]
)
def test_unexpected_content(content: Exception) -> None:
    """An object that no check expects costs this check and no other."""

    async def check(_cluster: Any) -> list[Problem]:
        raise content

    found = asyncio.run(doctor.run_check("agents", check, Cluster(Client())))
    assert isinstance(found, NotChecked)
    assert found.supported
    assert type(content).__name__ in found.reason
