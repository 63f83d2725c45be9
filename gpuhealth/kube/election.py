"""Leader election: of several processes the holder of a Lease acts, and the others stand by.

Clocks are not compared: a standby takes the Lease over when it has not seen it change for the duration in the Lease.
The leader stops acting when it could not renew the Lease for `renew_within`, which is shorter.

Leadership depends on nothing but time: `leading` is False from that moment on, also while the leader's tasks are still
being stopped, and in a process that was frozen and has not noticed yet.
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
"""In which all tasks of a leader have to end when it loses leadership. After that the process counts as stuck."""
_RELEASE_SECONDS = 2.0


class Election:
    """This process as a candidate for the Lease."""

    def __init__(self, client: Client, namespace: str, settings: Settings, identity: str) -> None:
        """`client` should be used for nothing else, or renewals wait for other requests. Its time limit should be well
        below `renew_within`, or one lost request ends the leadership."""
        self.stuck = False  # tasks of an ended leadership still run after STEP_DOWN_SECONDS
        self.leader = ""  # holder of the Lease, as last seen
        self._client = client
        self._namespace = namespace
        self._settings = settings
        self._identity = identity
        self._seen = ""  # resourceVersion of the Lease
        self._seen_at = 0.0  # when this version was first seen, by time.monotonic()
        self._leads_until = 0.0  # by time.monotonic()

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        return time.monotonic() < self._leads_until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead` while this process holds the Lease, and cancel it before that expires; release it at the end."""
        try:
            while True:
                began = time.monotonic()
                if await self._acquire_or_renew():
                    self._leads_until = began + self._settings.renew_within
                    await self._hold_leadership(lead)
                raise_if_cancelled()
                await asyncio.sleep(self._settings.retry)
        finally:
            await self._release()

    async def _hold_leadership(self, lead: Callable[[], Awaitable[None]]) -> None:
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
                if await self._acquire_or_renew():
                    self._leads_until = began + self._settings.renew_within

    async def _step_down(self, leading: asyncio.Future[None]) -> None:
        """Cancel the leader's tasks until they have ended: only then may this process lead again.

        A process that is itself being stopped waits no longer than STEP_DOWN_SECONDS: the tasks end with it, and may
        not act any longer.
        """
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
            leading.exception()  # asyncio would log it as never retrieved

    async def _acquire_or_renew(self) -> bool:
        """Take or renew the Lease; whether this process holds it now."""
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
        except ApiError:  # another process was quicker, or there is no response: the next try shows
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
        """Release the Lease, so that a standby need not wait until it expires."""
        if self.leader != self._identity:
            return
        with contextlib.suppress(ApiError, TimeoutError):  # then it expires
            async with asyncio.timeout(_RELEASE_SECONDS):
                lease = await self._client.get(LEASES, self._settings.lease, self._namespace)
                if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    await self._write(lease | {"spec": lease["spec"] | {"holderIdentity": ""}})
        self.leader = ""
