"""The client against a real API server, directly and through a proxy that fails on demand."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kube import ControlPlane
from kube.control_plane import ADMIN_TOKEN
from kube.proxy import FaultyProxy

from gpuhealth.kube import errors
from gpuhealth.kube.client import JSON_PATCH, MAX_DELAY, Client, retry_delay
from gpuhealth.kube.connection import configuration
from gpuhealth.kube.kinds import EVENTS, LEASES, NODES, Kind

CONFIG_MAPS = Kind("v1", "ConfigMap", "configmaps", namespaced=True)


def test_objects_live_and_die(plane: ControlPlane) -> None:
    """Create, read, replace, merge and JSON patches, list and delete work with plain dicts."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            made = await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}, "data": {"k": "1"}}, "default")
            assert (await client.get(CONFIG_MAPS, "a", "default"))["data"] == {"k": "1"}
            made["data"] = {"k": "2"}
            await client.replace(CONFIG_MAPS, "a", made, "default")
            await client.patch(CONFIG_MAPS, "a", {"data": {"m": "3"}}, "default")
            operation = [{"op": "test", "path": "/data/m", "value": "3"}, {"op": "remove", "path": "/data/m"}]
            await client.patch(CONFIG_MAPS, "a", operation, "default", content_type=JSON_PATCH)
            patched = await client.patch(CONFIG_MAPS, "a", {"data": {"s": "4"}}, "default")
            assert patched["data"] == {"k": "2", "s": "4"}
            listed = await client.list(CONFIG_MAPS, "default", fields="metadata.name=a")
            assert [item["metadata"]["name"] for item in listed.items] == ["a"]
            await client.delete(CONFIG_MAPS, "a", "default", uid=made["metadata"]["uid"])
            with pytest.raises(errors.NotFoundError):
                await client.get(CONFIG_MAPS, "a", "default")

    asyncio.run(run())


def test_refusals_have_types(plane: ControlPlane) -> None:
    """Taken names, old versions, failed tests, wrong uids and bad objects each raise their own error."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            old = await client.create(CONFIG_MAPS, {"metadata": {"name": "b"}}, "default")
            with pytest.raises(errors.AlreadyExistsError):
                await client.create(CONFIG_MAPS, {"metadata": {"name": "b"}}, "default")
            await client.patch(CONFIG_MAPS, "b", {"data": {"k": "1"}}, "default")
            with pytest.raises(errors.ConflictError):
                await client.replace(CONFIG_MAPS, "b", old, "default")
            test = [{"op": "test", "path": "/data/k", "value": "2"}]
            with pytest.raises(errors.InvalidError):
                await client.patch(CONFIG_MAPS, "b", test, "default", content_type=JSON_PATCH)
            with pytest.raises(errors.ConflictError):
                await client.delete(CONFIG_MAPS, "b", "default", uid="another")
            with pytest.raises(errors.InvalidError):
                await client.create(CONFIG_MAPS, {"metadata": {"name": "Not Valid"}}, "default")
            await client.delete(CONFIG_MAPS, "b", "default", grace=0)

    asyncio.run(run())


def test_pages(plane: ControlPlane) -> None:
    """A list comes in pages of the size that is asked for, with metadata alone if that is enough."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            for k in range(5):
                await client.create(CONFIG_MAPS, {"metadata": {"name": f"p-{k}", "labels": {"p": "1"}}}, "default")
            pages = client.pages(CONFIG_MAPS, "default", labels="p=1", limit=2, metadata_only=True)
            sizes = [len(page.items) async for page in pages]
            assert sizes == [2, 2, 1]

    asyncio.run(run())


def test_discovery(plane: ControlPlane) -> None:
    """The versions of a group are asked from the server; a group that is not there has none."""

    async def run() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            assert "policy/v1beta1" in await client.served_versions("policy") or plane.minor >= 25
            assert await client.served_versions("no.such.group") == ()

    asyncio.run(run())


