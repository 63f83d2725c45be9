"""The objects of a cluster that several checks need: each list is read once, and of large lists only what is needed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from gpuhealth.api.names import AGENT as AGENT_ACCOUNT
from gpuhealth.api.names import NAMESPACE
from gpuhealth.fleet.gpu_nodes import has_gpus
from gpuhealth.installation.kinds import CONFIG_MAPS, DAEMON_SETS, DEPLOYMENTS, SERVICE_ACCOUNTS
from gpuhealth.installation.manifests import (
    AGENT,
    COMPONENT_LABEL,
    CONTROLLER,
    NAME,
    NAME_LABEL,
    PREFLIGHT,
    SETTINGS_KEY,
)
from gpuhealth.installation.problem import CannotCheckError
from gpuhealth.kube import errors
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.kinds import NODES, PODS, REPORTS, Kind
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import check_readable, labels
from gpuhealth.runtime.settings_file import ConfigError, load_text

T = TypeVar("T")
_OURS = f"{NAME_LABEL}={NAME}"
_REASON_CHARACTERS = 300
_CONDITION_KEY = re.compile(r'k:\{"type":"(.*)"\}')  # of the list of conditions in managedFields


class Cluster:
    """Reads a cluster for checks. Every method raises CannotCheckError with the reason where that is not possible."""

    def __init__(self, client: Client, namespace: str = "") -> None:
        """`namespace`: of the installation; empty: the one that has an agents' DaemonSet."""
        self.client = client
        self._namespace = namespace
        self._read: dict[tuple[Any, ...], asyncio.Task[Any]] = {}

    async def request(self, work: Awaitable[T], what: str) -> T:
        """The result of a request for something (`what`), with its errors as CannotCheckError."""
        try:
            return await work
        except errors.ForbiddenError:
            raise CannotCheckError(f"not permitted to read {what}") from None
        except errors.NotFoundError:
            raise CannotCheckError(f"this server does not serve {what}", supported=False) from None
        except errors.GoneError:
            raise CannotCheckError(f"{what} changed faster than they could be read") from None
        except errors.TooManyRequestsError:
            raise CannotCheckError(f"the API server is overloaded and refused to send {what}") from None
        except errors.ApiError as error:
            raise CannotCheckError(f"{what}: {str(error)[:_REASON_CHARACTERS]}") from None

    async def _once(self, key: tuple[Any, ...], read: Callable[[], Awaitable[T]]) -> T:
        """The result of `read`, which runs once for each key; other checks that need it wait for the same."""

        async def run() -> T:
            return await read()

        if key not in self._read:
            self._read[key] = asyncio.ensure_future(run())
        found: T = await asyncio.shield(self._read[key])
        return found

    async def objects(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        keep: Callable[[Object], Object] = lambda item: item,
    ) -> list[Object]:
        """All objects of a kind that the selectors match; `keep` returns the parts of one that are needed."""

        async def read() -> list[Object]:
            found: list[Object] = []
            async for page in self.client.pages(kind, namespace, labels=labels, fields=fields):
                found += [keep(item) for item in page.items]
            return found

        where = f" in {namespace}" if namespace else ""
        key = (kind, namespace, labels, fields)
        return await self._once(key, lambda: self.request(read(), f"{kind.plural}{where}"))

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object | None:
        """One object; None where it does not exist."""

        async def read() -> Object | None:
            try:
                return await self.client.get(kind, name, namespace)
            except errors.NotFoundError:
                return None

        return await self._once((kind, namespace, name, "get"), lambda: self.request(read(), f"{kind.plural} {name}"))

    def now(self) -> datetime:
        """The API server's time."""
        return self.client.server_time()

    # --- the installation ---------------------------------------------------------------------------------------------

    async def namespace(self) -> str:
        """The namespace of the installation: the given one, else that of its DaemonSets or of the agent's account."""
        if self._namespace:
            return self._namespace
        try:
            found = await self.objects(DAEMON_SETS, labels=_OURS)
            found = found or await self.objects(SERVICE_ACCOUNTS, fields=f"metadata.name={AGENT_ACCOUNT}")
        except CannotCheckError:  # not permitted in all namespaces
            return NAMESPACE
        namespaces = {item["metadata"]["namespace"] for item in found}
        return NAMESPACE if NAMESPACE in namespaces or not namespaces else min(namespaces)

    async def workload(self, component: str) -> Object | None:
        """The DaemonSet or Deployment of a component; None where there is none."""
        kind = DEPLOYMENTS if component == CONTROLLER else DAEMON_SETS
        found = await self.objects(kind, await self.namespace(), labels=_OURS)
        return next((item for item in found if labels(item).get(COMPONENT_LABEL) == component), None)

    async def workloads(self) -> dict[str, Object]:
        """The DaemonSets and the Deployment of the installation, by component."""
        components = (AGENT, PREFLIGHT, CONTROLLER)
        return {name: found for name in components if (found := await self.workload(name)) is not None}

    async def pods(self, component: str) -> list[Object]:
        """The pods of a component."""
        selector = f"{_OURS},{COMPONENT_LABEL}={component}"
        return await self.objects(PODS, await self.namespace(), labels=selector, keep=_without_managed_fields)

    async def settings_text(self) -> str:
        """The settings in the ConfigMap that the agents mount, else in the ConfigMap gpuhealth."""
        volumes = pod_spec(await self.workload(AGENT)).get("volumes") or []
        names = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
        name = names[0] if names else NAME
        found = await self.get(CONFIG_MAPS, name, await self.namespace())
        text = ((found or {}).get("data") or {}).get(SETTINGS_KEY)
        if text is None:
            raise CannotCheckError(f"there is no ConfigMap {name} with the key {SETTINGS_KEY}")
        return str(text)

    async def settings(self) -> Settings:
        """The settings of the agents, by ConfigMap and environment."""
        text = await self.settings_text()
        containers = pod_spec(await self.workload(AGENT)).get("containers") or [{}]
        variables = containers[0].get("env") or []
        environment = {each["name"]: each["value"] for each in variables if each.get("value")}
        try:
            return load_text(Settings, text, environment, Path(SETTINGS_KEY))
        except ConfigError as error:
            raise CannotCheckError(f"the settings cannot be read: {error}") from None

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def nodes(self) -> list[Object]:
        """All Nodes, without what no check needs."""
        return await self.objects(NODES, keep=_kept_of_node)

    async def gpu_nodes(self) -> list[Object]:
        """The Nodes that show GPUs and can be read."""
        return [node for node in await self.nodes() if not node.get("unreadable") and has_gpus(node)]

    async def reports(self) -> dict[str, Object]:
        """The status of each GPUHealthReport by its node, without findings and inventory."""
        found = await self.objects(REPORTS, keep=_kept_of_report)
        return {item["metadata"]["name"]: item["status"] for item in found}


