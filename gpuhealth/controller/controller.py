"""One controller: it watches the fleet all the time, and acts while it leads.

A standby keeps the same picture of the fleet, so that it can act at once. Everything it has to know is in the API
server: nothing is handed over.

There are three clients. One watches the fleet. One is for what only the leader does: it sends nothing unless this
process leads at that moment, so that nothing that goes on by mistake can act, and only so many of its requests are
under way at once, however many nodes are drained. The Lease has the third: its renewals wait for nobody.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from gpuhealth import __version__
from gpuhealth.controller.agent_liveness import Silence
from gpuhealth.controller.budget_status import Budgets
from gpuhealth.controller.burnin_scheduler import Testing
from gpuhealth.controller.drain import Means
from gpuhealth.controller.drain_controller import Drains
from gpuhealth.controller.event_recorder import Telling
from gpuhealth.controller.gangs import Gangs
from gpuhealth.controller.orphaned_slots import Leftovers
from gpuhealth.controller.outlier_publisher import Outliers
from gpuhealth.fleet.fleet import READ_KINDS, Fleet
from gpuhealth.kube.client import Client
from gpuhealth.kube.election import Election
from gpuhealth.kube.errors import NoConfigurationError
from gpuhealth.kube.eviction import Evictor
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.rate_limiter import Pace
from gpuhealth.runtime.settings_file import ConfigError, SettingsFile
from gpuhealth.runtime.supervisor import forever, together

log = structlog.get_logger()

AT_ONCE = 32
"""Requests of a leader that are under way at a time: the API server's flow control gives one client hardly more."""
STOP_SECONDS = 8.0
"""In which the process has ended after SIGTERM: less than the grace period of its Pod."""
_CLEAN_UP_SECONDS = 6.0  # stepping down, giving the Lease back, and the last answers over HTTP take less
_LOOK_SECONDS = 2.0  # between looks at the settings' file

Service = Callable[["Controller"], Coroutine[Any, Any, None]]
"""Something that runs beside the controller and looks at it, such as the HTTP server."""


