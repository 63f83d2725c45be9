"""The controller process: it watches the fleet at all times, and runs the duties while it leads.

A standby keeps the same view of the fleet, so that it can take over at once. All state is in the API server: nothing
is handed over from one leader to the next.

There are three clients. One serves the watches. One serves the duties: it sends nothing unless this process leads at
that moment, so no task that outlives the leadership can act, and it bounds how many requests are in flight, however
many nodes are drained. The third serves the Lease alone, so that a renewal never waits behind other requests.

When the settings file changes, the controller restarts within its process: `run` ends and returns the new settings, for
which the caller makes a new Controller. That is safe because there is no state to lose, and simpler than a change of
settings in the midst of a drain. The agent, which would lose its debounced findings, applies changes in place instead.
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
from typing import Any, TypeVar

import structlog

from gpuhealth import __version__
from gpuhealth.api.names import CONTROLLER
from gpuhealth.controller.duties import DUTIES
from gpuhealth.controller.duty import Duty, DutyContext
from gpuhealth.controller.timing import Timing
from gpuhealth.fleet.fleet import READ_KINDS, Fleet
from gpuhealth.kube.client import Client
from gpuhealth.kube.election import Election
from gpuhealth.kube.errors import NoConfigurationError
from gpuhealth.kube.event_recorder import EventRecorder
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings_file import ConfigError, SettingsFile
from gpuhealth.runtime.supervisor import supervise, together

log = structlog.get_logger()

MAX_REQUESTS = 32
"""Requests of a leader in flight at a time: the API server's flow control gives one client hardly more."""
STOP_SECONDS = 8.0
"""Within which the process has ended after SIGTERM: less than the grace period of its Pod."""
_CLEAN_UP_SECONDS = 6.0  # stepping down, releasing the Lease, and the last HTTP answers take less

Service = Callable[["Controller"], Coroutine[Any, Any, None]]
"""A task that runs as long as the controller and reads its state, such as the HTTP server."""

_Duty = TypeVar("_Duty", bound=Duty)


