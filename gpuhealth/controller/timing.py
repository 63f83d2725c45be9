"""Pauses and periods of the controller that no operator sets: seconds, passed in so that tests can shorten them."""

from __future__ import annotations

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """All fields are seconds. The defaults are those of a controller in a cluster."""

    round_pause: float = 1.0
    """After each round of a duty: changes that come within it are one round, such as a hundred nodes lost at once."""
    retry: float = 5.0
    """Until a round is repeated in which the API server refused or failed something."""
    settings_poll: float = 2.0
    """Between looks at the settings file."""
    drain_pause: float = 0.2
    """After each step of a node's drain: pods that end within it are one write of the report."""
    drain_label_retry: float = 1.0
    """Until a retry to write a drained node's label that was changed concurrently."""
    burnin_interval: float = 60.0
    """Between rounds of the burn-in scheduler without any change: nodes become due by time alone."""
    burnin_backoff: float = 600.0
    """Until a node is tried again that was in use, or whose burn-in did not pass."""
    comparison_pause: float = 30.0
    """Between comparisons of the fleet's burn-in results: burn-ins take minutes."""
    budget_settling: float = 30.0
    """Without change of a budget before its status may say `counted`: watches, and agents that were about to take
    their nodes out of service, may not have seen the budget yet. An agent waits 20 s for its slots at most, and takes
    its node out at once."""
    budget_wait: float = 5.0
    """For which the first eviction of a drain waits at most until the budgets' statuses count the node."""
    slot_grace: float = 5.0
    """In which a node takes its slot itself, before the controller reserves one for it."""
