"""Every kind of nonsense in every field of every object that a token may write: it costs only that object."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import msgspec
import pytest
from kube import ControlPlane
from structlog.testing import capture_logs
from testing.cluster_objects import Pool, condition, taints
from testing.controller_steps import samples, scrape
from testing.managed_cluster import QUICK, SINCE, until
from testing.node_writing import SICK
from testing.nonsense import MERGE, Nonsense, without_bounds
from testing.paths import BASE
from testing.started_plane import started_plane

from gpuhealth.api.names import TAINT
from gpuhealth.cli.fleet_report import read_rows, show, summarize
from gpuhealth.cli.node_report import read_node
from gpuhealth.cli.node_report import show as show_node
from gpuhealth.cli.output import console
from gpuhealth.controller.controller import Controller
from gpuhealth.controller.http_app import serve
from gpuhealth.kube.client import Client
from gpuhealth.kube.errors import AnswerError
from gpuhealth.kube.kinds import BUDGETS, LEASES, NODES, PODS, REPORTS
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.writer import NodeWriter

OUT = {"key": TAINT, "value": "xid.79", "effect": "NoSchedule"}
ALL_KINDS = (NODES, REPORTS, BUDGETS, LEASES, PODS)


class Odd(NamedTuple):
    """A cluster full of nonsense, and two nodes in a pool of their own about which all is in order."""

    plane: ControlPlane
    nonsense: Nonsense
    pool: Pool
    drained: str
    sick: str

    def some_nodes(self) -> list[tuple[str, str]]:
        """Every fifth node with what is odd about it: each field occurs, and each value, for there are twelve."""
        return list(self.nonsense.nodes.items())[::5]


@pytest.fixture(scope="module")
def odd() -> Iterator[Odd]:
    """One for all tests of the module."""
    with started_plane() as plane:
        plane.apply(BASE)
        without_bounds(plane)
        pool = Pool(plane)
        drained, sick = pool.nodes(2)
        pool.budget(10_000)
        nonsense = Nonsense(plane)
        nonsense.make_all(pool.name)
        made = Odd(plane, nonsense, pool, drained, sick)
        put_out(made, drained)
        yield made


def test_there_is_nonsense_of_every_kind(odd: Odd) -> None:
    """The API server has taken odd objects of every kind, of reports and budgets every one."""
    assert {kind: count for kind, count in odd.nonsense.taken.items() if count < 15} == {}
    assert odd.nonsense.taken.keys() == set(ALL_KINDS)


def batched(items: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    """The items in lists of that size."""
    found = list(items)
    yield from (found[start : start + size] for start in range(0, len(found), size))


def put_out(odd: Odd, node: str) -> None:
    """Quarantines a node as its agent does, and has it drained."""
    odd.pool.patch(node, {"spec": {"taints": [OUT]}, "metadata": {"labels": {"gpuhealth.io/state": "quarantined"}}})
    report = {"apiVersion": "gpuhealth.io/v1alpha1", "kind": "GPUHealthReport", "metadata": {"name": node}}
    odd.plane.apply([report])
    status = {"state": "quarantined", "code": "xid.79", "since": SINCE, "drain": True}
    path = REPORTS.path(node, subresource="status")
    odd.plane.request("PATCH", path, {"status": {"quarantine": status}}, content_type=MERGE)


def test_the_controller_works(odd: Odd) -> None:
    """A node is drained, metrics are served, and each kind that cannot be read is logged and counted."""
    kubernetes = {"kubeconfig": str(odd.plane.kubeconfig)}
    quick = {"election": {"enabled": False}, "http": {"host": "127.0.0.1", "port": 0}, "drain_retry": 0.1}
    settings = Settings.model_validate({"kubernetes": kubernetes, "controller": quick})

    def phase() -> str:
        report = odd.pool.report(odd.drained)["status"]
        return str(report.get("drain", {}).get("phase"))

    async def run() -> None:
        controller = Controller(settings, services=(serve,), timing=QUICK)
        working = asyncio.create_task(controller.work())
        try:
            with capture_logs() as logs:
                await until(lambda: controller.fleet.ready and phase() == "drained")
            said = {line["kind"] for line in logs if line["event"] == "unreadable object"}
            metrics = samples((await scrape(controller.http_port))[1], "unreadable")
            for kind in (REPORTS, BUDGETS):  # of a Node the API server takes nothing that cannot be read
                assert kind.kind in said
                assert metrics["gpuhealth_controller_unreadable_objects_total", kind.kind] > 0
            assert not controller.failures
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(run())


def test_an_agent_is_not_stopped_by_leases(odd: Odd) -> None:
    """A sick node goes out of service, though most slots of its budget are odd Leases."""

    async def run() -> None:
        async with Client.from_kubeconfig(odd.plane.kubeconfig) as client:
            write = NodeWriter(client, Settings(), OwnNode(client, odd.sick))
            for _ in range(20):  # a full set is listed at the next try
                await write.apply(SICK)
            assert client.unreadable.counts["Lease"] > 0

    asyncio.run(run())
    assert taints(odd.pool.get(odd.sick)) == ["xid.79"]


def test_an_agent_with_an_odd_node_or_report(odd: Odd) -> None:
    """The condition says what it has found, whatever its own Node or report holds."""

    async def apply(client: Client, name: str, what: str) -> None:
        try:
            write = NodeWriter(client, Settings(), OwnNode(client, name))
            with suppress(AnswerError):  # its report is not even an object
                await write.apply(SICK)
            assert condition(odd.pool.get(name))["status"] == "False"
        except Exception as error:  # the note says which object
            error.add_note(f"{name}: {what}")
            raise

    async def run() -> None:
        async with Client.from_kubeconfig(odd.plane.kubeconfig) as client:
            for some in batched(odd.some_nodes(), 16):
                await asyncio.gather(*(apply(client, name, what) for name, what in some))

    asyncio.run(run())


def test_the_commands_show_it(odd: Odd) -> None:
    """`fleet` lists every node, and `node` shows each; what cannot be read is named."""

    async def run() -> None:
        async with Client.from_kubeconfig(odd.plane.kubeconfig) as client:
            rows = await read_rows(client, ())
            reported = {name for name in odd.nonsense.nodes if "report" in name}
            assert {row.node for row in rows} >= {odd.drained, *reported}
            assert any(row.unreadable for row in rows)
            summary = summarize("", rows)
            show(console(io.StringIO()), summary)
            msgspec.json.encode(summary)
            for name, what in odd.some_nodes():
                try:
                    with suppress(AnswerError):  # its report is not even an object: the command says so
                        details = await read_node(client, name)
                        show_node(console(io.StringIO()), details)
                        msgspec.json.encode(details)
                except Exception as error:  # the note says which object
                    error.add_note(f"{name}: {what}")
                    raise

    asyncio.run(run())
