"""After a reboot the agent closes its Node once, however soon the preflight opens it again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from testing.agents import give_round

from gpuhealth.agent.agent import Agent
from gpuhealth.quarantine.writer import AppliedAction

CLOSED = AppliedAction(kind="preflight", target="gpuhealth.io/preflight", detail="", time=datetime.now(UTC))


def test_the_taint_is_set_once(make_agent: Callable[[], Agent]) -> None:
    """When the taint is written it is no longer wanted, before the Node is seen again; a planned one stays wanted."""
    agent = make_agent()
    agent._preflight_due = True
    give_round(agent)

    def wanted() -> bool:
        desired = agent._desired_marks()
        assert desired is not None
        return desired[0].preflight

    agent._journal_action(msgspec.structs.replace(CLOSED, done=False))
    assert wanted()
    agent._journal_action(msgspec.structs.replace(CLOSED, kind="label"))
    assert wanted()
    agent._journal_action(CLOSED)
    assert not wanted()
    agent.journal.close()
    assert not make_agent()._preflight_due
