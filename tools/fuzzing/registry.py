"""The fuzz targets by name: what each feeds in, and its part of all inputs, by its speed."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from fuzzing.target import FuzzTarget


class Entry(NamedTuple):
    """One target: what it does in a few words, and its share of all inputs."""

    summary: str
    share: int


TARGETS: dict[str, Entry] = {
    "nvml_answers": Entry("lies of NVML, through the child's reads and the parent to verdict, metrics and report", 1),
    "kmsg_records": Entry("raw bytes as /dev/kmsg, through reader, parser and tracker", 40),
    "classify_text": Entry("lines of logs, through `classify` and the records of a log file", 60),
    "sys_proc_trees": Entry("trees of /dev, /sys and /proc, through the probes and checks", 1),
    "api_objects": Entry("objects of the API server, through marks, budget slots, fleet views and drains", 25),
    "settings": Entry("YAML and environment variables, through the settings", 2),
    "captures": Entry("damaged captures, through `check --replay`", 1),
    "journals": Entry("damaged journals, through the agent's start and `events`", 1),
    "http_server": Entry("raw bytes to the HTTP server of the agent", 1),
    "api_answers": Entry("odd HTTP answers to the API client", 1),
    "command_output": Entry("odd verdicts, reports and entries, through the output for people", 1),
}


def target(name: str) -> FuzzTarget:
    """A new target of that name."""
    made: FuzzTarget = importlib.import_module(f"fuzzing.targets.{name}").Target()
    return made
