"""The label `gpuhealth.io/state` of a Node: its values, and the one table of how it changes. Pure.

Three processes write the label, each for its own events. The agent derives one event from the node's situation on
every pass, so it also corrects changes by others. The controller causes events of drains and burn-ins, the preflight
that of its tests. In any order of their writes they settle on one value: the agent keeps a value of the controller
while its own event allows it, and the controller changes only the values that its event is for.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cache

import msgspec
import structlog

from gpuhealth.api.names import NodeState
from gpuhealth.model.verdict import State

log = structlog.get_logger()


IN_SERVICE = (NodeState.HEALTHY, NodeState.DEGRADED, NodeState.UNHEALTHY, NodeState.UNKNOWN)
"""States in which a node is not out of service by our action: label and taint change in the same request."""


class Writer(enum.StrEnum):
    """The processes that write the label."""

    AGENT = "agent"
    CONTROLLER = "controller"
    PREFLIGHT = "preflight"


class StateEvent(enum.StrEnum):
    """What may change the label."""

    PREFLIGHT_REQUIRED = "preflight_required"  # the Node has the preflight taint, or gets it in the same request
    QUARANTINED = "quarantined"
    FOUND_HEALTHY = "found_healthy"
    FOUND_DEGRADED = "found_degraded"
    FOUND_UNHEALTHY = "found_unhealthy"
    FOUND_UNKNOWN = "found_unknown"
    DRAIN_STARTED = "drain_started"
    DRAIN_FINISHED = "drain_finished"
    DRAIN_CANCELLED = "drain_cancelled"
    BURNIN_STARTED = "burnin_started"
    BURNIN_ENDED_HEALTHY = "burnin_ended_healthy"
    BURNIN_ENDED_DEGRADED = "burnin_ended_degraded"
    AGENT_SILENT = "agent_silent"  # once for each silence; the agent writes the label again when it is back
    PREFLIGHT_PASSED = "preflight_passed"


class Rule(msgspec.Struct, frozen=True):
    """What one event does to the label."""

    writer: Writer  # the process that may cause it
    targets: Mapping[NodeState | None, NodeState | None]  # new state by present one; None is a Node without the label


_ALL = (None, *NodeState)
_OUT: tuple[NodeState | None, ...] = (NodeState.QUARANTINED, NodeState.DRAINING, NodeState.DRAINED)
_KEEP_DRAIN: dict[NodeState | None, NodeState | None] = {
    NodeState.DRAINING: NodeState.DRAINING,
    NodeState.DRAINED: NodeState.DRAINED,
}
_KEEP_TEST: dict[NodeState | None, NodeState | None] = {NodeState.TESTING: NodeState.TESTING}

TRANSITIONS: Mapping[StateEvent, Rule] = {
    StateEvent.PREFLIGHT_REQUIRED: Rule(Writer.AGENT, dict.fromkeys(_ALL, NodeState.PREFLIGHT)),
    StateEvent.QUARANTINED: Rule(Writer.AGENT, dict.fromkeys(_ALL, NodeState.QUARANTINED) | _KEEP_DRAIN),
    StateEvent.FOUND_HEALTHY: Rule(Writer.AGENT, dict.fromkeys(_ALL, NodeState.HEALTHY) | _KEEP_TEST),
    StateEvent.FOUND_DEGRADED: Rule(Writer.AGENT, dict.fromkeys(_ALL, NodeState.DEGRADED) | _KEEP_TEST),
    # Still in service: blocked by a budget, or not to be quarantined for what was found.
    StateEvent.FOUND_UNHEALTHY: Rule(Writer.AGENT, dict.fromkeys(_ALL, NodeState.UNHEALTHY) | _KEEP_TEST),
    StateEvent.FOUND_UNKNOWN: Rule(Writer.AGENT, dict.fromkeys(_ALL, NodeState.UNKNOWN) | _KEEP_TEST),
    StateEvent.DRAIN_STARTED: Rule(Writer.CONTROLLER, dict.fromkeys(_OUT, NodeState.DRAINING)),
    StateEvent.DRAIN_FINISHED: Rule(Writer.CONTROLLER, dict.fromkeys(_OUT, NodeState.DRAINED)),
    StateEvent.DRAIN_CANCELLED: Rule(Writer.CONTROLLER, dict.fromkeys(_OUT, NodeState.QUARANTINED)),
    StateEvent.BURNIN_STARTED: Rule(Writer.CONTROLLER, _KEEP_TEST | dict.fromkeys(IN_SERVICE, NodeState.TESTING)),
    # By the agent's last verdict, until the agent writes the label again.
    StateEvent.BURNIN_ENDED_HEALTHY: Rule(Writer.CONTROLLER, {NodeState.TESTING: NodeState.HEALTHY}),
    StateEvent.BURNIN_ENDED_DEGRADED: Rule(Writer.CONTROLLER, {NodeState.TESTING: NodeState.DEGRADED}),
    # A node that is out of service, or being tested, stays what it is: that is not the silent agent's verdict.
    StateEvent.AGENT_SILENT: Rule(
        Writer.CONTROLLER, {state: NodeState.UNKNOWN if state in IN_SERVICE else state for state in _ALL}
    ),
    # The label goes with the taint; the agent writes the next one.
    StateEvent.PREFLIGHT_PASSED: Rule(Writer.PREFLIGHT, {NodeState.PREFLIGHT: None, None: None}),
}
"""The transition table. An event is refused in a state that its rule does not name."""


def state_of(label: str | None) -> NodeState | None:
    """Parse the label; None for an absent label and for an unknown value."""
    return NodeState(label) if label in set(NodeState) else None


def next_state(current: NodeState | None, event: StateEvent) -> NodeState | None:
    """The state after an event. An event that is refused in this state leaves it as it is, and is logged once."""
    targets = TRANSITIONS[event].targets
    if current not in targets:
        _log_refusal(current, event)
        return current
    return targets[current]


@cache  # a writer whose view of the Node is old may try the same again and again
def _log_refusal(current: NodeState | None, event: StateEvent) -> None:
    log.warning("node state transition refused", state=current, transition=event, writer=TRANSITIONS[event].writer)


_FOUND_EVENTS = {
    State.HEALTHY: StateEvent.FOUND_HEALTHY,
    State.DEGRADED: StateEvent.FOUND_DEGRADED,
    State.UNHEALTHY: StateEvent.FOUND_UNHEALTHY,
    State.UNKNOWN: StateEvent.FOUND_UNKNOWN,
}


def agent_event(verdict: State, *, preflight: bool, quarantined: bool, declared_healthy: bool) -> StateEvent:
    """The agent's event on this pass; the first condition that holds decides."""
    if preflight:
        return StateEvent.PREFLIGHT_REQUIRED
    if quarantined:
        return StateEvent.QUARANTINED
    return StateEvent.FOUND_HEALTHY if declared_healthy else _FOUND_EVENTS[verdict]


def burnin_ended(*, healthy: bool) -> StateEvent:
    """The controller's event when the burn-in of a node in service is over; `healthy` is the agent's last verdict."""
    return StateEvent.BURNIN_ENDED_HEALTHY if healthy else StateEvent.BURNIN_ENDED_DEGRADED
