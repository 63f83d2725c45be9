"""A metric that cannot be collected or written costs its own collector's samples, and nothing else."""

from __future__ import annotations

import asyncio
import http.client
import resource
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from structlog.testing import capture_logs
from testing.agents import ShownStatus
from testing.metric_samples import parsed, values
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from gpuhealth.agent.agent import Agent
from gpuhealth.agent.http_app import serve
from gpuhealth.agent.metrics import Exposition
from gpuhealth.api.metrics import AGENT_METRICS_ERRORS, gauge
from gpuhealth.runtime import http_server as server
from gpuhealth.runtime.exposition import Rendering
from gpuhealth.runtime.http_server import keep_serving
from gpuhealth.runtime.metric_families import family

ERRORS = AGENT_METRICS_ERRORS.name
HOSTILE = [
    "\udcff",
    "\ud800 x",
    'a"b',
    "a\\",
    "a\nb",
    "a\r\nb",
    "\x00\x1b[31m",
    "}",
    '"} 1\nfaked 1',
    "\u2028",
    "é" * 9,
]


def one(name: str, *rows: tuple[Any, ...]) -> Callable[[], Iterator[Metric]]:
    """A collector of one metric with these rows: a value, or a label and a value."""

    def collect() -> Iterator[Metric]:
        yield family(gauge(name, "A metric", *["label"][: len(rows[0]) - 1]), rows)

    return collect


def failing(error: Exception) -> Callable[[], Iterator[Metric]]:
    """A collector that gives one metric and then fails."""

    def collect() -> Iterator[Metric]:
        yield family(gauge("before", "A metric"), [(1,)])
        raise error

    return collect


def errors(text: bytes) -> dict[str, float]:
    """How often each collector has failed."""
    return values(parsed(text.decode()), ERRORS, "collector")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("x"), RecursionError(), KeyError()])
def test_a_collector_that_fails_costs_its_own_samples(error: Exception) -> None:
    """The others are served, the failure is counted under its name, and logged once while it stays the same."""
    rendering = Rendering(AGENT_METRICS_ERRORS, {"bad": failing(error), "good": one("good", (1,))})
    with capture_logs() as logged:
        for times in (1, 2, 3):
            text = rendering.text()
            assert parsed(text.decode())["gpuhealth_good"] == {(): 1}
            assert errors(text) == {"bad": times, "good": 0}
    assert [(line["collector"], line["log_level"]) for line in logged] == [("bad", "error")]
    assert type(error).__name__ in logged[0]["error"]


def test_an_error_that_comes_back_is_logged_again() -> None:
    """A collector that has worked in between, or that fails in another way, has a line of its own."""
    outcomes: list[Exception | None] = [OSError(), OSError(), None, OSError(), ValueError()]

    def collect() -> Iterator[Metric]:
        if (error := outcomes.pop(0)) is not None:
            raise error
        yield family(gauge("good", "A metric"), [(1,)])

    rendering = Rendering(AGENT_METRICS_ERRORS, {"flaky": collect})
    with capture_logs() as logged:
        for _ in range(5):
            rendering.text()
    assert [line["error"].partition(":")[0] for line in logged] == ["OSError", "OSError", "ValueError"]


@pytest.mark.parametrize("value", ["high", None, object(), 1 << 2000, "\udcff"])
def test_a_value_that_is_no_number(value: object) -> None:
    """Such a value costs its collector; the log line about it stays short."""
    rendering = Rendering(AGENT_METRICS_ERRORS, {"bad": one("bad", *[(str(n), 1) for n in range(2000)], ("x", value))})
    with capture_logs() as logged:
        assert errors(rendering.text()) == {"bad": 1}
    assert len(str(logged)) < 1000


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=5, unique=True))
def test_any_text_may_stand_in_a_label(labels: list[str]) -> None:
    """Whatever a label says, half surrogates too, the text is UTF-8 and holds that sample; no collector fails."""
    text = Rendering(
        AGENT_METRICS_ERRORS, {"labels": one("odd", *[(label, 1) for label in labels] or [("", 1)])}
    ).text()
    assert errors(text) == {"labels": 0}
    shown = values(parsed(text.decode()), "gpuhealth_odd", "label")
    assert shown.keys() >= {label for label in labels if label.isascii() and "\\" not in label}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_promtool_reads_hostile_labels(make_agent: Callable[[], Agent]) -> None:
    """An agent whose labels come from a hostile kernel log, and which has a value that is no number, is read."""
    shown = ShownStatus(make_agent().status())
    for label in HOSTILE:
        shown.status().counts.xids[label, label] += 1
        shown.status().counts.kernel_events[label] += 1
    odd = {"read_seconds": float("nan"), "judge_seconds": float("-inf")}
    shown.change(monitors=tuple(msgspec.structs.replace(part, **odd) for part in shown.status().monitors))
    text = Exposition(shown, 10.0).text()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert len(values(parsed(text.decode()), "gpuhealth_xid_errors_total", "xid")) == len(HOSTILE)