class Controller:
    """Composes the controller of one cluster, elects the leader, and supervises its tasks."""

    def __init__(
        self,
        settings: Settings,
        services: Sequence[Service] = (),
        *,
        file: SettingsFile[Settings] | None = None,
        connect: Callable[..., Client] | None = None,
        timing: Timing | None = None,
    ) -> None:
        """`file`: where the settings come from; `run` ends when it changes. `connect`: makes a Client of its options;
        by default one for the API server that the settings name."""
        kubernetes, options = settings.kubernetes, settings.controller
        self.settings = settings
        self.identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.http_port = 0
        self.api_calls: Counter[tuple[str, int]] = Counter()  # by method and status
        self.failures: Counter[str] = Counter()  # by loop
        self._timing = timing or Timing()
        self._services = services
        self._file = file
        connect = connect or partial(
            Client.from_kubeconfig, kubernetes.kubeconfig, kubernetes.context, user_agent=CONTROLLER
        )
        self._client = connect(observer=self._count_call)
        # No request of a leader takes as long as it may lead without a renewal: half of that, and a third for renewals.
        self._acting = connect(
            timeout=min(5.0, options.election.renew_within / 2),
            at_once=MAX_REQUESTS,
            leading=lambda: self.leading,
            observer=self._count_call,
        )
        self._electing = connect(
            timeout=min(5.0, options.election.renew_within / 3), attempts=1, observer=self._count_call
        )
        # In mode observe no node is drained: agents leave a node out of service that is already out.
        self.fleet = Fleet(kubernetes.namespace, options.pool_labels, drains=settings.mode != "observe")
        self.election = Election(self._electing, kubernetes.namespace, options.election, self.identity)
        # Counting repeated Events takes the right to patch Events of all namespaces, which the controller has not.
        recorder = EventRecorder(self._acting, CONTROLLER, self.identity, now=_now, counts_repeats=False)
        context = DutyContext(
            client=self._acting,
            fleet=self.fleet,
            settings=settings,
            timing=self._timing,
            recorder=recorder,
            clock=_now,
            budgets={},
            holders={},
        )
        self.duties = [duty(context) for duty in DUTIES]

    def duty(self, kind: type[_Duty]) -> _Duty:
        """Return the one duty of that class."""
        (found,) = [duty for duty in self.duties if isinstance(duty, kind)]
        return found

    @property
    def unreadable(self) -> dict[str, int]:
        """Versions of API objects that could not be read, by kind."""
        counts = self.fleet.unreadable + self._client.unreadable.counts + self._acting.unreadable.counts
        return {kind: counts[kind] for kind in (*READ_KINDS, *sorted(counts.keys() - set(READ_KINDS)))}

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        return self.election.leading or not self.settings.controller.election.enabled

    @property
    def healthy(self) -> bool:
        """Whether this process can still become useful; false while tasks of an ended leadership refuse to stop."""
        return not self.election.stuck

    async def run(self, give_up: Callable[[], None] = lambda: None) -> Settings | None:
        """Run until SIGTERM or SIGINT, or until the settings file changes; return the new settings in that case.

        Releases the Lease at the end. `give_up` is called when the event loop still runs STOP_SECONDS later: then only
        the end of the process can stop what is left. Raises NoConfigurationError where no cluster is configured.
        """
        main, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert main is not None
        settings: list[Settings] = []

        def stop() -> None:
            loop.call_later(STOP_SECONDS, self._give_up, give_up)  # also while asyncio.run() waits for what is left
            main.cancel()

        async def end_when_changed() -> None:
            settings.append(await self._changed_settings())
            stop()

        waiting = asyncio.create_task(end_when_changed())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        log.info("controller started", identity=self.identity, version=__version__)
        no_cluster = None
        try:
            await self.work()
        except* NoConfigurationError as group:  # raised here, it would be a group again
            no_cluster = _first(group)
        except* asyncio.CancelledError:
            log.info("controller stopped", identity=self.identity)
        finally:
            waiting.cancel()
        if no_cluster is not None:
            raise NoConfigurationError(str(no_cluster))
        return settings[0] if settings else None

    def _give_up(self, give_up: Callable[[], None]) -> None:
        tasks = sorted(task.get_name() for task in asyncio.all_tasks())
        log.error("controller did not stop", seconds=STOP_SECONDS, tasks=tasks[:10], identity=self.identity)
        give_up()

    async def _changed_settings(self) -> Settings:
        """Return once the file holds other settings. Settings that cannot be used are logged once and ignored."""
        while True:
            await asyncio.sleep(self._timing.settings_poll)
            try:
                settings = self._file.changed() if self._file else None
            except ConfigError as error:
                log.error("configuration rejected", error=str(error))  # noqa: TRY400 - one sentence
                continue
            if settings is not None and settings != self.settings:
                log.info("restarting controller: settings changed", identity=self.identity)
                return settings

    async def work(self) -> None:
        """Watch the fleet, and run the duties while leading, until cancelled."""
        async with self._client, self._acting, self._electing:
            steps = [*self.fleet.watches(self._client), self._take_part]
            services = [service(self) for service in self._services]
            await together([*map(self._supervise, steps), *services], again_after=_CLEAN_UP_SECONDS)

    async def _take_part(self) -> None:
        if self.settings.controller.election.enabled:
            await self.election.run(self._lead)
        else:
            await self._lead()

    async def _lead(self) -> None:
        """Run every duty that the mode allows."""
        observing = self.settings.mode == "observe"
        duties = [duty for duty in self.duties if duty.runs_in_observe or not observing]
        await together([self._supervise(duty.run, duty.name) for duty in duties])

    def _supervise(self, step: Callable[[], Awaitable[None]], name: str = "") -> Coroutine[Any, Any, None]:
        # Where no cluster is configured, retrying is useless.
        return supervise(step, self._count_failure, name=name, fatal=NoConfigurationError)

    def _count_failure(self, loop: str) -> None:
        self.failures[loop] += 1

    def _count_call(self, method: str, status: int) -> None:
        self.api_calls[method, status] += 1


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _now() -> datetime:
    return datetime.now(UTC)
