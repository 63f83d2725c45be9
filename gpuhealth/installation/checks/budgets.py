"""Do the QuarantineBudgets let nodes out, and not all of them?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import msgspec

from gpuhealth.installation.cluster import Cluster
from gpuhealth.installation.problem import Problem, error, info, some_of, warning
from gpuhealth.kube.client import Object
from gpuhealth.kube.kinds import BUDGETS
from gpuhealth.quarantine.marks import labels
from gpuhealth.quarantine.slots.budget import BudgetError, selects, slot_sets

_EXAMPLE = "kubectl apply -f daemonset/examples/quarantinebudget.yaml, with your limits"


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    """The fields of a budget's status that are shown here."""

    used: int = 0
    blocked: int = 0


async def check(cluster: Cluster) -> list[Problem]:
    """Every budget, with the GPU nodes that it selects."""
    nodes = {node["metadata"]["name"]: labels(node) for node in await cluster.gpu_nodes()}
    mode = (await cluster.settings()).mode
    if mode == "observe":
        return []
    return list(judge(await cluster.objects(BUDGETS), nodes))


def judge(budgets: list[Object], nodes: Mapping[str, Mapping[str, str]]) -> Iterator[Problem]:
    """The problems of these budgets, given the labels of all GPU nodes by name."""
    if not budgets:
        yield warning("there is no QuarantineBudget: no node is ever taken out of service", _EXAMPLE)
        return
    selected: dict[str, list[str]] = defaultdict(list)  # budgets by node
    for budget in budgets:
        name = budget["metadata"]["name"]
        try:
            own = sorted(node for node, known in nodes.items() if selects(budget, known))
            limit = slot_sets(budget, len(own), "any")[0].limit
        except BudgetError as problem:
            yield error(f"the budget {name} cannot be read: {problem}", "correct it: its nodes stay in service", [name])
            continue
        for node in own:
            selected[node].append(name)
        yield from _limit(name, own, limit, _status(budget), total=len(nodes))
    if alone := sorted(nodes.keys() - selected.keys()):
        text = f"no budget selects {some_of(alone)}: {'they are' if len(alone) > 1 else 'it is'} never quarantined"
        yield warning(text, "extend the nodeSelector of a budget, or add one", alone)
    overlaps = sorted({tuple(names) for names in selected.values() if len(names) > 1})
    for names in overlaps:
        shared = sorted(node for node, found in selected.items() if tuple(found) == names)
        yield info(f"{' and '.join(names)} all select {some_of(shared)}: a node there needs a slot in each", "", names)


def _limit(name: str, nodes: list[str], limit: int, status: _Status, *, total: int) -> Iterator[Problem]:
    if not nodes:
        yield warning(f"the budget {name} selects no GPU node", "compare its nodeSelector with the labels", [name])
    elif limit == 0:
        yield warning(f"the budget {name} allows no node to be out of service", "raise maxUnavailable", [name])
    elif limit >= len(nodes) > 1:
        text = f"the budget {name} lets all {len(nodes)} of its nodes be out at once"
        scope = ", which are all GPU nodes" if len(nodes) == total else ""
        yield warning(text + scope, "lower maxUnavailable", [name])
    if status.blocked:
        text = f"the budget {name} is full ({status.used} of {limit}) and keeps {status.blocked} unhealthy in service"
        fix = "repair the nodes that are out, or raise its limit: kubectl get qb -o wide"
        yield warning(text, fix, [name])
    elif limit and status.used >= limit and nodes:
        yield info(f"the budget {name} is full: {status.used} of {limit} slots are taken", "", [name])


def _status(budget: Object) -> _Status:
    try:
        return msgspec.convert(budget.get("status") or {}, _Status)
    except msgspec.ValidationError:  # as if the controller had not counted
        return _Status()
