"""The connection to the API server: address, TLS, credentials, and requests through `kubernetes.aio`.

Only the library's transport is used, and none of its models. Added here: credentials are read again without breaking
connections, and close() leaves no socket open.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

import aiohttp

from gpuhealth import __version__
from gpuhealth.kube import slim_import
from gpuhealth.kube.errors import NoConfigurationError

Query = Mapping[str, str | int]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PROXY_VARIABLES = {"http_proxy", "https_proxy", "all_proxy"}
_CLOSE_SECONDS, _CLOSE_CHECKS = 2.0, 200

_library = slim_import.load()


async def configuration(
    kubeconfig: Path | None = None, context: str | None = None, service_account: Path = SERVICE_ACCOUNT
) -> Any:
    """The library's Configuration: of a kubeconfig, else of the pod's service account, else of ~/.kube/config.

    Raises NoConfigurationError.
    """
    loaded = _library.configuration()
    try:
        if kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            # The loader reads the token file again every minute: the kubelet rotates it.
            _library.in_cluster_loader(
                token_filename=str(service_account / "token"), cert_filename=str(service_account / "ca.crt")
            ).load_and_set(loaded)
            return loaded
        await _library.load_kube_config(
            config_file=_kubeconfig(kubeconfig), context=context, client_configuration=loaded, persist_config=False
        )
    except NoConfigurationError:
        raise
    except Exception as error:  # the loader raises arbitrary errors for a malformed file
        raise NoConfigurationError(f"the cluster configuration cannot be used: {error}") from error
    return loaded


def _kubeconfig(given: Path | None) -> str:
    default = os.path.expanduser("~/.kube/config")  # noqa: PTH111 - it accepts a user without a home
    files = str(given or os.environ.get("KUBECONFIG") or default)
    if not any(Path(file).exists() for file in files.split(os.pathsep)):
        raise NoConfigurationError(f"no service account, and no kubeconfig at {files}")
    return files


class Connection:
    """The sockets to the API server for one identity. The first request opens them."""

    def __init__(
        self, configure: Callable[[], Awaitable[Any]], connections: int = 0, user_agent: str = "gpuhealth"
    ) -> None:
        """`connections`: how many at once; 0: no limit, since every watch needs one of its own."""
        self.generation = 0  # how often the credentials were read again
        self._connections = connections
        self._user_agent = user_agent
        self._configure = configure
        self._api: Any = None
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        """Close all sockets; return once they are closed, or after two seconds."""
        api, self._api = self._api, None
        if api is not None:
            await api.close()
            await asyncio.sleep(0)  # in which the loop closes the sockets of aborted watches
            # Other aborted requests have sent close_notify over TLS, and the library does not wait for the response.
            for _ in range(_CLOSE_CHECKS):
                if all(opened.fileno() < 0 for opened in self._sockets):
                    return
                await asyncio.sleep(_CLOSE_SECONDS / _CLOSE_CHECKS)

    async def send(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Any,
        headers: dict[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """Send a request and return the response, whose body has not been read yet."""
        api = await self._connected()
        try:
            request = await api.param_serialize(
                method,
                path,
                query_params=list(query.items()) if query else None,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
        except _library.config_exception as error:  # the token file, which is read again from time to time
            raise NoConfigurationError(f"the service account's token cannot be read: {error}") from error
        answer = await api.call_api(*request, _request_timeout=limits)
        response: aiohttp.ClientResponse = answer.response
        return response

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._api is None:
                configured = await self._configure()
                configured.connection_pool_maxsize = self._connections
                # Looking up a proxy costs every request two hops through a thread: only where there may be one.
                proxied = any(name.lower() in _PROXY_VARIABLES for name in os.environ)
                configured.client_session_kwargs = {"trust_env": proxied}
                self._api = _library.api_client(configured)
                self._api.rest_client._create_connector = lambda: _connector(self._api.rest_client, self._sockets)  # noqa: SLF001
                self._api.user_agent = f"{self._user_agent}/{__version__}"
            return self._api

    async def read_credentials_again(self, generation: int) -> None:
        """Read the credentials again after a 401, once for all requests of a generation; no connection is broken."""
        async with self._connecting:
            if generation == self.generation and self._api is not None:
                self.generation += 1
                fresh = await self._configure()
                self._api.configuration.api_key = fresh.api_key
                self._api.configuration.refresh_api_key_hook = fresh.refresh_api_key_hook


def _connector(rest: Any, sockets: WeakSet[socket.socket]) -> aiohttp.TCPConnector:
    """The connector as the library makes it (the method is meant to be overridden), with its sockets recorded."""

    def opened(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        sockets.add(made)
        return made

    return aiohttp.TCPConnector(limit=rest.maxsize, ssl=rest.ssl_context, socket_factory=opened)