@pytest.mark.parametrize("fault", [500, 502, 503, 504, 429, "reset", "lost"])
def test_what_can_be_repeated_is_repeated(plane: ControlPlane, fault: int | str) -> None:
    """A read survives flow control, server errors and broken connections, and the attempts are counted."""

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            proxy.fail(fault, times=2)
            found = await client.request("GET", "/version")
            assert found["major"] == "1"
            if isinstance(fault, int):
                assert client.calls == {("GET", fault): 2, ("GET", 200): 1}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, None),
        ("2", 2),
        ("86400", errors.MAX_RETRY_AFTER),
        ("9" * 400, errors.MAX_RETRY_AFTER),
        ("²", None),
        ("-1", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_what_a_server_may_ask_for(said: str | None, seconds: float | None) -> None:
    """Some patience, whatever it says; a date is as if it had said nothing."""
    assert errors.from_status(429, {}, said).retry_after == seconds


def test_a_fleet_comes_back_bit_by_bit() -> None:
    """A thousand agents with the same Retry-After come after it, spread over as much time again, and not at once."""
    error = errors.TooManyRequestsError("busy", status=429, retry_after=10)
    waits = [retry_delay(error, 1) for _ in range(1000)]
    assert {int(wait) for wait in waits} == set(range(10, 20))
    silent = errors.UnavailableError("no answer")
    assert max(retry_delay(silent, 20) for _ in range(1000)) <= MAX_DELAY
    assert min(retry_delay(silent, 20, longest=60.0) for _ in range(1000)) >= 30.0


def test_retry_after_is_obeyed(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is not shorter than the server asks; more than the limit is left to the caller, with the number."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def remember(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            monkeypatch.setattr("gpuhealth.kube.client.asyncio.sleep", remember)
            proxy.fail(429, retry_after="2")
            await client.request("GET", "/version")
            assert 2 <= max(waits) <= 4
            proxy.fail(429, retry_after="30")
            with pytest.raises(errors.TooManyRequestsError) as caught:
                await client.request("GET", "/version")
            assert caught.value.retry_after == 30

    asyncio.run(run())


def test_retries_are_bounded(plane: ControlPlane) -> None:
    """A server that never recovers is reported after as many attempts as were set."""

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig, attempts=3) as client:
            proxy.fail(503, times=-1)
            with pytest.raises(errors.UnavailableError):
                await client.get(NODES, "any")
            assert client.calls == {("GET", 503): 3}

    asyncio.run(run())


def test_what_must_not_be_repeated_is_not(plane: ControlPlane) -> None:
    """A POST whose fate is not known is repeated under a name, and only then; a refused one (429) always."""

    async def run() -> None:
        async with FaultyProxy(plane) as proxy, Client.from_kubeconfig(proxy.kubeconfig) as client:
            proxy.fail("lost", method="POST")
            with pytest.raises(errors.AlreadyExistsError):
                await client.create(CONFIG_MAPS, {"metadata": {"name": "lost"}}, "default")
            proxy.fail(503, method="POST")
            with pytest.raises(errors.UnavailableError):
                await client.create(CONFIG_MAPS, {"metadata": {"generateName": "x-"}}, "default")
            proxy.fail(429, method="POST")
            await client.create(CONFIG_MAPS, {"metadata": {"generateName": "x-"}}, "default")

    asyncio.run(run())


def test_a_hung_server_is_not_waited_for(plane: ControlPlane) -> None:
    """Every call has a deadline, and the error says so."""

    async def run() -> None:
        async with (
            FaultyProxy(plane) as proxy,
            Client.from_kubeconfig(proxy.kubeconfig, timeout=0.2, attempts=1) as client,
        ):
            proxy.fail("hang", times=-1)
            with pytest.raises(errors.UnavailableError, match=r"within 0\.2 s"):
                await client.get(NODES, "any")

    asyncio.run(run())


def test_nobody_listens(plane: ControlPlane, tmp_path: Path) -> None:
    """A refused connection and a server that is not HTTP at all are outages like any other."""

    async def run() -> None:
        with socket.socket() as taken:  # and nobody else gets the port meanwhile
            taken.bind(("127.0.0.1", 0))
            kubeconfig = plane.write_kubeconfig("nobody", "t", f"http://127.0.0.1:{taken.getsockname()[1]}")
            async with Client.from_kubeconfig(kubeconfig, attempts=2) as client:
                with pytest.raises(errors.UnavailableError):
                    await client.get(NODES, "any")

    asyncio.run(run())


def test_rotated_token(plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod a 401 makes the token be read again, once; many calls at once read it once."""
    token = tmp_path / "token"
    (tmp_path / "ca.crt").write_bytes(plane.ca.read_bytes())
    token.write_text("expired")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(plane.port))
    read = 0

    async def run() -> None:
        async def configure() -> object:
            nonlocal read
            read += 1
            return await configuration(service_account=tmp_path)

        async with Client(configure) as client:
            with pytest.raises(errors.UnauthorizedError):
                await client.get(NODES, "any")
            token.write_text(ADMIN_TOKEN)
            answers = await asyncio.gather(*[client.request("GET", "/api/v1/namespaces/default") for _ in range(10)])
            assert len(answers) == 10
            assert read == 3, "at the start, after the first refusal, and once for the ten"

    asyncio.run(run())


@pytest.mark.parametrize(
    "text", ["", "[]", "a: {", "current-context: x", "{current-context: x, contexts: [], clusters: []}"]
)
def test_unusable_configuration(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a kubeconfig, the error is ours."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = tmp_path / "kubeconfig"

    async def run() -> None:
        async with Client.from_kubeconfig(path) as client:
            with pytest.raises(errors.NoConfigurationError):
                await client.get(NODES, "any")

    asyncio.run(run())
    path.write_text(text)
    asyncio.run(run())


def test_observer_and_two_identities(plane: ControlPlane) -> None:
    """The observer is called for every attempt, and missing rights are a ForbiddenError."""
    observed: list[tuple[str, int]] = []
    plane.request("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "nobody"}})
    kubeconfig = plane.write_kubeconfig("nobody", plane.service_account_token("default", "nobody"))

    async def run() -> None:
        async with Client.from_kubeconfig(kubeconfig, observer=lambda *call: observed.append(call)) as client:
            with pytest.raises(errors.ForbiddenError):
                await client.list(LEASES, "default")

    asyncio.run(run())
    assert observed == [("GET", 403)]


def test_slim_import() -> None:
    """The client does without the library's models and synchronous half, and leaves the real package to others."""
    program = """
import sys
import gpuhealth.kube.client
assert not [name for name in sys.modules if name.startswith("kubernetes")]
assert "websocket" not in sys.modules and "urllib3" not in sys.modules
import kubernetes.aio.client
assert kubernetes.aio.client.CoreV1Api and kubernetes.client.CoreV1Api
from gpuhealth.kube import slim_import
assert slim_import.load().api_client is kubernetes.aio.client.ApiClient
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_kinds_have_addresses() -> None:
    """Core and named groups, cluster and namespace, object and subresource."""
    assert NODES.path("n", subresource="status") == "/api/v1/nodes/n/status"
    assert EVENTS.path(namespace="default") == "/api/v1/namespaces/default/events"
    assert LEASES.path("l", "ns") == "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l"