class Controller:
    """The controller of one cluster. What is public is what the HTTP server shows."""

    def __init__(
        self,
        settings: Settings,
        services: Sequence[Service] = (),
        *,
        file: SettingsFile[Settings] | None = None,
        connect: Callable[..., Client] | None = None,
    ) -> None:
        """`file` is where the settings come from: once it has changed, run() ends. `connect` makes a Client of its
        options; without it the settings say where the API server is."""
        where = settings.kubernetes
        self.settings = settings
        self.identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.http_port = 0
        self.api_calls: Counter[tuple[str, int]] = Counter()  # by method and status
        self.failures: Counter[str] = Counter()  # by loop
        self.results: Counter[str] = Counter()  # of evictions and deletions
        options = settings.controller
        connect = connect or partial(Client.from_kubeconfig, where.kubeconfig, where.context)
        self._client = connect(observer=self._count_call)
        # No request of a leader takes as long as it may lead without a renewal: half of that, and a third for renewals.
        acting = connect(
            timeout=min(5.0, options.election.renew_within / 2),
            at_once=AT_ONCE,
            leading=lambda: self.leading,
            observer=self._count_call,
        )
        self._acting = acting
        self._electing = connect(
            timeout=min(5.0, options.election.renew_within / 3), attempts=1, observer=self._count_call
        )
        self._services = services
        self._file = file
        # Agents that only observe leave a node out that is out already: it loses no pod for that.
        self.fleet = Fleet(where.namespace, options.pool_labels, drains=settings.mode != "observe")
        self.budgets = Budgets(acting, self.fleet, where.namespace)
        self.election = Election(self._electing, where.namespace, options.election, self.identity)
        telling = Telling(acting, self.identity, _now)
        left_after = (
            None if settings.mode == "observe" else options.orphaned_slot_timeout
        )  # to free it, the Node is marked
        self._leftovers = Leftovers(acting, self.fleet, telling, left_after, _now)
        self.testing = Testing(acting, self.fleet, self.budgets, settings, telling, _now)
        self.outliers = Outliers(acting, self.fleet)
        self._silence = Silence(acting, self.fleet, telling, options.agent_silent_after, _now)
        self._means = Means(
            acting,
            self.fleet,
            options,
            Evictor(acting),
            Gangs(acting, self.fleet),
            Pace(options.evictions_per_second, options.eviction_burst),
            telling,
            self.results,
            _now,
        )

    @property
    def unreadable(self) -> dict[str, int]:
        """How many objects of the API server could not be read, by kind."""
        met = self.fleet.unreadable + self._client.unreadable.counts + self._acting.unreadable.counts
        return {kind: met[kind] for kind in (*READ_KINDS, *sorted(met.keys() - set(READ_KINDS)))}

    @property
    def leading(self) -> bool:
        """Whether it is this one that acts."""
        return self.election.leading or not self.settings.controller.election.enabled

    @property
    def healthy(self) -> bool:
        """Whether this process is of use yet. One that cannot end what it did as a leader is to be started again."""
        return not self.election.stuck

    async def run(self, give_up: Callable[[], None] = lambda: None) -> Settings | None:
        """Runs until SIGTERM or SIGINT, or until there are other settings, which it returns; gives the Lease back then.

        `give_up` is called when the event loop still runs STOP_SECONDS later: something in it does not end, and nothing
        less than the end of the process will help. Raises NoConfigurationError where there is no cluster.
        """
        main, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert main is not None
        settings: list[Settings] = []

        def stop() -> None:
            loop.call_later(STOP_SECONDS, self._give_up, give_up)  # also while asyncio.run() waits for what is left
            main.cancel()

        async def end_when_changed() -> None:
            settings.append(await self._other_settings())
            stop()

        waiting = asyncio.create_task(end_when_changed())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        log.info("controller started", identity=self.identity, version=__version__)
        no_cluster = None
        try:
            await self.work()
        except* NoConfigurationError as group:  # what is raised in here would be a group again
            no_cluster = _first(group)
        except* asyncio.CancelledError:
            log.info("controller stopped", identity=self.identity)
        finally:
            waiting.cancel()
        if no_cluster is not None:
            raise NoConfigurationError(str(no_cluster))
        return settings[0] if settings else None

    def _give_up(self, give_up: Callable[[], None]) -> None:
        left = sorted(task.get_name() for task in asyncio.all_tasks())
        log.error("controller did not stop", seconds=STOP_SECONDS, tasks=left[:10], identity=self.identity)
        give_up()

    async def _other_settings(self) -> Settings:
        """Returns when the file has other settings. Some that cannot be used are reported once, and change nothing."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                settings = self._file.changed() if self._file else None
            except ConfigError as error:
                log.error("configuration rejected", error=str(error))  # noqa: TRY400 - one sentence
                continue
            if settings is not None and settings != self.settings:
                log.info("restarting controller: settings changed", identity=self.identity)
                return settings

    async def work(self) -> None:
        """Watches and acts until cancelled."""
        async with self._client, self._acting, self._electing:
            steps = [*self.fleet.watches(self._client), self._take_part]
            services = [service(self) for service in self._services]
            await together([*map(self._forever, steps), *services], again_after=_CLEAN_UP_SECONDS)

    async def _take_part(self) -> None:
        if self.settings.controller.election.enabled:
            await self.election.run(self._lead)
        else:
            await self._lead()

    async def _lead(self) -> None:
        """What only one controller does."""
        duties = {
            "drains": Drains(self._means).run,
            "budgets": self.budgets.run,
            "leftovers": self._leftovers.run,
            "testing": self.testing.run,
        }
        if self.settings.mode != "observe":  # then no Node is marked, not by the agents either
            duties |= {"silence": self._silence.run, "outliers": self.outliers.run}
        await together([self._forever(run, name) for name, run in duties.items()])

    def _forever(self, step: Callable[[], Awaitable[None]], name: str = "") -> Coroutine[Any, Any, None]:
        # Without a cluster there is nothing to wait for.
        return forever(step, self._count_failure, name=name, fatal=NoConfigurationError)

    def _count_failure(self, loop: str) -> None:
        self.failures[loop] += 1

    def _count_call(self, method: str, status: int) -> None:
        self.api_calls[method, status] += 1


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _now() -> datetime:
    return datetime.now(UTC)
