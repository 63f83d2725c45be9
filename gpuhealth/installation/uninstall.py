"""Removes gpuhealth from a cluster: first what could put marks back, then the marks, then everything else.

Each step finds what is still there, so that a removal that was interrupted continues when it is started again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable

import msgspec

from gpuhealth.api import crd
from gpuhealth.api.budget import DEFINITION as BUDGET
from gpuhealth.api.names import BUDGET_LABEL, CONTROLLER_LEASE, NAMESPACE, PREFLIGHT_TAINT
from gpuhealth.api.report import DEFINITION as REPORT
from gpuhealth.installation import kinds
from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.manifests import (
    AGENT,
    BURNIN,
    COMPONENT_LABEL,
    CONTROLLER,
    HOST_FOLDER,
    NAME,
    NAME_LABEL,
    NAMES,
    PREFLIGHT,
)
from gpuhealth.installation.node_marks import MarksRemoval, removal
from gpuhealth.installation.problem import CannotCheckError, some_of
from gpuhealth.kube.client import STRATEGIC_MERGE_PATCH, Client, Object
from gpuhealth.kube.errors import ConflictError, GoneError, NotFoundError
from gpuhealth.kube.kinds import LEASES, NAMESPACES, NODES, POD_TEMPLATES, PODS, Kind
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import annotations_of, labels

_AT_ONCE = 10  # Nodes
_ATTEMPTS = 10  # of one Node, which others change
_LISTINGS = 3
_POLL_SECONDS = 0.5
_WORKLOADS = (kinds.DAEMON_SETS, kinds.DEPLOYMENTS)
_BINDINGS = (kinds.CLUSTER_ROLE_BINDINGS, kinds.ROLE_BINDINGS)
_REST = (
    kinds.SERVICES,
    POD_TEMPLATES,
    kinds.CONFIG_MAPS,
    kinds.ROLES,
    kinds.CLUSTER_ROLES,
    kinds.PRIORITY_CLASSES,
    kinds.ADMISSION_BINDINGS,
    kinds.ADMISSION_POLICIES,
    kinds.SERVICE_ACCOUNTS,  # the last in the namespace: by the agent's, a removal that continues finds it
)
REMOVED = frozenset(kind.kind for kind in (*_WORKLOADS, *_BINDINGS, *_REST, kinds.CUSTOM_RESOURCES, NAMESPACES, LEASES))
"""Kinds of objects that are removed."""
_OF_OTHERS = (PODS, *_WORKLOADS, kinds.SERVICES, kinds.CONFIG_MAPS)
"""Kinds of objects that keep a namespace from being deleted if they are not ours."""
_MADE_BY_KUBERNETES = ("kube-root-ca.crt", "openshift-service-ca.crt")
_APPLIERS = {  # labels and annotations of what applies objects again and again, or keeps a record of them
    "argocd.argoproj.io/instance": "the Argo CD application {} applies gpuhealth again: delete it there",
    "argocd.argoproj.io/tracking-id": "the Argo CD application {} applies gpuhealth again: delete it there",
    "kustomize.toolkit.fluxcd.io/name": "the Flux Kustomization {} applies gpuhealth again: delete it there",
    "meta.helm.sh/release-name": "the record of the Helm release: helm uninstall {}",
}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done, or would be."""

    action: str  # delete, or unmark
    kind: str
    name: str  # with the namespace, where there is one
    detail: str = ""


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """What a removal has done, or would do; `uninstall --json` prints it."""

    dry_run: bool
    changes: tuple[Change, ...]
    returned: dict[str, str]  # nodes that were out of service and return to it, and the finding
    left: tuple[str, ...]  # what stays, and how to remove it


