"""One controller: it watches the fleet all the time, and acts while it leads.

A standby keeps the same picture of the fleet, so that it can act at once. Everything it has to know is in the API
server: nothing is handed over.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import structlog

from gpuhealth import __version__
from gpuhealth.cluster.client import Client
from gpuhealth.cluster.election import Election
from gpuhealth.cluster.errors import NoConfigurationError
from gpuhealth.cluster.eviction import Evictor
from gpuhealth.config import Settings
from gpuhealth.config_file import ConfigError, SettingsFile
from gpuhealth.controller.budgets import Budgets
from gpuhealth.controller.drain import Means
from gpuhealth.controller.drains import Drains
from gpuhealth.controller.fleet import Fleet
from gpuhealth.controller.gangs import Gangs
from gpuhealth.controller.leftovers import Leftovers
from gpuhealth.controller.outliers import Outliers
from gpuhealth.controller.pace import Pace
from gpuhealth.controller.silence import Silence
from gpuhealth.controller.telling import Telling
from gpuhealth.controller.testing import Testing

log = structlog.get_logger()

_LOOK_SECONDS = 2.0  # between looks at the settings' file

Service = Callable[["Controller"], Awaitable[None]]
"""Something that runs beside the controller and looks at it, such as the HTTP server."""


class Controller:
    """The controller of one cluster. What is public is what the HTTP server shows."""

    def __init__(
        self,
        settings: Settings,
        services: Sequence[Service] = (),
        *,
        file: SettingsFile | None = None,
        client: Client | None = None,
    ) -> None:
        """`file` is where the settings come from: once it has changed, run() ends."""
        where = settings.kubernetes
        self.settings = settings
        self.identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.http_port = 0
        self.api_calls: Counter[tuple[str, int]] = Counter()  # by method and status
        self.failures: Counter[str] = Counter()  # by loop
        self.results: Counter[str] = Counter()  # of evictions and deletions
        self._client = client or Client.from_kubeconfig(where.kubeconfig, where.context, observer=self._count_call)
        self._services = services
        self._file = file
        options = settings.controller
        # Agents that only observe leave a node out that is out already: it loses no pod for that.
        self.fleet = Fleet(where.namespace, options.pool_labels, drains=settings.mode != "observe")
        self.budgets = Budgets(self._client, self.fleet, where.namespace)
        self.election = Election(self._client, where.namespace, options.election, self.identity)
        telling = Telling(self._client, self.identity, _now)
        left_after = None if settings.mode == "observe" else options.place_left_after  # to free it, the Node is marked
        self._leftovers = Leftovers(self._client, self.fleet, telling, left_after, _now)
        self.testing = Testing(self._client, self.fleet, self.budgets, settings, telling, _now)
        self.outliers = Outliers(self._client, self.fleet)
        self._silence = Silence(self._client, self.fleet, telling, options.agent_silent_after, _now)
        self._means = Means(
            self._client,
            self.fleet,
            options,
            Evictor(self._client),
            Gangs(self._client, self.fleet),
            Pace(options.evictions_per_second, options.eviction_burst),
            telling,
            self.results,
            _now,
        )

    @property
    def unreadable(self) -> dict[str, int]:
        """How many objects of the API server could not be read, by kind."""
        return dict(self._client.unreadable.counts)

    @property
    def leading(self) -> bool:
        """Whether it is this one that acts."""
        return self.election.leading or not self.settings.controller.election.enabled

    async def run(self) -> Settings | None:
        """Runs until SIGTERM or SIGINT, or until there are other settings, which it returns; gives the Lease back then.

        Raises NoConfigurationError where there is no cluster.
        """
        main = asyncio.current_task()
        assert main is not None
        settings: list[Settings] = []

        async def end_when_changed() -> None:
            settings.append(await self._other_settings())
            main.cancel()

        waiting = asyncio.create_task(end_when_changed())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, main.cancel)
        log.info("controller starts", identity=self.identity, version=__version__)
        no_cluster = None
        try:
            await self.work()
        except* NoConfigurationError as group:  # what is raised in here would be a group again
            no_cluster = _first(group)
        except* asyncio.CancelledError:
            log.info("controller stops", identity=self.identity)
        finally:
            waiting.cancel()
        if no_cluster is not None:
            raise NoConfigurationError(str(no_cluster))
        return settings[0] if settings else None

    async def _other_settings(self) -> Settings:
        """Returns when the file has other settings. Some that cannot be used are reported once, and change nothing."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                settings = self._file.changed() if self._file else None
            except ConfigError as error:
                log.error("the changed configuration is not used", error=str(error))  # noqa: TRY400 - one sentence
                continue
            if settings is not None and settings != self.settings:
                log.info("the controller starts anew, with other settings", identity=self.identity)
                return settings

    async def work(self) -> None:
        """Watches and acts until cancelled."""
        async with self._client, asyncio.TaskGroup() as group:
            for follow in self.fleet.watches(self._client):
                group.create_task(self._forever(follow))
            group.create_task(self._forever(self._take_part))
            for service in self._services:
                group.create_task(service(self))  # type: ignore[arg-type]  # a coroutine function

    async def _take_part(self) -> None:
        if self.settings.controller.election.enabled:
            await self.election.run(self._lead)
        else:
            await self._lead()

    async def _lead(self) -> None:
        """What only one controller does."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forever(Drains(self._means).run, "drains"))
            group.create_task(self._forever(self.budgets.run, "budgets"))
            group.create_task(self._forever(self._leftovers.run, "leftovers"))
            group.create_task(self._forever(self.testing.run, "testing"))
            if self.settings.mode != "observe":  # then no Node is marked, not by the agents either
                group.create_task(self._forever(self._silence.run, "silence"))
                group.create_task(self._forever(self.outliers.run, "outliers"))

    async def _forever(self, step: Callable[[], Awaitable[None]], name: str = "") -> None:
        name = name or step.__name__.removeprefix("_")
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():  # a step may have lost the exception: libraries do
            try:
                await step()
            except NoConfigurationError:  # there is nothing to wait for
                raise
            except Exception:  # a fault in one loop must not end the others; it is logged and counted
                self.failures[name] += 1
                log.exception("unexpected error", loop=name)
                await asyncio.sleep(1.0)

    def _count_call(self, method: str, status: int) -> None:
        self.api_calls[method, status] += 1


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _now() -> datetime:
    return datetime.now(UTC)