def test_an_agent_without_file_descriptors_goes_on(tmp_path: Path) -> None:
    """A real agent that can open nothing serves what it has, counts what is missing, lives, and recovers."""
    with SimulatedNode(tmp_path, settings={"interval": "200ms", "kubernetes": {"enabled": False}}) as node:
        connection = http.client.HTTPConnection("127.0.0.1", int(node.url.rpartition(":")[2]), timeout=60)

        def get(path: str) -> str:
            connection.request("GET", path)  # over the connection that is there: another needs a descriptor
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read().decode()

        assert errors(get("/metrics").encode())["memory"] == 0
        before = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        in_use = {int(entry.name) for entry in Path(f"/proc/{node.pid}/fd").iterdir()}
        lowest_free = min(set(range(len(in_use) + 1)) - in_use)
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
        text = wait_for("the failure", lambda: t if errors((t := get("/metrics")).encode())["memory"] > 2 else "")
        assert parsed(text)["gpuhealth_agent_config_valid"] == {(): 1}
        assert "gpuhealth_agent_resident_memory_bytes{" not in text
        assert get("/healthz") == "ok\n"
        logged = [line for line in node.log() if line.get("collector") == "memory"]
        assert len(logged) == 1
        assert "Too many open files" in logged[0]["error"]
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, before)
        wait_for("the metric", lambda: "gpuhealth_agent_resident_memory_bytes{" in get("/metrics"))
        connection.close()
        wait_for("healthy", lambda: node.metric("gpuhealth_node_healthy") == 1)


def test_a_server_that_fails_is_started_again(make_agent: Callable[[], Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the accepting of connections, the agent's service goes on, at the same pages, and counts it."""
    monkeypatch.setattr(server, "FIRST_PAUSE_SECONDS", 0.01)
    agent = make_agent()
    settings = agent.settings.http.model_copy(update={"host": "127.0.0.1", "port": 0})
    agent.settings = agent.settings.model_copy(update={"http": settings})
    accept, failures = server._Connections.accept, [RuntimeError("a bug"), MemoryError(), OSError(9, "Bad descriptor")]

    async def broken(self: Any, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        await accept(self, *arguments)

    monkeypatch.setattr(server._Connections, "accept", broken)

    async def whole() -> None:
        serving = asyncio.create_task(serve(agent))
        async with asyncio.timeout(300):
            while failures or agent.counts.failures["serve"] < 3:
                await asyncio.sleep(0.01)
            answer = b""
            while not answer:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", agent.http_port)
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
                await writer.wait_closed()
        assert answer.endswith(b"ok\n")
        assert not serving.done()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert serving.cancelled()

    asyncio.run(whole())


def test_the_pauses_between_starts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that fails at once, each time, is started again more and more rarely; cancelling ends it."""
    monkeypatch.setattr(server, "FIRST_PAUSE_SECONDS", 0.03)
    monkeypatch.setattr(server, "LONGEST_PAUSE_SECONDS", 0.12)
    failures: Counter[str] = Counter()

    async def serve() -> None:
        raise server.ServingError("taken") if failures else ValueError("a bug")

    async def whole() -> None:
        task = asyncio.create_task(keep_serving(serve, failures))
        async with asyncio.timeout(300):
            while failures["serve"] < 6:
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    with capture_logs() as logged:
        asyncio.run(whole())
    assert [line["retry_in"] for line in logged][:5] == [0.03, 0.06, 0.12, 0.12, 0.12]