class Uninstaller:
    """Removes an installation, or shows what would be removed."""

    def __init__(
        self,
        client: Client,
        namespace: str = "",
        *,
        dry_run: bool,
        wait_seconds: float = 120.0,
        on_change: Callable[[Change], None] = lambda _change: None,
    ) -> None:
        """`wait_seconds`: for pods to end; `on_change` is called after each change."""
        self._client = client
        self._cluster = Cluster(client, namespace)
        self._dry_run = dry_run
        self._wait_seconds = wait_seconds
        self._on_change = on_change
        self._changes: list[Change] = []
        self._returned: dict[str, str] = {}
        self._mirrors: tuple[str, ...] = ()  # types of conditions besides GPUHealthy
        self._left: list[str] = []

    async def run(self) -> Removal:
        """Remove everything. Raises ClusterError where a request is refused; what was done until then stays done."""
        namespace = await self._cluster.namespace()
        settings = await self._settings()
        preflight_taints = {PREFLIGHT_TAINT, *([settings.preflight.taint] if settings else [])}
        self._mirrors = tuple(mirror.type for mirror in settings.conditions) if settings else ()
        await self._delete_workloads(namespace)
        await self._delete_all(_BINDINGS, namespace)
        await self._end_pods(namespace)
        await self._unmark_nodes(preflight_taints)
        await self._delete_leases(namespace)
        await self._delete_all(_REST, namespace)
        for definition in (REPORT, BUDGET):
            await self._delete(kinds.CUSTOM_RESOURCES, crd.name_of(definition), detail="with all its objects")
        await self._delete_namespace(namespace)
        keys = " or ".join(sorted(preflight_taints))
        self._left.append(f"on each node the folder {HOST_FOLDER}: rm -r {HOST_FOLDER}")
        self._left.append(f"kubelet flags and node pools that set {keys}: remove it there, or new nodes get no work")
        return Removal(
            dry_run=self._dry_run,
            changes=tuple(self._changes),
            returned=dict(sorted(self._returned.items())),
            left=tuple(dict.fromkeys(self._left)),
        )

    async def _settings(self) -> Settings | None:
        try:
            return await self._cluster.settings()
        except CannotCheckError:  # the ConfigMap is gone, or cannot be read
            return None

    # --- what could put marks back ------------------------------------------------------------------------------------

    async def _delete_workloads(self, namespace: str) -> None:
        for kind in _WORKLOADS:
            for item in await self._ours(kind, namespace):
                known = annotations_of(item) | labels(item)
                appliers = {key: text for key, text in _APPLIERS.items() if key in known}
                self._left += [text.format(known[key].partition(":")[0]) for key, text in appliers.items()]
                await self._delete(kind, item["metadata"]["name"], namespace)

    async def _end_pods(self, namespace: str) -> None:
        """Delete the pods, and wait for them: an agent that still runs has no rights, but may be about to write."""
        deadline = time.monotonic() + self._wait_seconds
        asked: set[str] = set()
        while pods := await self._own_pods(namespace):
            for pod in pods:
                name = pod["metadata"]["name"]
                if name not in asked:
                    asked.add(name)
                    await self._delete(PODS, name, namespace)
            if self._dry_run:
                return
            if time.monotonic() > deadline:
                names = [pod["metadata"]["name"] for pod in pods]
                self._left.append(
                    f"pods that have not ended, without rights: {some_of(names)}; they end with their nodes"
                )
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _own_pods(self, namespace: str) -> list[Object]:
        components = ",".join((AGENT, PREFLIGHT, CONTROLLER, BURNIN))
        selector = f"{NAME_LABEL}={NAME},{COMPONENT_LABEL} in ({components})"
        return (await self._client.list(PODS, namespace, labels=selector)).items

    # --- marks --------------------------------------------------------------------------------------------------------

    async def _unmark_nodes(self, preflight_taints: Collection[str]) -> None:
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def unmark(node: Object) -> None:
            async with at_once:
                await self._unmark(node, preflight_taints)

        await asyncio.gather(*(unmark(node) for node in await self._marked_nodes(preflight_taints)))

    async def _marked_nodes(self, preflight_taints: Collection[str]) -> list[Object]:
        """The Nodes with marks; all are read before the first is changed, since a long list may expire meanwhile."""
        for attempt in range(_LISTINGS):
            found: list[Object] = []
            try:
                async for page in self._client.pages(NODES):
                    for node in page.items:
                        steps = self._removal(node, preflight_taints)
                        if steps and (steps.changes or steps.left):
                            found.append(node)
            except GoneError:
                if attempt == _LISTINGS - 1:
                    raise
                continue
            return found
        return []

    def _removal(self, node: Object, preflight_taints: Iterable[str]) -> MarksRemoval | None:
        try:
            return removal(node, preflight_taints, self._mirrors)
        except Exception as error:  # noqa: BLE001 - of a Node that cannot be read; the others follow
            name = (node.get("metadata") or {}).get("name")
            self._left.append(
                f"the marks of {name}, which cannot be read ({type(error).__name__}): kubectl edit node {name}"
            )
            return None

    async def _unmark(self, node: Object, preflight_taints: Iterable[str]) -> None:
        name = node["metadata"]["name"]
        for attempt in range(_ATTEMPTS):
            steps = self._removal(node, preflight_taints)
            if steps is None:
                return
            try:
                await self._apply(name, steps)
            except NotFoundError:  # deleted meanwhile
                return
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
                node = await self._client.get(NODES, name)
                continue
            self._left += steps.left
            if steps.returns:
                self._returned[name] = steps.returns
            if steps.changes:
                self._changed(Change(action="unmark", kind="Node", name=name, detail=", ".join(steps.changes)))
            return

    async def _apply(self, name: str, steps: MarksRemoval) -> None:
        if self._dry_run:
            return
        if steps.patch is not None:
            await self._client.patch(NODES, name, steps.patch)
        if steps.status_patch is not None:
            content = STRATEGIC_MERGE_PATCH
            await self._client.patch(NODES, name, steps.status_patch, content_type=content, subresource="status")

    async def _delete_leases(self, namespace: str) -> None:
        slots = await self._client.list(LEASES, namespace, labels=BUDGET_LABEL)
        for lease in slots.items:
            holder = (lease.get("spec") or {}).get("holderIdentity")
            await self._delete(LEASES, lease["metadata"]["name"], namespace, detail=f"budget slot of {holder}")
        leases = (await self._client.list(LEASES, namespace, fields=f"metadata.name={CONTROLLER_LEASE}")).items
        for lease in leases:
            await self._delete(LEASES, lease["metadata"]["name"], namespace, detail="leader election")

    # --- everything else ----------------------------------------------------------------------------------------------

    async def _delete_all(self, which: Iterable[Kind], namespace: str) -> None:
        for kind in which:
            scopes: tuple[str, ...] = (namespace if kind.namespaced else "",)
            if kind in (kinds.ROLES, kinds.ROLE_BINDINGS):
                scopes = (namespace, "default")  # of Events about Nodes, which are there
            for scope in dict.fromkeys(scopes):
                for item in await self._ours(kind, scope):
                    await self._delete(kind, item["metadata"]["name"], scope)
        if kinds.CLUSTER_ROLE_BINDINGS in which:
            await self._note_bindings()

    async def _note_bindings(self) -> None:
        """Bindings of others to our roles: without the roles they grant nothing."""
        for item in await self._client_list(kinds.CLUSTER_ROLE_BINDINGS, ""):
            if (item.get("roleRef") or {}).get("name") in NAMES and not _is_ours(item):
                name = item["metadata"]["name"]
                self._left.append(f"a binding to a deleted role: kubectl delete clusterrolebinding {name}")

    async def _delete_namespace(self, namespace: str) -> None:
        found = await self._cluster.get(NAMESPACES, namespace)
        if found is None or (found.get("status") or {}).get("phase") == "Terminating":
            return
        others: list[str] = []
        for kind in _OF_OTHERS:
            for item in await self._client_list(kind, namespace):
                name = item["metadata"]["name"]
                if not (_is_ours(item) or name in _MADE_BY_KUBERNETES):
                    others.append(f"{kind.kind} {name}")
        if namespace != NAMESPACE:
            self._left.append(
                f"the namespace {namespace}, which is not of daemonset/: kubectl delete namespace {namespace}"
            )
        elif others:
            self._left.append(f"the namespace {namespace}, which holds objects of others: {some_of(others)}")
        else:
            await self._delete(NAMESPACES, namespace)

    async def _ours(self, kind: Kind, namespace: str) -> list[Object]:
        return [item for item in await self._client_list(kind, namespace) if _is_ours(item)]

    async def _client_list(self, kind: Kind, namespace: str) -> list[Object]:
        try:
            return (await self._client.list(kind, namespace)).items
        except NotFoundError:  # this server has no such kind
            return []

    async def _delete(self, kind: Kind, name: str, namespace: str = "", *, detail: str = "") -> None:
        shown = f"{namespace}/{name}" if namespace else name
        if kind is kinds.CUSTOM_RESOURCES and await self._cluster.get(kind, name) is None:
            return
        if not self._dry_run:
            try:
                await self._client.delete(kind, name, namespace)
            except NotFoundError:
                return
        self._changed(Change(action="delete", kind=kind.kind, name=shown, detail=detail))

    def _changed(self, change: Change) -> None:
        self._changes.append(change)
        self._on_change(change)


def _is_ours(item: Object) -> bool:
    """Whether an object belongs to an installation, by its label or its name."""
    return labels(item).get(NAME_LABEL) == NAME or item["metadata"]["name"] in NAMES
