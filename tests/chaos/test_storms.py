"""Storms: the same fault everywhere is a suspect driver, and programs that crash take no node out of service."""

from __future__ import annotations

import asyncio
import logging

import structlog
from benchmarks.halves import CODE, Half, History, SharedClient, most, running, until
from kube import ControlPlane

from gpuhealth.cluster.client import Client
from gpuhealth.config import Settings
from gpuhealth.controller.controller import Controller
from gpuhealth.controller.fleet import Hold
from gpuhealth.web.controller import ControllerCollector
from tests.cluster.builders import Pool

NODES = 60
PER_FAULT = 4


def held_nodes(controller: Controller) -> dict[tuple[str, ...], float]:
    """The samples of the controller's metric for nodes that are held."""
    families = {family.name: family for family in ControllerCollector(controller).collect()}
    samples = families["gpuhealth_quarantine_held_nodes"].samples
    return {tuple(each.labels[key] for key in ("budget", "limit", "code")): each.value for each in samples}


def condition(pool: Pool) -> tuple[str, str]:
    """Status and reason of the budget's condition."""
    found = pool.plane.request("GET", f"/apis/gpuhealth.io/v1alpha1/quarantinebudgets/{pool.name}")
    return next(((c["status"], c["reason"]) for c in found.get("status", {}).get("conditions", [])), ("", ""))


def test_a_driver_that_fails_everywhere(plane: ControlPlane, pool: Pool) -> None:
    """Sixty nodes fail alike at once: maxPerFault of them go out, one metric and one condition say so, until they are
    well; the places for other faults stay free."""
    pool.budget("50%", maxPerFault=PER_FAULT)
    nodes = pool.nodes(NODES)
    history = History()
    settings = Settings.model_validate({"controller": {"election": {"enabled": False}}})
    hold = Hold(pool.name, "maxPerFault", CODE)

    async def sick(halves: list[Half]) -> None:
        for half in halves:
            half.want(sick=True)

    async def run() -> None:
        controller = Controller(settings, client=Client.from_kubeconfig(plane.kubeconfig))
        async with (
            SharedClient(plane.kubeconfig) as client,
            Client.from_kubeconfig(plane.kubeconfig) as observer,
            history.following(observer, f"pool={pool.name}", pool.name),
            running(client, nodes) as halves,
        ):
            working = asyncio.create_task(controller.work())
            try:
                await until(lambda: controller.fleet.ready and controller.budgets.standings.get(pool.name))
                assert hold not in controller.fleet.holds
                await sick(halves)
                await until(lambda: controller.fleet.holds[hold] == NODES - PER_FAULT, seconds=300)
                assert held_nodes(controller)[hold] == NODES - PER_FAULT
                await until(lambda: condition(pool) == ("True", "Xid79"), seconds=300)
                assert most(history.out) == history.out[-1].count == PER_FAULT
                places = [name for name in pool.places() if ".fault." not in name]
                assert len(places) == PER_FAULT, "the held have no places"
                for half in halves:
                    half.want(sick=False)
                await until(lambda: hold not in held_nodes(controller), seconds=300)
                await until(lambda: condition(pool) == ("False", "BelowLimit"), seconds=300)
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        asyncio.run(run())
    finally:
        structlog.reset_defaults()
    assert most(history.out) == PER_FAULT
