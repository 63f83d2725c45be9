"""A request that is cancelled ends as cancelled, also when its time is over in the same moment."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from testing.waiting import until

from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import ApiError, NotLeadingError, UnavailableError
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.watching import watch

TIMEOUT = 0.1
TASKS = 20  # cancelled in one moment
ROUNDS = 14
HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
Act = Callable[[Client], Coroutine[Any, Any, object]]


class Gate:
    """Where requests wait until the test lets them pass."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Event] = []
        self.most = 0

    async def passed(self) -> None:
        """Returns when the test has let this request pass."""
        self.waiting.append(event := asyncio.Event())
        self.most = max(self.most, len(self.waiting))
        await event.wait()


@asynccontextmanager
async def silent_server(
    folder: Path, answer: bytes = b"", gate: Gate | None = None, **options: Any
) -> AsyncIterator[Client]:
    """A client of a server that takes every request and answers with so much, and no more; through a gate, if any."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                if gate is not None:
                    await gate.passed()
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=TASKS)
    port = server.sockets[0].getsockname()[1]
    kubeconfig = folder / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {
        "clusters": [cluster],
        "contexts": [context],
        "current-context": "c",
        "users": [{"name": "u", "user": {}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    async with server, Client.from_kubeconfig(kubeconfig, **{"timeout": TIMEOUT, **options}) as client:
        yield client


async def get(client: Client) -> object:
    """One request, in as many attempts as the client makes."""
    return await client.get(NODES, "any")


async def persist(client: Client) -> object:
    """A loop such as those of drains: what fails is tried again, and again."""
    while True:
        try:
            return await get(client)
        except ApiError:
            continue


async def follow(client: Client) -> object:
    """Watch nodes until cancelled."""
    async with aclosing(watch(client, NODES)) as events:
        return [event async for event in events]


@pytest.mark.parametrize("act", [get, persist, follow])
@pytest.mark.parametrize("answer", [b"", HEADERS], ids=["no answer", "half an answer"])
def test_no_cancellation_is_lost(tmp_path: Path, act: Act, answer: bytes) -> None:
    """Requests are cancelled at random moments around their timeout, also in the very same turn of an event loop that
    was held up meanwhile: every task that accepts the cancellation ends as cancelled."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[asyncio.Task[object]] = []

        def cancel(tasks: list[asyncio.Task[object]]) -> None:
            accepted.extend(task for task in tasks if task.cancel())

        async with silent_server(tmp_path, answer, attempts=1) as client:
            for number in range(ROUNDS):
                tasks = [asyncio.create_task(act(client)) for _ in range(TASKS)]
                for task in tasks:
                    loop.call_later(TIMEOUT + chance.uniform(-0.02, 0.02), cancel, [task])
                if number % 2:  # both are due when the loop gets its next turn
                    loop.call_later(TIMEOUT - 0.025, time.sleep, 0.05)
                _, alive = await asyncio.wait(tasks, timeout=20 * TIMEOUT)
                cancel(list(alive))
                await asyncio.gather(*tasks, return_exceptions=True)
                assert not alive, f"seed {seed}: {len(alive)} of {TASKS} went on after they were cancelled"
        lost = [task for task in accepted if not task.cancelled()]
        assert not lost, f"seed {seed}: {len(lost)} of {len(accepted)} cancellations were lost"
        assert len(accepted) > ROUNDS

    asyncio.run(run())


def test_an_enclosing_timeout_is_a_timeout(tmp_path: Path) -> None:
    """A limit of the caller that ends with the request's own is the caller's TimeoutError, or the request's error."""

    async def run() -> None:
        async with silent_server(tmp_path, attempts=1) as client:
            for number in range(ROUNDS):
                with pytest.raises((TimeoutError, UnavailableError)):
                    async with asyncio.timeout(TIMEOUT + (number - ROUNDS // 2) / 1000):
                        await get(client)
                task = asyncio.current_task()
                assert task is not None
                assert not task.cancelling()

    asyncio.run(run())


def test_requests_at_once_are_bounded(tmp_path: Path) -> None:
    """Where `at_once` is 2, two requests of many are at the server, and as soon as one is answered the next one is."""

    async def run() -> None:
        gate = Gate()
        node = {"metadata": {"name": "any", "uid": "u", "resourceVersion": "1"}}
        body = json.dumps(node).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        async with silent_server(tmp_path, head + body, gate, timeout=600, attempts=1, at_once=2) as client:
            tasks = [asyncio.create_task(get(client)) for _ in range(6)]
            for _ in range(6):
                await until(lambda: len(gate.waiting) == min(2, sum(not task.done() for task in tasks)))
                gate.waiting.pop().set()
            assert await asyncio.gather(*tasks) == [node] * 6
        assert gate.most == 2

    asyncio.run(run())


def test_nothing_is_sent_by_one_that_does_not_lead(tmp_path: Path) -> None:
    """The client asks right before each attempt, also after the wait for a turn."""
    leads = True

    async def run() -> None:
        nonlocal leads
        async with silent_server(tmp_path, attempts=2, at_once=1, leading=lambda: leads) as client:
            tasks = [asyncio.create_task(get(client)) for _ in range(3)]
            while not client.calls:
                await asyncio.sleep(0.01)
            leads = False
            for task in tasks:
                with pytest.raises(NotLeadingError, match="request not sent: this process is not the leader"):
                    await task
            with pytest.raises(NotLeadingError):
                await follow(client)
        assert sum(client.calls.values()) <= 2

    asyncio.run(run())
