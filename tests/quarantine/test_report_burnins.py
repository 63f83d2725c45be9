"""What a report says of active tests: as a pure function, and on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from kube import ControlPlane
from testing.burnin_results import FAILED, PASSED, SKIPPED, STOPPED, result, run
from testing.cluster_objects import Pool, verdict

from gpuhealth.api.report import Gpu, Inventory
from gpuhealth.api.resource import body
from gpuhealth.kube.client import Client
from gpuhealth.model.burnin_run import BurninRun, TestStatus
from gpuhealth.monitors.settings import Settings
from gpuhealth.quarantine.own_node import OwnNode
from gpuhealth.quarantine.report import Facts
from gpuhealth.quarantine.report_burnins import MAX_HISTORY, MAX_VALUES, burnin_of
from gpuhealth.quarantine.target import Desired
from gpuhealth.quarantine.writer import NodeWriter


def status_of(runs: Sequence[BurninRun], gpus: Sequence[str]) -> dict[str, Any]:
    """The report's `burnin` as the API server holds it."""
    return body(burnin_of(runs, gpus))


def test_last_result_of_each_test() -> None:
    """A later run of one test leaves the last results of the others; the run itself is the last one."""
    runs = [run(result("exact", status=FAILED), result("soak")), run(result("exact"), at=600, level="long")]
    found = status_of(runs, ["GPU-0"])["gpus"]["GPU-0"]
    assert {name: test["status"] for name, test in found["tests"].items()} == {"exact": "passed", "soak": "passed"}
    assert (found["status"], found["level"], found["startedAt"]) == ("passed", "long", "2026-01-01T00:10:00Z")
    assert [each["status"] for each in found["history"]] == ["passed", "failed"], "the newest first"


def test_stopped_run_says_nothing() -> None:
    """A run that had to give way is in the history, and the last completed one stays the last."""
    stopped = run(result("exact"), result("soak", status=STOPPED), at=600)
    found = status_of([run(result("exact")), stopped], ["GPU-0"])
    gpu = found["gpus"]["GPU-0"]
    assert (gpu["startedAt"], found["testedAt"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z")
    assert [each["status"] for each in gpu["history"]] == ["stopped", "passed"]
    assert "testedAt" not in status_of([stopped], ["GPU-0"]), "it was never tested to the end"


def test_another_gpus_failure_is_not_its_own() -> None:
    """Of one run a GPU has failed, another passed, and a third was skipped."""
    it = run(result(gpu="a", status=FAILED), result(gpu="b"), result(gpu="c", status=SKIPPED))
    assert [it.gpu_status(gpu) for gpu in "abc"] == [TestStatus.FAILED, TestStatus.PASSED, TestStatus.SKIPPED]


def test_tested_at_is_of_the_gpu_that_has_waited_longest() -> None:
    """It is there only when every GPU of the node has been tested; GPUs that are gone do not count."""
    runs = [run(result(gpu="a"), result(gpu="gone")), run(result(gpu="b"), at=60)]
    assert status_of(runs, ["a", "b"])["testedAt"] == "2026-01-01T00:01:00Z"
    assert "testedAt" not in status_of(runs, ["a", "b", "new"])
    assert "gone" not in status_of(runs, ["a", "b"])["gpus"]


def test_bounds() -> None:
    """However much was run and measured, the report stays small; what JSON has no number for is left out."""
    figures = {f"f{number:03}": number / 3 for number in range(100)} | {"a": float("nan")}
    digests = {f"d{number:03}": "ab" * 32 for number in reversed(range(100))}
    big = result(figures=figures, digests=digests, message="m" * 10_000)
    found = status_of([run(big, at=60 * number) for number in range(50)], ["GPU-0"])["gpus"]["GPU-0"]
    assert len(found["history"]) == MAX_HISTORY
    assert len(found["tests"]["exact"]["figures"]) <= MAX_VALUES
    assert found["tests"]["exact"]["figures"]["f001"] == 0.3333
    first = [f"d{number:03}" for number in reversed(range(100 - MAX_VALUES, 100))]  # computed first, on every node
    assert found["tests"]["exact"]["digests"] == dict.fromkeys(first, "ab" * 8)
    assert len(msgspec.json.encode(found)) < 6000


def test_written_once_and_only_when_it_changes(plane: ControlPlane, pool: Pool) -> None:
    """A run is written once, and a later one again; results that cannot be read for a while erase nothing."""
    node = pool.node()
    first = run(
        result(figures={"bf16_tflops": 412.123}, digests={"bf16 64x64x64": "0f" * 32}),
        software={"torch": "2.8"},
        models={"GPU-0": "H100"},
        reason="preflight",
    )
    second = run(result(status=FAILED), at=3600)
    inventory = Inventory(gpus=(Gpu(index=0, uuid="GPU-0", pci="0000:01:00.0", model="H100"),))

    async def run_all() -> None:
        async with Client.from_kubeconfig(plane.kubeconfig) as client:
            writer = NodeWriter(client, Settings(), OwnNode(client, node))

            async def wrote(*runs: object, readable: bool = True) -> bool:
                facts = Facts(inventory, burnin=runs if readable else None)  # type: ignore[arg-type]
                return "report" in {act.kind for act in await writer.apply(Desired(verdict=verdict()), facts)}

            assert await wrote()
            assert pool.report(node)["status"]["burnin"] == {"gpus": {}}
            assert await wrote(first)
            assert not await wrote(first)
            said = pool.report(node)["status"]["burnin"]
            assert said == status_of([first], ["GPU-0"])
            assert said["gpus"]["GPU-0"]["tests"]["exact"]["digests"] == {"bf16 64x64x64": "0f" * 8}
            assert await wrote(first, second)
            assert pool.report(node)["status"]["burnin"]["gpus"]["GPU-0"]["status"] == "failed"
            assert not await wrote(readable=False)
            assert pool.report(node)["status"]["burnin"] == status_of([first, second], ["GPU-0"])
            assert await wrote(second)
            assert pool.report(node)["status"]["burnin"] == status_of([second], ["GPU-0"]), "what is gone goes"

    asyncio.run(run_all())


def test_passed_is_not_the_default() -> None:
    """A run whose tests were all skipped has tested nothing."""
    found = status_of([run(result(status=SKIPPED))], ["GPU-0"])
    assert "testedAt" not in found
    assert "tests" not in found["gpus"]["GPU-0"]
    assert PASSED not in found["gpus"]["GPU-0"].values()
