"""Reconciles our Node with the agent's findings, through outages and changes of the Node by others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime

import msgspec
import structlog

from gpuhealth.api.names import AGENT
from gpuhealth.kube.client import Client, Observer, retry_delay
from gpuhealth.kube.errors import ApiError, NoConfigurationError
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.removed_marks import Remover
from gpuhealth.quarantine.report import Facts
from gpuhealth.quarantine.slots.holder import Blocked
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import AppliedAction, NodeWriter
from gpuhealth.runtime.supervisor import end, raise_if_cancelled

log = structlog.get_logger()


class QuarantineStatus(msgspec.Struct, frozen=True):
    """The state of the reconciliation, for metrics."""

    blocked: Blocked | None = None  # why the node stays in service although it should be out
    unreadable: dict[str, int] = {}  # objects of the API server that could not be read, by kind
    # How often other clients have removed our marks, by who that was.
    marks_removed: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(map(str, Remover), 0))


class NodeReconciler:
    """Reconciles our Node: on every change it fetches the desired marks and applies them, one pass at a time.

    One task runs it; `trigger` and the properties may be used by any task of the same event loop.
    """

    def __init__(
        self,
        desired: Callable[[], tuple[Desired, Facts] | None],
        *,
        node_changed: Callable[[OwnNode], None],
        on_action: Callable[[AppliedAction], None],
        observer: Observer,
        now: Callable[[], datetime],
    ) -> None:
        """`desired` returns None while nothing is known yet. `node_changed` is called whenever our Node may have
        changed, before `desired`."""
        self.node: OwnNode | None = None  # once there is a client
        self._desired = desired
        self._node_changed = node_changed
        self._on_action = on_action
        self._observer = observer
        self._now = now
        self._triggered = asyncio.Event()
        self._failures = 0
        self._retry_in = 0.0  # seconds, after a failure
        self._client: Client | None = None
        self._writer: NodeWriter | None = None

    @property
    def status(self) -> QuarantineStatus:
        """The state of the reconciliation, as of now."""
        if self._client is None or self._writer is None:
            return QuarantineStatus()
        unreadable = dict(self._client.unreadable.counts)
        return QuarantineStatus(self._writer.blocked, unreadable, self._writer.marks_removed)

    @property
    def is_settled(self) -> bool:
        """Whether everything desired is written, and nothing has changed since."""
        return self._writer is not None and self._writer.is_settled and not self._triggered.is_set()

    def trigger(self) -> None:
        """Request a pass: the desired state may have changed."""
        self._triggered.set()

    async def run(self, settings: Settings) -> None:
        """Reconcile until cancelled. Without a cluster configuration, which is logged once, only wait."""
        where = settings.kubernetes
        options = {"observer": self._observer, "user_agent": AGENT}
        async with Client.from_kubeconfig(where.kubeconfig, where.context, **options) as client:
            try:
                await self.run_with(client, settings)
            except NoConfigurationError as error:
                log.warning("no cluster configuration: node not marked", reason=str(error))
                await asyncio.Event().wait()

    async def run_with(self, client: Client, settings: Settings) -> None:
        """Reconcile through a given client until cancelled. Raises NoConfigurationError."""
        node = OwnNode(
            client,
            settings.node_name,
            on_change=self._triggered.set,
            people=settings.quarantine.people,
            release_labels=settings.driver_release.labels,
        )
        writer = NodeWriter(client, settings, node, on_action=self._on_action, now=self._now)
        self._client, self._writer, self.node = client, writer, node
        following = asyncio.create_task(node.follow())
        try:
            while True:
                await self._once(writer)
        finally:
            await end([following])

    async def _once(self, writer: NodeWriter) -> None:
        """Do a pass when one is triggered, or due for the writer or after a failure."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retry_in if self._failures else writer.retry_in):
                await self._triggered.wait()
        self._triggered.clear()
        try:
            await self._reconcile(writer)
            self._failures = 0
        except ApiError as error:
            raise_if_cancelled()
            self._failures += 1
            self._retry_in = retry_delay(error, self._failures)
            log.warning(
                "node update failed", error=str(error), failures=self._failures, retry_in=round(self._retry_in, 1)
            )

    async def _reconcile(self, writer: NodeWriter) -> None:
        """Read the Node first: the desired state depends on its marks."""
        try:
            node = await writer.node.current() if self._desired() is not None else None
        finally:
            self._node_changed(writer.node)
        if node is not None and (desired := self._desired()) is not None:
            await writer.apply(*desired, node=node, defer_status=True)
