"""A whole agent is killed with SIGKILL after each of its steps, while the API server fails: the next one converges."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import ControlPlane
from kube.proxy import FaultyProxy
from testing.marked_node import XID_95, Marked
from testing.simnode import entries
from testing.waiting import wait_for

CODE = "xid.95"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpuhealth/leases"
PLACE, TAINT = ("POST", "/leases"), ("PATCH", "/api/v1/nodes/")
STEPS = {
    "slot": PLACE,
    "taint": TAINT,
    "condition": ("PATCH", "/status"),
    "event": ("POST", "/events"),
    "report": ("PATCH", "/gpuhealthreports/"),
}
ERRORS: list[int | str] = [409, 429, 500, 401, "reset"]


class Killed(Marked):
    """A node whose agents reach the API server through a proxy."""

    async def converged(self) -> None:
        """The next agent brings everything to where it belongs, once, and is then silent."""
        await asyncio.to_thread(self.sim.start)
        await asyncio.to_thread(self._is_marked)
        await asyncio.to_thread(self._falls_silent)
        assert [lease for lease in self._places() if ".window." not in lease] == self._places()[:1]
        assert len(self._places()) == 1
        found = entries(self.sim)
        assert found.count(("raised", CODE)) == 1
        assert found.count(("kernel", CODE)) == 1
        assert len([taint for taint in self.node()["spec"]["taints"] if "gpuhealth.io/" in taint["key"]]) == 1
        quarantined = [event for event in self._events() if event["reason"] == "Quarantined"]
        assert sum(event["count"] for event in quarantined) <= 1, "a crash may cost the Event, not tell it twice"

    def _is_marked(self) -> None:
        wait_for("the taint", lambda: self.taint() == CODE)
        wait_for("the condition", lambda: self.condition() == ("False", "Xid95"))
        wait_for("the report", lambda: self.report().get("quarantine", {}).get("state") == "quarantined")
        wait_for("the journal", lambda: ("raised", CODE) in entries(self.sim))

    def _falls_silent(self) -> None:
        wait_for("silence", lambda: self.is_silent(for_rounds=3))

    def _places(self) -> list[str]:
        held = self.plane.request("GET", LEASES)["items"]
        return [lease["metadata"]["name"] for lease in held if lease["spec"].get("holderIdentity") == self.name]

    def _events(self) -> list[dict[str, Any]]:
        path = f"/api/v1/events?fieldSelector=involvedObject.name={self.name}"
        events: list[dict[str, Any]] = self.plane.request("GET", path)["items"]
        return events


@pytest.fixture
def killed(plane: ControlPlane, tmp_path: Path) -> Iterator[Killed]:
    """A node with room for three in its budget."""
    made = Killed(plane, tmp_path)
    made.budget(3)
    # What was not remembered before the kill is read again, as far as the first start looks back.
    made.sim.configure({"kmsg": {"lookback": "1h"}})
    made.sim.configure({"findings": {"*": {"raise_after": 0}}})
    yield made
    made.sim.stop(signal.SIGKILL)
    made.remove()
    for lease in made._places():
        plane.request("DELETE", f"{LEASES}/{lease}")


async def life(killed: Killed, proxy: FaultyProxy) -> Callable[[], None]:
    """A first agent that has marked its Node healthy; what kills it."""
    killed.sim.configure({"kubernetes": {"kubeconfig": str(proxy.kubeconfig)}})
    await asyncio.to_thread(killed.sim.start)
    await asyncio.to_thread(
        wait_for,
        "healthy",
        lambda: killed.condition()[0] == "True" and killed.report().get("verdict") == "healthy",
    )
    return lambda: os.kill(killed.sim.pid, signal.SIGKILL)


def token(plane: ControlPlane) -> str:
    """A service account token of the agent."""
    return plane.service_account_token("gpuhealth", "gpuhealth-agent")


def run_dying(plane: ControlPlane, killed: Killed, step: str, error: int | str | None) -> None:
    """The request for the step fails once; the next one is done, and its sender does not live to hear of it."""
    method, path = STEPS[step]

    async def run() -> None:
        async with FaultyProxy(plane, token(plane)) as proxy:
            kill = await life(killed, proxy)
            if error is not None:
                proxy.fail(error, method=method, path=path, retry_after="0")
            died = asyncio.Event()

            def dies() -> None:
                kill()
                died.set()

            proxy.fail("lost", method=method, path=path, then=dies)
            killed.sim.xid(95, gpu=2, text=XID_95)
            async with asyncio.timeout(180):
                await died.wait()
            await asyncio.to_thread(killed.sim.stop, signal.SIGKILL)
            proxy.heal()
            await killed.converged()

    asyncio.run(run())


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_each_request(plane: ControlPlane, killed: Killed, step: str) -> None:
    """The request was done and its answer never heard."""
    run_dying(plane, killed, step, None)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", ["slot", "taint"])
def test_killed_after_a_failure(plane: ControlPlane, killed: Killed, step: str, error: int | str) -> None:
    """The node converges after an agent is killed while it retries a failed request."""
    run_dying(plane, killed, step, error)


@pytest.mark.parametrize("journalled", [False, True])
def test_killed_before_any_request(plane: ControlPlane, killed: Killed, journalled: bool) -> None:
    """Killed when the fault was seen, and when it was journalled, with nothing done in the cluster yet."""

    async def run() -> None:
        async with FaultyProxy(plane, token(plane)) as proxy:
            await life(killed, proxy)
            proxy.fail("hang", method="POST", path="/leases", times=-1)
            await asyncio.to_thread(seen)
            proxy.heal()
            await killed.converged()

    def seen() -> None:
        busy = sqlite3.connect(killed.sim.folder / "journal.sqlite", isolation_level=None)
        try:
            if not journalled:
                busy.execute("BEGIN IMMEDIATE")  # the disk is slow
            killed.sim.xid(95, gpu=2, text=XID_95)
            wait_for("the finding", lambda: CODE in killed.sim.findings())
            if journalled:
                wait_for("the journal", lambda: ("raised", CODE) in entries(killed.sim))
            killed.sim.stop(signal.SIGKILL)
        finally:
            busy.close()
        assert (("raised", CODE) in entries(killed.sim)) is journalled
        assert killed._places() == []

    asyncio.run(run())
