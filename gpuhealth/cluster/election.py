"""One of several processes acts, the others stand by: the holder of a Lease.

Nobody compares clocks: a standby takes the Lease over when it has not seen it change for as long as the holder said it
would hold. The holder stops acting when it could not renew for `renew_within`, which is shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from gpuhealth.cluster.client import Client, Object
from gpuhealth.cluster.errors import ApiError, ConflictError, NotFoundError
from gpuhealth.cluster.kinds import LEASES
from gpuhealth.config import Election as Settings

log = structlog.get_logger()

_RELEASE_SECONDS = 2.0


class Election:
    """This process among those that want the Lease."""

    def __init__(self, client: Client, namespace: str, settings: Settings, identity: str) -> None:
        self.leading = False
        self.leader = ""  # who holds the Lease, as last seen
        self._client = client
        self._namespace = namespace
        self._settings = settings
        self._identity = identity
        self._seen = ""  # version of the Lease
        self._seen_at = 0.0  # when we first saw it, by our own clock

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Has `lead` run whenever we hold the Lease, and cancelled before we lose it; gives it back at the end."""
        try:
            while True:
                if await self._try():
                    await self._reign(lead)
                await asyncio.sleep(self._settings.retry)
        finally:
            await self._release()

    async def _reign(self, lead: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        log.info("leading", identity=self._identity)
        self.leading = True
        leading = asyncio.ensure_future(lead())
        try:
            while True:
                done, _ = await asyncio.wait([leading], timeout=self._settings.retry)
                if done:
                    leading.result()
                    return
                began = loop.time()
                held = False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, renewed + self._settings.renew_within - began)):
                        held = await self._try()
                if held:
                    renewed = began
                elif self.leader not in {"", self._identity} or loop.time() >= renewed + self._settings.renew_within:
                    log.warning("leadership is lost", identity=self._identity, leader=self.leader)
                    return
        finally:
            self.leading = False
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

    async def _try(self) -> bool:
        """Take the Lease or renew it; whether we hold it now."""
        try:
            lease = await self._client.get(LEASES, self._settings.lease, self._namespace)
        except NotFoundError:
            return await self._create()
        except ApiError as error:
            log.warning("the lease cannot be read", error=str(error))
            return False
        spec: Object = lease.get("spec") or {}
        self.leader = spec.get("holderIdentity") or ""
        now = asyncio.get_running_loop().time()
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
            log.warning("the lease cannot be written", error=str(error))
            return False
        self.leader = self._identity
        return True

    def _spec(self) -> Object:
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        duration = math.ceil(self._settings.duration)
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": duration,
            "acquireTime": time,
            "renewTime": time,
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
