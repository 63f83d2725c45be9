"""Keeps our Node marked as the agent wants it, through outages and changes of the Node by others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime

import structlog

from gpuhealth.kube.client import Client, Observer, patience
from gpuhealth.kube.errors import ApiError, NoConfigurationError
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.marks import Act, Desired
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.report import Facts
from gpuhealth.quarantine.writer import NodeWriter
from gpuhealth.runtime.supervisor import end, raise_if_cancelled

log = structlog.get_logger()


class Keeper:
    """The agent's hand in the cluster: told that something has changed, it asks what is wanted and makes it so."""

    def __init__(
        self,
        wanted: Callable[[], tuple[Desired, Facts] | None],
        *,
        node_changed: Callable[[OwnNode], None],
        on_act: Callable[[Act], None],
        observer: Observer,
        now: Callable[[], datetime],
    ) -> None:
        """`wanted` gives None while nothing is known yet; `node_changed` is told whenever our Node may have changed."""
        self._wanted = wanted
        self._node_changed = node_changed
        self._on_act = on_act
        self._observer = observer
        self._now = now
        self._changed = asyncio.Event()
        self._failures = 0
        self._retry_in = 0.0  # seconds, after a failure
        self.writer: NodeWriter | None = None

    def changed(self) -> None:
        """Something may have to be written."""
        self._changed.set()

    async def run(self, settings: Settings) -> None:
        """Marks the Node until cancelled. Without a cluster it says so once, and waits."""
        where = settings.kubernetes
        async with Client.from_kubeconfig(where.kubeconfig, where.context, observer=self._observer) as client:
            try:
                await self.keep(client, settings)
            except NoConfigurationError as error:
                log.warning("no cluster configuration: node not marked", reason=str(error))
                await asyncio.Event().wait()

    async def keep(self, client: Client, settings: Settings) -> None:
        """The same through a given client."""
        writer = NodeWriter(client, settings, settings.node_name, on_act=self._on_act, now=self._now)
        self.writer, writer.node.changed = writer, self._changed
        following = asyncio.create_task(writer.node.follow())
        try:
            while True:
                await self._once(writer)
        finally:
            await end([following])

    async def _once(self, writer: NodeWriter) -> None:
        # After a failure we come back by ourselves; news that come meanwhile are not kept waiting.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retry_in if self._failures else writer.retry_in):
                await self._changed.wait()
        self._changed.clear()
        try:
            await self._look_and_mark(writer)
            self._failures = 0
        except NoConfigurationError:
            raise
        except ApiError as error:
            raise_if_cancelled()
            self._failures += 1
            self._retry_in = patience(error, self._failures)
            log.warning(
                "node update failed", error=str(error), failures=self._failures, retry_in=round(self._retry_in, 1)
            )

    async def _look_and_mark(self, writer: NodeWriter) -> None:
        """What is wanted depends on what stands on the Node, so the Node is looked at first."""
        try:
            node = await writer.node.current() if self._wanted() is not None else None
        finally:
            self._node_changed(writer.node)
        if node is not None and (wanted := self._wanted()) is not None:
            await writer.apply(*wanted, node=node, patient=True)
