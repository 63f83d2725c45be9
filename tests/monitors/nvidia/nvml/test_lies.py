"""Every call of the probe, made to lie in every way: it costs the readings of this call, and nothing else.

The calls are those that the simulated driver counts while the probe reads, so that a new call is among them. What a
call's readings are is found by refusing it once. `GPUHEALTH_LIES=100000` makes so many examples instead of a few.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.lying_node import CORRUPTED_INFOROM, FIELDS, GPUS, LINK_STATE, LYING, Call, LyingNode, flat, lying_node
from testing.nvml_lies import Answer, tell

from gpuhealth.model.codes import Clears
from gpuhealth.model.finding import Action, Clean, Finding, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.readings import NvmlReadings
from gpuhealth.monitors.registry import code_of

EXAMPLES = int(os.environ.get("GPUHEALTH_LIES", "0"))

NODES: dict[str, dict[str, Any]] = {
    "NVLink 4": {"model": "h100-sxm"},
    "NVLink 5": {"model": "b200"},
    "retired pages": {"model": "v100-sxm2-32gb"},
    "MIG": {"model": "h100-sxm", "mig": 2},
}
UNEXPECTED = "agent.unexpected_reading"

TRIED: set[tuple[Any, frozenset[str]]] = set()
"""Calls that were tried on another node, where they had the same readings."""

# A lie of each kind that is tried on every call in every run.
OF_EACH_KIND: list[Answer] = [
    *({"code": code} for code in (2, 4, 9, 13, 15, 16, 26, 999, -1)),
    *({"value": value} for value in (-1, (1 << 31) + 200, float("nan"))),
    {"zero": 1},
    {"shift": 1},
]
OF_FIELDS: list[Answer] = [{"type": 255}, {"type": 0, "value": 0.5}, {"value": float("inf")}, {"type": 6, "value": -1}]

# The values that a reading may have. A lie within them is a legal value, and may be any finding that such a value is.
LEGAL = {
    r"celsius": (-200, 200),
    r"percent": (0, 100),
    r"pcie_width": (0, 32),
    r"pcie_generation": (0, 16),
    r"milliwatts": (0, 20_000_000),
    r"mhz": (0, 100_000),
    r"recovery_action|minor|compute_mode": (0, 255),
    r"nvlinks\.\d+\.state": (0, 3),
    r"nvlinks\.\d+\.\w+_ber": (0, 1),
    r"remap_|ecc_errors|pcie_replays|retired_pages": (0, (1 << 31) - 1),
    r"clocks_event_reasons": (0, 0xFFFF),
    r"": (0, 1 << 62),
}


@pytest.fixture(scope="module", params=NODES)
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingNode]:
    """A node of each kind."""
    with lying_node(tmp_path_factory.mktemp("lies"), **NODES[request.param]) as made:
        yield made


def test_each_reading_belongs_to_one_call(node: LyingNode) -> None:
    """Two calls that are refused cost no reading in common, so that one call costs its own."""
    owners: dict[str, Call] = {}
    assert len(node.calls) > 40
    for call, readings in node.reach.items():
        if call == Call(FIELDS):  # every field at once
            continue
        for reading in readings - {"mig_devices"}:  # several calls make one device
            assert reading not in owners, (reading, call, owners[reading])
            owners[reading] = call


def _assert_lie_costs_its_call_only(node: LyingNode, call: Call, lie: Answer) -> None:
    with tell(call.function, gpu=LYING, **call.where, **lie):
        lying = node.read()
    what = (call, lie)
    honest = node.honest
    assert [gpu.index for gpu in lying.gpus] == list(range(GPUS)), what
    for index in set(range(GPUS)) - {LYING}:
        assert lying.gpus[index] == honest.gpus[index], what
    assert msgspec.structs.replace(lying, gpus=()) == msgspec.structs.replace(honest, gpus=()), what

    read, expected = flat(lying.gpus[LYING]), flat(honest.gpus[LYING])
    changed = {name: read.get(name) for name in {*read, *expected} if read.get(name) != expected.get(name)}
    assert lying.gpus[LYING].error is None, what
    assert changed.keys() <= node.reach[call] | _also_changed(call, read, expected), (what, changed)
    for name, value in changed.items():
        _assert_missing_or_legal(name, value, what)
    if changed or lying.gpus[LYING].failed_calls:
        _assert_judged(node, lying, changed, what)


def _also_changed(call: Call, read: dict[str, Any], expected: dict[str, Any]) -> set[str]:
    """Readings of NVLinks that there are only with this answer, or not with it: links, and the counters of a link."""
    if call.function not in (FIELDS, LINK_STATE):
        return set()
    without_links = {name for name in {*read, *expected} if name.startswith("nvlinks")} if "nvlinks" in read else set()
    new = {name for name in read if name.startswith("nvlinks.") and _is_absent(expected.get(name))}
    return new | without_links


def _is_absent(reading: Any) -> bool:
    return reading is None or (isinstance(reading, Missing) and reading.is_unsupported)


def _assert_missing_or_legal(name: str, value: Any, what: tuple[Call, Answer]) -> None:
    call, _ = what
    if isinstance(value, Missing):
        if value.reason is not MissingReason.NOT_SUPPORTED:
            assert re.sub(r"_v\d$", "", call.function).startswith(re.split(r"[:(]|_v\d", value.detail)[0]), (
                what,
                value,
            )
            assert len(value.detail) <= 300, what
            assert value.detail.isprintable(), what
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = next(bounds for pattern, bounds in LEGAL.items() if re.search(pattern, name))
        assert low <= value <= high, (what, name, value)
    elif isinstance(value, str):
        assert value.isprintable(), what
        assert len(value) <= 256, what


def _assert_judged(node: LyingNode, lying: NvmlReadings, changed: dict[str, Any], what: tuple[Call, Answer]) -> None:
    call, lie = what
    outcomes = node.outcomes_after(lying)
    before = {(each.code, each.component) for each in node.clean if isinstance(each, Finding)}
    found = [each for each in outcomes if isinstance(each, Finding) and (each.code, each.component) not in before]
    odd = [each for each in found if each.code == UNEXPECTED]
    unread = [value for value in changed.values() if isinstance(value, Missing) and not value.is_unsupported]
    gone = not changed.keys() <= flat(lying.gpus[LYING]).keys()  # such as a counter of a link
    assert bool(odd) == bool(lying.gpus[LYING].failed_calls) or lie.get("code") == CORRUPTED_INFOROM, (what, outcomes)
    assert odd or not (unread or gone) or call.is_legal(lie), (what, changed)
    for each in odd:
        assert each.severity is Severity.WARNING, what
        assert each.action is not Action.REBOOT_NODE, what
        assert len(each.message) < 1000, what
        assert not code_of(each.code).quarantine
    legal = [value for value in changed.values() if value is not None and not isinstance(value, Missing)]
    assert len(found) == len(odd) or legal or call.is_legal(lie), (what, found, changed)
    for each in found:
        assert code_of(each.code).clears not in (Clears.REBOOT, Clears.REBOOT_OR_BURNIN), (what, each)
    was_clean = {(each.code, each.component) for each in node.clean if isinstance(each, Clean)}
    clean = {(each.code, each.component) for each in outcomes if isinstance(each, Clean)}
    assert legal or clean <= was_clean, (what, clean - was_clean)


def test_a_lie_of_each_kind_about_every_call(node: LyingNode) -> None:
    """Whatever one call answers about one GPU costs that call's readings: each is missing with what was seen, or legal.

    The rest of the GPU, the other GPUs, versions and count are as without the lie; what is found is
    agent.unexpected_reading, unless the answer is a legal value of a fault; nothing that is missing counts as clean.
    """
    new = {call for call in node.calls if (call, frozenset(node.reach[call])) not in TRIED}
    TRIED.update((call, frozenset(node.reach[call])) for call in new)
    for call in new:
        for lie in [*OF_EACH_KIND, *(OF_FIELDS if call.field is not None else [])]:
            _assert_lie_costs_its_call_only(node, call, lie)


def test_any_lie_about_any_call(node: LyingNode) -> None:
    """As above, for lies of every kind drawn at random."""
    cases = [(call, lie) for call in node.calls for lie in call.lies]
    assert len(cases) > 2000

    @given(st.sampled_from(cases))
    @settings(max_examples=EXAMPLES) if EXAMPLES else settings()
    def holds(case: tuple[Call, Answer]) -> None:
        _assert_lie_costs_its_call_only(node, *case)

    holds()
