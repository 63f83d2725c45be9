"""The rule on a second agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from gpuhealth.model.codes import define
from gpuhealth.model.component import NODE
from gpuhealth.model.context import Check, CheckContext, RuleResult, outcome_of
from gpuhealth.model.finding import Action, Outcome, Severity
from gpuhealth.model.missing import Missing, Reading
from gpuhealth.monitors.monitor import NoBaseline, NoSettings
from gpuhealth.monitors.own_process.readings import OwnProcessReadings
from gpuhealth.runtime.text import printable

Context: TypeAlias = CheckContext[Reading[OwnProcessReadings], NoSettings, NoBaseline]

SECOND_AGENT = define(
    "agent.second_agent",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="A second agent was started on this node, as when gpuhealth is installed twice. It has ended without"
    " writing anything; the first one works on.",
    advice="Remove one of the installations: `kubectl get daemonsets -A -l app.kubernetes.io/name=gpuhealth`.",
)
_RECENT_SECONDS = 900.0  # a container that ends is started again within five minutes


def _second_agent(context: Context) -> RuleResult:
    readings = context.readings
    if isinstance(readings, Missing):
        return readings
    refused = readings.refused
    if refused is None or refused.seconds_ago > _RECENT_SECONDS:
        return None
    return SECOND_AGENT.found(
        NODE,
        f"a second agent was started on this node and has ended: {printable(refused.name)}",
        now=context.time,
        source="lock of the journal's folder",
        reading=f"{refused.seconds_ago:.0f} s ago",
    )


def _run(context: Context) -> Iterator[Outcome]:
    yield from outcome_of(SECOND_AGENT, NODE, _second_agent(context))


CHECK = Check((SECOND_AGENT,), _run)
