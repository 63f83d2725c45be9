"""The Leases of budget slots: how they are read, and the requests that take, renew and release them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gpuhealth.api.names import BUDGET_LABEL, RESERVED_SLOT_PREFIX, SLOT_NODE_LABEL
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AlreadyExistsError, ConflictError, NotFoundError
from gpuhealth.kube.kinds import LEASES
from gpuhealth.quarantine.slots.budget import SlotSet, label_value


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A slot that is held, by its Lease."""

    name: str
    budget: str
    holder: str
    seconds: int  # for which it is held; 0: until it is released
    expires: datetime | None  # None: it does not expire, or when is not known
    fault: str  # why the Lease cannot be read in full; such a slot is taken and does not expire
    lease: Object

    @property
    def prefix(self) -> str:
        """The prefix of its set."""
        return self.name.rpartition(".")[0]

    @property
    def node(self) -> str:
        """The node that holds it, or for which the controller has reserved it."""
        return self.holder.removeprefix(RESERVED_SLOT_PREFIX)

    def has_expired(self, now: datetime) -> bool:
        """Whether it may be taken over."""
        return not self.fault and self.expires is not None and self.expires <= now


def read_slot(lease: Object) -> Slot:
    """Read the Lease of a slot. Never raises: an unreadable Lease is a slot that is taken, with a `fault`."""
    metadata = lease["metadata"]
    spec, labels = _dict(lease.get("spec")), _dict(metadata.get("labels"))
    budget = str(labels.get(BUDGET_LABEL) or metadata["name"].partition(".")[0])
    holder, lasts, expires, fault = spec.get("holderIdentity"), spec.get("leaseDurationSeconds") or 0, None, ""
    if not isinstance(holder, str) or not holder:
        holder, fault = "", "it names no holder"
    if "." not in metadata["name"].rpartition(".")[0]:  # of maxUnavailable: another client has set a duration
        lasts = 0
    elif not isinstance(lasts, int) or lasts < 0:
        lasts, fault = 0, f"its duration is {lasts!r}"
    elif lasts:
        try:
            expires = _renew_time(lease) + timedelta(seconds=lasts)
        except (ValueError, OverflowError) as error:
            fault = f"its expiry is unknown: {error}"
    return Slot(
        name=metadata["name"], budget=budget, holder=holder, seconds=lasts, expires=expires, fault=fault, lease=lease
    )


def _dict(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def _renew_time(lease: Object) -> datetime:
    text = _dict(lease.get("spec")).get("renewTime")
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise ValueError(f"renewTime {text!r} is no valid time") from None
    if time.tzinfo is None:
        raise ValueError(f"renewTime {text!r} has no time zone")
    return time


def slot_lease(slot_set: SlotSet, name: str, holder: str, now: datetime) -> Object:
    """The Lease of a slot that `holder` takes now."""
    labels = slot_set.labels | {SLOT_NODE_LABEL: label_value(holder)}
    return {"metadata": {"name": name, "labels": labels}, "spec": _spec(slot_set, holder, now)}


def _spec(slot_set: SlotSet, holder: str, now: datetime) -> Object:
    spec: Object = {"holderIdentity": holder, "acquireTime": _lease_time(now), "renewTime": _lease_time(now)}
    return spec | ({"leaseDurationSeconds": slot_set.seconds} if slot_set.seconds else {})


def _lease_time(now: datetime) -> str:
    """A time as a Lease has it, to the microsecond."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def selector(labels: Mapping[str, str]) -> str:
    """The label selector of the Leases with these labels."""
    return ",".join(f"{key}={value}" for key, value in labels.items())


class SlotStore:
    """The requests for the Leases of slots. Every method raises ApiError where the API server refuses or is away."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def list_slots(self, labels: str) -> list[Slot]:
        """The slots whose Leases the label selector selects, expired ones included."""
        leases = await self._client.list(LEASES, self._namespace, labels=labels)
        slots = [read_slot(lease) for lease in leases.items]
        for slot in slots:
            if slot.fault:
                self.note_unreadable(slot.lease, slot.fault)
        return slots

    def note_unreadable(self, lease: Object, fault: str) -> None:
        """Log and count a Lease that cannot be read in full, once for each of its versions."""
        self._client.unreadable.note(LEASES, lease, f"{fault}; the slot counts as taken")

    async def get(self, name: str) -> Slot | None:
        """The slot of this name, if it is held."""  # by a list: agents have no right to get a Lease
        leases = await self._client.list(LEASES, self._namespace, fields=f"metadata.name={name}")
        return next((read_slot(lease) for lease in leases.items), None)

    async def take(self, slot_set: SlotSet, name: str, holder: str, now: datetime) -> Slot:
        """Take a free slot by creating its Lease. Raises AlreadyExistsError where it is held."""
        return read_slot(await self._client.create(LEASES, slot_lease(slot_set, name, holder, now), self._namespace))

    async def take_over(self, slot_set: SlotSet, slot: Slot, holder: str, now: datetime) -> Slot:
        """Take a slot that has expired. Raises ConflictError or NotFoundError where it was changed or is gone."""
        metadata = slot.lease["metadata"]
        labels = (metadata.get("labels") or {}) | {SLOT_NODE_LABEL: label_value(holder)}
        lease = {**slot.lease, "metadata": {**metadata, "labels": labels}, "spec": _spec(slot_set, holder, now)}
        return read_slot(await self._client.replace(LEASES, slot.name, lease, self._namespace))

    async def renew(self, slot: Slot, now: datetime) -> Slot:
        """Write a slot again, so that a deletion of the version before fails.

        Raises ConflictError or NotFoundError where it was changed or is gone.
        """
        with suppress(ValueError, OverflowError):  # the same time again would be no change to the API server
            now = max(now, _renew_time(slot.lease) + timedelta.resolution)
        lease = {**slot.lease, "spec": slot.lease["spec"] | {"renewTime": _lease_time(now)}}
        return read_slot(await self._client.replace(LEASES, slot.name, lease, self._namespace))

    async def release(self, name: str, *, uid: str, version: str) -> None:
        """Release a slot by deleting this version of its Lease: a slot taken over meanwhile stays.

        Raises ConflictError where it was changed, NotFoundError where it is gone.
        """
        await self._client.delete(LEASES, name, self._namespace, uid=uid, resource_version=version)

    # --- by the controller, in the name of nodes ----------------------------------------------------------------------

    async def reserve(self, slot_set: SlotSet, name: str, node: str) -> bool:
        """Take a free slot in the name of a node; False if it was taken meanwhile."""
        try:
            await self.take(slot_set, name, f"{RESERVED_SLOT_PREFIX}{node}", datetime.now(UTC))
        except AlreadyExistsError:
            return False
        return True

    async def free(self, name: str, *, uid: str, version: str) -> bool:
        """Release a slot unless it was changed since it was read; whether that was done."""
        try:
            await self.release(name, uid=uid, version=version)
        except (ConflictError, NotFoundError):
            return False
        return True