def pod_spec(workload: Object | None) -> Object:
    """The spec of a workload's pods; empty without a workload."""
    spec: Object = ((workload or {}).get("spec") or {}).get("template", {}).get("spec") or {}
    return spec


def _without_managed_fields(item: Object) -> Object:
    item["metadata"].pop("managedFields", None)
    return item


def _kept_of_node(item: Object) -> Object:
    """A Node without images and managedFields, of which only the writers of conditions are kept."""
    metadata, status = item["metadata"], item.get("status") or {}
    kept: Object = {
        "metadata": {key: metadata[key] for key in ("name", "uid", "labels", "annotations") if key in metadata},
        "spec": item.get("spec") or {},
        "status": {key: status[key] for key in ("conditions", "capacity", "allocatable") if key in status},
        "writers": condition_writers(item),
    }
    try:
        check_readable(kept)
    except errors.AnswerError:
        kept["unreadable"] = True
    return kept


def _kept_of_report(item: Object) -> Object:
    status = item.get("status")
    keys = ("agentVersion", "settingsDigest", "quarantine")
    kept = {key: status[key] for key in keys if key in status} if isinstance(status, dict) else {}
    return {"metadata": {"name": item["metadata"]["name"]}, "status": kept}


def condition_writers(node: Object) -> dict[str, tuple[str, ...]]:
    """The field managers that own a part of each condition of the Node, by its type, as its managedFields show."""
    found: dict[str, set[str]] = {}
    for entry in node["metadata"].get("managedFields") or []:
        fields = entry.get("fieldsV1") or {}
        for key in (fields.get("f:status") or {}).get("f:conditions") or {}:
            if kind := _CONDITION_KEY.fullmatch(key):
                found.setdefault(kind[1], set()).add(str(entry.get("manager")))
    return {kind: tuple(sorted(managers)) for kind, managers in found.items()}
