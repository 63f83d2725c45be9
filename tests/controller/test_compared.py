"""The fleet's comparison of what the command really computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import msgspec

from gpuhealth.cluster import tested
from gpuhealth.controller import facts
from gpuhealth.controller.comparison import MISMATCH, outliers
from gpuhealth.readings import BurninRun, TestStatus

COMMAND = [sys.executable, "-m", "gpuhealth", "burnin", "--devices", "cpu", "--tests", "repeat", "--duration", "2s"]


def report(node: str, faults: str) -> facts.Report:
    """What the controller keeps of a node whose burn-in was run just now; it has passed."""
    env = {**os.environ, "GPUHEALTH_BURNIN__FAULTS": faults}
    done = subprocess.run([*COMMAND, "--json"], env=env, capture_output=True, check=True)
    run = msgspec.json.decode(done.stdout, type=BurninRun)
    assert run.status is TestStatus.PASSED
    gpu = run.results[0].gpu
    run = msgspec.structs.replace(run, models={gpu: "a processor"})
    status = {"burnin": json.loads(json.dumps(tested.status_of([run], [gpu])))}
    return facts.report({"metadata": {"name": node}, "status": status})


def test_a_device_that_is_always_wrong_in_the_same_way() -> None:
    """Alone it passes, since it repeats itself bit for bit; beside three sound ones it is named."""
    faults = {"sick": '[{"kind": "result_bits"}]'}
    reports = [report(node, faults.get(node, "[]")) for node in ("one", "two", "three", "sick")]
    found = outliers(each for one in reports for each in one.tests)
    assert {(each.node, each.code) for each in found} == {("sick", MISMATCH)}
