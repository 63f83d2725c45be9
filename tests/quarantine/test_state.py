"""The label of the node's state: the whole transition table, and that its writers settle on one value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gpuhealth.api.names import STATE_LABEL, NodeState
from gpuhealth.model.verdict import State
from gpuhealth.quarantine import state as state_module
from gpuhealth.quarantine.state import (
    IN_SERVICE,
    TRANSITIONS,
    StateEvent,
    Writer,
    agent_event,
    burnin_ended,
    next_state,
    state_of,
)
from gpuhealth.quarantine.state_label import label_patch

TABLE = """
                      --  pre hea deg unh unk qua drg drd tes
preflight_required    pre pre pre pre pre pre pre pre pre pre
quarantined           qua qua qua qua qua qua qua drg drd qua
found_healthy         hea hea hea hea hea hea hea hea hea tes
found_degraded        deg deg deg deg deg deg deg deg deg tes
found_unhealthy       unh unh unh unh unh unh unh unh unh tes
found_unknown         unk unk unk unk unk unk unk unk unk tes
drain_started         .   .   .   .   .   .   drg drg drg .
drain_finished        .   .   .   .   .   .   drd drd drd .
drain_cancelled       .   .   .   .   .   .   qua qua qua .
burnin_started        .   .   tes tes tes tes .   .   .   tes
burnin_ended_healthy  .   .   .   .   .   .   .   .   .   hea
burnin_ended_degraded .   .   .   .   .   .   .   .   .   deg
agent_silent          --  pre unk unk unk unk qua drg drd tes
preflight_passed      --  --  .   .   .   .   .   .   .   .
"""
SHORT = dict(zip(TABLE.split()[:10], (None, *NodeState), strict=True))
"""The states as the first line of TABLE writes them; "--" for a Node without the label."""


def cells() -> list[tuple[NodeState | None, StateEvent, str]]:
    """State, event and the text of the cell, of the whole table."""
    head, *rows = (line.split() for line in TABLE.strip().splitlines())
    return [
        (SHORT[column], StateEvent(event), cell) for event, *row in rows for column, cell in zip(head, row, strict=True)
    ]


@pytest.mark.parametrize(("current", "event", "cell"), cells())
def test_every_pair(current: NodeState | None, event: StateEvent, cell: str) -> None:
    """Each pair of a state and an event leads where this table says, or is refused and keeps the state."""
    assert (current in TRANSITIONS[event].targets) is (cell != ".")
    assert next_state(current, event) is (current if cell == "." else SHORT[cell])


def test_the_table_is_whole() -> None:
    """This table has every pair once, and every event has a rule."""
    pairs = [(current, event) for current, event, _ in cells()]
    assert sorted(map(str, pairs)) == sorted(
        str((state, event)) for state in (None, *NodeState) for event in StateEvent
    )
    assert set(TRANSITIONS) == set(StateEvent)


def test_every_state_is_reached() -> None:
    """Every state is one that events lead to from a Node without the label."""
    reached: set[NodeState | None] = {None}
    for _ in NodeState:
        reached |= {next_state(state, event) for state in reached for event in StateEvent}
    assert reached == {None, *NodeState}


def of(writer: Writer) -> list[StateEvent]:
    """The events that a process may cause."""
    return [event for event, rule in TRANSITIONS.items() if rule.writer is writer]


def test_who_writes_what() -> None:
    """The agent has an answer to whatever label it finds; only the controller drains and tests."""
    for event in of(Writer.AGENT):
        assert set(TRANSITIONS[event].targets) == {None, *NodeState}
    by_writer = {
        writer: {new for event in of(writer) for old, new in TRANSITIONS[event].targets.items() if new is not old}
        for writer in Writer
    }
    assert {state for state, writers in _writers(by_writer).items() if writers == {Writer.CONTROLLER}} == {
        NodeState.DRAINING,
        NodeState.DRAINED,
        NodeState.TESTING,
    }
    assert by_writer[Writer.PREFLIGHT] == {None}


def _writers(by_writer: dict[Writer, set[NodeState | None]]) -> dict[NodeState | None, set[Writer]]:
    return {state: {writer for writer, states in by_writer.items() if state in states} for state in (None, *NodeState)}


LASTING = [event for event in of(Writer.CONTROLLER) if event is not StateEvent.AGENT_SILENT]
"""Events that the controller causes for as long as they hold. It marks a silence once, when no agent writes."""
LABEL = st.sampled_from([None, "", "by-hand", *NodeState])


@given(
    label=LABEL,
    before=st.lists(st.sampled_from([*StateEvent]), max_size=8),
    situation=st.sampled_from(of(Writer.AGENT)),
    controllers=st.lists(st.sampled_from(LASTING), max_size=1),
    agent_first=st.booleans(),
)
def test_the_writers_never_fight(
    label: str | None,
    before: list[StateEvent],
    situation: StateEvent,
    controllers: list[StateEvent],
    agent_first: bool,
) -> None:
    """Whatever was written in whatever order: once the node's situation and the controller's event do not change any
    more, neither writer changes the label after two turns of each."""
    state = state_of(label)
    for event in before:
        state = next_state(state, event)
    turn = [situation, *controllers] if agent_first else [*controllers, situation]
    for event in turn * 2:
        state = next_state(state, event)
    assert all(next_state(state, event) is state for event in turn)
    assert state is not None


def test_a_refused_transition_is_logged_once() -> None:
    """It crashes nothing and keeps the state; one line names state, transition and writer."""
    state_module._log_refusal.cache_clear()
    with capture_logs() as logged:
        for _ in range(3):
            assert next_state(NodeState.HEALTHY, StateEvent.DRAIN_FINISHED) is NodeState.HEALTHY
        assert next_state(None, StateEvent.DRAIN_FINISHED) is None
    assert [(entry["event"], entry["state"], entry["transition"], entry["writer"]) for entry in logged] == [
        ("node state transition refused", "healthy", "drain_finished", "controller"),
        ("node state transition refused", None, "drain_finished", "controller"),
    ]


@pytest.mark.parametrize("text", [None, "", "by-hand", "Healthy", "preflight "])
def test_texts_that_are_no_state(text: str | None) -> None:
    """A label that somebody else has written counts as none: the agent writes its own over it."""
    assert state_of(text) is None


@pytest.mark.parametrize("state", NodeState)
def test_texts_that_are_a_state(state: NodeState) -> None:
    """Each state is read as it is written."""
    assert state_of(str(state)) is state


@pytest.mark.parametrize(
    ("current", "verdict", "quarantined", "label"),
    [
        ("", State.HEALTHY, False, "healthy"),
        ("", State.DEGRADED, False, "degraded"),
        ("", State.UNHEALTHY, False, "unhealthy"),
        ("", State.UNKNOWN, False, "unknown"),
        ("healthy", State.UNHEALTHY, True, "quarantined"),
        ("draining", State.UNHEALTHY, True, "draining"),
        ("drained", State.HEALTHY, False, "healthy"),
        ("preflight", State.HEALTHY, False, "healthy"),  # its taint is gone
        ("testing", State.HEALTHY, False, "testing"),
        ("testing", State.UNHEALTHY, True, "quarantined"),
    ],
)
def test_state_label(current: str, verdict: State, quarantined: bool, label: str) -> None:
    """The controller's states are kept while they hold; nothing but preflight is shown while its taint is there."""
    for preflight in (False, True):
        event = agent_event(verdict, preflight=preflight, quarantined=quarantined, declared_healthy=False)
        assert next_state(state_of(current), event) == ("preflight" if preflight else label)


@pytest.mark.parametrize("verdict", State)
def test_declared_healthy(verdict: State) -> None:
    """A node in service that a person has declared healthy is that, whatever is found."""
    event = agent_event(verdict, preflight=False, quarantined=False, declared_healthy=True)
    assert event is StateEvent.FOUND_HEALTHY


@pytest.mark.parametrize(("healthy", "label"), [(True, "healthy"), (False, "degraded")])
def test_after_a_burn_in(healthy: bool, label: str) -> None:
    """The label is what the agent's last verdict makes of it; a node that is being tested no longer keeps its label."""
    patch = label_patch("testing", burnin_ended(healthy=healthy))
    path = f"/metadata/labels/{STATE_LABEL.replace('/', '~1')}"
    assert patch == [{"op": "test", "path": path, "value": "testing"}, {"op": "replace", "path": path, "value": label}]
    assert label_patch("quarantined", burnin_ended(healthy=healthy)) == []


def test_in_service_is_not_out() -> None:
    """No state that counts as in service is one in which the node is out, or may be."""
    out = {NodeState.QUARANTINED, NodeState.DRAINING, NodeState.DRAINED, NodeState.PREFLIGHT, NodeState.TESTING}
    assert not out & set(IN_SERVICE)
