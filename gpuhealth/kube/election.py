"""One of several processes acts, the others stand by: the holder of a Lease.

Nobody compares clocks: a standby takes the Lease over when it has not seen it change for as long as the holder said it
would hold. The holder stops acting when it could not renew for `renew_within`, which is shorter.

That it leads is a matter of time and of nothing else: `leading` is false from that moment on, also while what it did is
still being ended, and in a process that was frozen and does not know yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import ApiError, ConflictError, NotFoundError
from gpuhealth.kube.kinds import LEASES
from gpuhealth.runtime.settings import Election as Settings
from gpuhealth.runtime.supervisor import AGAIN_SECONDS, cancellations, raise_if_cancelled

log = structlog.get_logger()

STEP_DOWN_SECONDS = 3.0
"""In which everything that acts for a leader has ended, once it leads no more. After that the process is stuck."""
_RELEASE_SECONDS = 2.0


class Election:
    """This process among those that want the Lease."""

    def __init__(self, client: Client, namespace: str, settings: Settings, identity: str) -> None:
        """`client` should serve the Lease alone, or renewals wait for the requests of others; its requests should take
        well less than `renew_within`, or one that is lost ends the leadership."""
        self.stuck = False  # something goes on that was to end when the leadership did, STEP_DOWN_SECONDS ago
        self.leader = ""  # who holds the Lease, as last seen
        self._client = client
        self._namespace = namespace
        self._settings = settings
        self._identity = identity
        self._seen = ""  # version of the Lease
        self._seen_at = 0.0  # when we first saw it, by our own clock
        self._leads_until = 0.0  # by our own clock, unless it is renewed

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        return time.monotonic() < self._leads_until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Has `lead` run whenever we hold the Lease, and cancelled before we lose it; gives it back at the end."""
        try:
            while True:
                began = time.monotonic()
                if await self._try():
                    self._leads_until = began + self._settings.renew_within
                    await self._reign(lead)
                raise_if_cancelled()
                await asyncio.sleep(self._settings.retry)
        finally:
            await self._release()

    async def _reign(self, lead: Callable[[], Awaitable[None]]) -> None:
        log.info("became leader", identity=self._identity)
        leading = asyncio.ensure_future(lead())
        try:
            while True:
                wait = min(self._settings.retry, self._leads_until - time.monotonic())
                done, _ = await asyncio.wait([leading], timeout=max(0.0, wait))
                if done:
                    leading.result()
                    return
                await self._renew()
                raise_if_cancelled()
                if not self.leading or self.leader not in {"", self._identity}:
                    log.warning("lost leadership", identity=self._identity, leader=self.leader)
                    return
        finally:
            self._leads_until = 0.0
            await self._step_down(leading)

    async def _renew(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._leads_until - began)):
                if await self._try():
                    self._leads_until = began + self._settings.renew_within

    async def _step_down(self, leading: asyncio.Future[None]) -> None:
        """Ends what a leader does, and does not lead again before that has ended. A process that is being stopped
        anyway waits for STEP_DOWN_SECONDS: what is left ends with it, and may not act any longer."""
        late_at = time.monotonic() + STEP_DOWN_SECONDS
        while not leading.done():
            leading.cancel()
            await asyncio.wait([leading], timeout=AGAIN_SECONDS)
            if time.monotonic() >= late_at and not leading.done():
                if not self.stuck:
                    log.error("leader tasks did not stop", seconds=STEP_DOWN_SECONDS, identity=self._identity)
                self.stuck = True
                if cancellations():
                    return
        self.stuck = False
        if not leading.cancelled():
            leading.exception()  # asyncio would report it as never looked at

    async def _try(self) -> bool:
        """Take the Lease or renew it; whether we hold it now."""
        try:
            lease = await self._client.get(LEASES, self._settings.lease, self._namespace)
        except NotFoundError:
            return await self._create()
        except ApiError as error:
            log.warning("leader lease read failed", error=str(error))
            return False
        spec: Object = lease.get("spec") or {}
        self.leader = spec.get("holderIdentity") or ""
        now = time.monotonic()
        if (version := lease["metadata"]["resourceVersion"]) != self._seen:
            self._seen, self._seen_at = version, now
        lasts = self._seen_at + int(spec.get("leaseDurationSeconds") or 0) > now
        if self.leader not in {"", self._identity} and lasts:
            return False
        ours = self.leader == self._identity
        transitions = int(spec.get("leaseTransitions") or 0) + (0 if ours else 1)
        new = self._spec() | {"leaseTransitions": transitions}
        if ours and spec.get("acquireTime"):
            new["acquireTime"] = spec["acquireTime"]
        return await self._write(lease | {"spec": new})

    async def _create(self) -> bool:
        try:
            await self._client.create(
                LEASES, {"metadata": {"name": self._settings.lease}, "spec": self._spec()}, self._namespace
            )
        except ApiError:  # somebody was quicker, or there is no answer: the next try tells
            return False
        self.leader = self._identity
        return True

    async def _write(self, lease: Object) -> bool:
        try:
            await self._client.replace(LEASES, self._settings.lease, lease, self._namespace)
        except (ConflictError, NotFoundError):
            return False
        except ApiError as error:
            log.warning("leader lease write failed", error=str(error))
            return False
        self.leader = self._identity
        return True

    def _spec(self) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        duration = math.ceil(self._settings.duration)
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": duration,
            "acquireTime": now,
            "renewTime": now,
        }

    async def _release(self) -> None:
        """Let the next one begin at once rather than after the Lease's duration."""
        if self.leader != self._identity:
            return
        with contextlib.suppress(ApiError, TimeoutError):  # then it runs out
            async with asyncio.timeout(_RELEASE_SECONDS):
                lease = await self._client.get(LEASES, self._settings.lease, self._namespace)
                if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    await self._write(lease | {"spec": lease["spec"] | {"holderIdentity": ""}})
        self.leader = ""
