"""Who may read, asked of a real API server with real tokens."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector
from kube import ControlPlane, documents
from kube.proxy import FaultyProxy
from testing.certificates import Authority
from testing.paths import BASE

from gpuhealth.controller import http_app as controller
from gpuhealth.controller.controller import Controller
from gpuhealth.kube import authorizer
from gpuhealth.kube.authorizer import authorizer_for
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.http_server import OPEN_PATHS, Page, Response, serving
from gpuhealth.runtime.settings import Http, Kubernetes

ACCESS = documents(BASE / "components" / "secure-metrics" / "access.yaml")
READER = {"kind": "ServiceAccount", "name": "reader", "namespace": "default"}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take long to answer, and the tests long to ask again."""
    monkeypatch.setattr(authorizer, "TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(authorizer, "CACHE_SECONDS", 3600.0)


@pytest.fixture(scope="module")
def rights(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The component's RBAC, and a service account `reader` that may read metrics, and `stranger` that may not."""
    for name in ("reader", "stranger"):
        plane.apply([{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}])
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "gpuhealth-metrics-reader"}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
    plane.apply([*ACCESS, {**binding, "metadata": {"name": "reader"}, "roleRef": role, "subjects": [READER]}])
    yield plane
    for document in ACCESS:
        plane.request("DELETE", plane.path_of(document))


async def page() -> Response:
    """A page with one word."""
    return Response(b"read\n")


PAGES: dict[str, Page] = {"/metrics": page, "/other": page, "/healthz": page, "/readyz": page}


class Reader:
    """Asks a server for pages."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def status(self, path: str, token: str | None = None, method: str = "GET") -> int:
        """Status of the response to a request."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self._session.request(method, path, headers=headers) as answer:
            return answer.status


@asynccontextmanager
async def served(folder: Path, kubeconfig: Path, pages: dict[str, Page] = PAGES) -> AsyncIterator[Reader]:
    """The pages, for those who may read them."""
    authority, cert, key = Authority(folder), folder / "tls.crt", folder / "tls.key"
    authority.issue(cert, key, "server")
    tls = {"cert": cert, "key": key}
    http = Http.model_validate({"host": "127.0.0.1", "port": 0, "tls": tls, "authorization": "kubernetes"})
    connector = TCPConnector(ssl=ssl.create_default_context(cafile=str(authority.cert)))
    async with (
        serving(http, pages, authorizer_for(http, Kubernetes(kubeconfig=kubeconfig))) as port,
        ClientSession(f"https://127.0.0.1:{port}", connector=connector) as session,
    ):
        yield Reader(session)


@pytest.mark.parametrize("account", ["gpuhealth-agent", "gpuhealth-controller"])
def test_tokens(rights: ControlPlane, tmp_path: Path, account: str) -> None:
    """A token that may reads the pages that it may; no token, a wrong one and one without the right do not."""
    reader, stranger = (rights.service_account_token("default", name) for name in ("reader", "stranger"))
    other_audience = rights.service_account_token("default", "reader", audience="elsewhere")
    own = rights.write_kubeconfig(account, rights.service_account_token("gpuhealth", account))

    async def body() -> None:
        async with served(tmp_path, own) as read:
            assert await read.status("/metrics", reader) == 200
            assert await read.status("/metrics", reader, "HEAD") == 200
            assert await read.status("/metrics", reader, "POST") == 405
            assert await read.status("/other", reader) == 403, "only what the ClusterRole names"
            assert await read.status("/metrics", stranger) == 403
            assert await read.status("/metrics", "garbage") == 401
            assert await read.status("/metrics", reader[:-8] + "AAAAAAAA") == 401
            assert await read.status("/metrics", other_audience) == 401
            assert await read.status("/metrics", "") == 401
            assert await read.status("/metrics") == 401
            for path in OPEN_PATHS:
                assert await read.status(path) == 200

    asyncio.run(body())


def test_answers_are_remembered_for_a_while(
    rights: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question for many scrapes, yes or no; asked again when the time is over; no more answers than the limit."""
    reader = rights.service_account_token("default", "reader")
    monkeypatch.setattr(authorizer, "CACHE_SIZE", 3)

    async def body() -> None:
        async with FaultyProxy(rights) as proxy, served(tmp_path, proxy.kubeconfig) as read:
            for _ in range(5):
                assert await read.status("/metrics", reader) == 200
                assert await read.status("/metrics", "garbage") == 401
            assert [path.rpartition("/")[2] for _, path in proxy.seen] == [
                "tokenreviews",
                "subjectaccessreviews",
                "tokenreviews",
            ]
            for number in range(3):
                assert await read.status("/metrics", f"garbage-{number}") == 401
            proxy.seen.clear()
            assert await read.status("/metrics", reader) == 200
            assert len(proxy.seen) == 2, "it had to make room"
            monkeypatch.setattr(authorizer, "CACHE_SECONDS", -1.0)
            assert await read.status("/other", reader) == 403
            assert await read.status("/other", reader) == 403
            assert len(proxy.seen) == 6

    asyncio.run(body())


def test_nobody_is_let_in_without_an_answer(
    rights: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """API server away, failing, silent, or refusing us the question: 503 for every token, and open pages stay open."""
    reader = rights.service_account_token("default", "reader")
    powerless = rights.write_kubeconfig("powerless", rights.service_account_token("default", "stranger"))

    async def body() -> None:
        async with FaultyProxy(rights) as proxy, served(tmp_path, proxy.kubeconfig) as read:
            for fault in ("reset", 500):
                proxy.fail(fault, times=-1)
                assert await read.status("/metrics", reader) == 503
                assert await read.status("/healthz") == 200
                proxy.heal()
            proxy.fail(500, path="subjectaccessreviews", times=-1)
            assert await read.status("/metrics", reader) == 503
            proxy.heal()
            assert await read.status("/metrics", reader) == 200, "a failure is not remembered"
            proxy.fail("hang", times=-1)
            with monkeypatch.context() as impatient:
                impatient.setattr(authorizer, "TIMEOUT_SECONDS", 0.5)
                async with served(tmp_path, proxy.kubeconfig) as read:
                    assert await read.status("/metrics", reader) == 503
                    assert await read.status("/healthz") == 200
        async with served(tmp_path, powerless) as read:
            assert await read.status("/metrics", reader) == 503
        async with served(tmp_path, tmp_path / "absent") as read:
            assert await read.status("/metrics", reader) == 503

    asyncio.run(body())


def test_the_controllers_pages(tmp_path: Path) -> None:
    """The controller's are as closed as the agent's, and none of them takes anything."""
    settings = Settings.model_validate({"kubernetes": {"kubeconfig": tmp_path / "absent"}})

    async def body() -> None:
        pages = controller.pages(Controller(settings))
        assert set(pages) == {"/metrics", "/healthz", "/readyz"}
        http = Http(host="127.0.0.1", port=0)
        async with (
            serving(http, pages) as port,
            ClientSession(f"http://127.0.0.1:{port}") as session,
        ):
            read = Reader(session)
            for path in pages:
                for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                    assert await read.status(path, method=method) == 405
            assert await read.status("/metrics") == 200
            assert await read.status("/readyz") == 503
        async with served(tmp_path, tmp_path / "absent", pages) as read:
            assert await read.status("/metrics") == 401
            assert await read.status("/healthz") == 200

    asyncio.run(body())
