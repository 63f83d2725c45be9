"""A day of rounds under a driver that lies: memory, descriptors and threads of the agent and its NVML process.

A real agent reads 8 GPUs without a pause between its rounds. Every few rounds the driver lies in other ways, now and
then an XID is logged, and sometimes the NVML process is killed.
"""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from testing.nvml_lies import answers
from testing.simnode import SimulatedNode, rounds
from testing.waiting import wait_for

from benchmarks import Figures, Settings

ROUNDS = 8640
"""24 hours of rounds of 10 s."""
_LIES_AT_ONCE = 8
_ROUNDS_OF_A_LIE = 20
_ROUNDS_BETWEEN_XIDS = 50
_ROUNDS_BETWEEN_KILLS = 500
_SAMPLES = 200
_PAUSE_SECONDS = 0.2  # between two scrapes, so that the agent spends its time on rounds
_XIDS = (13, 31, 43, 48, 63, 79, 94, 119)
_MIB = 2**20


class _Sample(NamedTuple):
    rounds: float
    agent_mib: float
    child_mib: float
    descriptors: int
    child_descriptors: int
    threads: int


def run(seconds: float) -> tuple[Figures, Settings]:
    """Measures 24 hours of rounds, or as many as there are in so many seconds."""
    chosen = random.Random(1)
    quick = {"interval": "10ms", "findings": {"*": {"clear_after": "1s"}}}
    nvml = {"nvml": {"reinit_interval": "1s"}}
    samples: list[_Sample] = []
    with tempfile.TemporaryDirectory() as folder, SimulatedNode(Path(folder), settings={**quick, **nvml}) as node:
        agent = psutil.Process(node.pid)
        calls = [name for name in node.driver.calls() if name.startswith("nvml")]
        began, first = time.monotonic(), rounds(node)
        done = last_lies = last_xid = last_kill = kills = 0.0
        while done < ROUNDS and time.monotonic() - began < seconds:
            time.sleep(_PAUSE_SECONDS)
            done = rounds(node) - first
            if done - last_lies >= _ROUNDS_OF_A_LIE:
                last_lies = done
                _tell_lies(node, chosen, calls)
            if done - last_xid >= _ROUNDS_BETWEEN_XIDS:
                last_xid = done
                node.xid(chosen.choice(_XIDS), gpu=chosen.randrange(8))
            if done - last_kill >= _ROUNDS_BETWEEN_KILLS:
                last_kill, kills = done, kills + _kill_child(agent)
            if done >= ROUNDS / _SAMPLES * len(samples):
                samples.append(_sample(agent, done))
        node.driver.truth()
        wait_for("the truth", lambda: "agent.unexpected_reading" not in node.findings())
        samples.append(_sample(agent, done))
        journal_mib = sum(file.stat().st_size for file in Path(folder).glob("journal*")) / _MIB
        settings: Settings = {
            "gpus": 8,
            "lies_at_once": _LIES_AT_ONCE,
            "rounds_of_a_lie": _ROUNDS_OF_A_LIE,
            "children_killed": int(kills),
            "seconds": round(time.monotonic() - began),
        }
        return {**_figures(samples), "rounds": done, "journal_mib": journal_mib}, settings


def _tell_lies(node: SimulatedNode, chosen: random.Random, calls: list[str]) -> None:
    node.driver.truth()
    for _ in range(_LIES_AT_ONCE):
        call, lie = chosen.choice(calls), chosen.choice(answers())
        node.driver.lie(call, gpu=chosen.randrange(8) if "Device" in call else None, **lie)


def _kill_child(agent: psutil.Process) -> int:
    children = agent.children()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    return len(children)


def _sample(agent: psutil.Process, done: float) -> _Sample:
    child_bytes = child_descriptors = 0
    for child in agent.children():
        with suppress(psutil.NoSuchProcess):
            child_bytes += child.memory_info().rss
            child_descriptors += child.num_fds()
    return _Sample(
        done,
        agent.memory_info().rss / _MIB,
        child_bytes / _MIB,
        agent.num_fds(),
        child_descriptors,
        agent.num_threads(),
    )


def _figures(samples: list[_Sample]) -> Figures:
    """The samples after a tenth, a half and all of the rounds, and the largest after the first tenth."""
    last = samples[-1].rounds
    figures: Figures = {}
    for percent in (10, 50, 100):
        sample = next(each for each in samples if each.rounds >= last * percent / 100)
        figures |= {f"{name}_at_{percent}": float(getattr(sample, name)) for name in _Sample._fields[1:]}
    late = [each for each in samples if each.rounds >= last / 10]
    return figures | {f"{name}_max": float(max(getattr(each, name) for each in late)) for name in _Sample._fields[1:]}
