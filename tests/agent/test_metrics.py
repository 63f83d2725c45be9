"""/metrics: what is promised is there, says what the GPUs say, and says nothing where nothing was read."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import msgspec
import pytest
import reference
from prometheus_client.parser import text_string_to_metric_families
from testing import readings
from testing.agents import ShownStatus, give_round
from testing.findings import found
from testing.metric_samples import Samples, parsed, scraped, values
from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from gpuhealth.agent.agent import Agent
from gpuhealth.agent.http_app import serve
from gpuhealth.agent.metrics import Exposition
from gpuhealth.model.component import Component, Kind
from gpuhealth.model.kernel_event import KernelLogStatus
from gpuhealth.monitors.nvidia.readings import MigDevice
from gpuhealth.monitors.registry import monitors
from gpuhealth.quarantine.slots.budget import Limit
from gpuhealth.quarantine.slots.holder import Blocked

PROMISED = {
    "gpuhealth_node_healthy": set(),
    "gpuhealth_verdict": {"verdict"},
    "gpuhealth_gpu_verdict": {"gpu", "verdict"},
    "gpuhealth_finding": {"code", "severity", "kind", "component", "parent"},
    "gpuhealth_findings_total": {"code"},
    "gpuhealth_gpu_info": {"gpu", "index", "pci", "model", "serial", "vbios", "driver"},
    "gpuhealth_gpu_temperature_celsius": {"gpu"},
    "gpuhealth_gpu_temperature_margin_celsius": {"gpu"},
    "gpuhealth_gpu_memory_temperature_celsius": {"gpu"},
    "gpuhealth_gpu_power_watts": {"gpu"},
    "gpuhealth_gpu_power_limit_watts": {"gpu"},
    "gpuhealth_gpu_sm_clock_hertz": {"gpu"},
    "gpuhealth_gpu_utilization_ratio": {"gpu"},
    "gpuhealth_gpu_memory_used_bytes": {"gpu"},
    "gpuhealth_gpu_memory_total_bytes": {"gpu"},
    "gpuhealth_gpu_throttle_seconds_total": {"gpu", "reason"},
    "gpuhealth_gpu_ecc_errors_total": {"gpu", "type", "counter", "location"},
    "gpuhealth_gpu_remapped_rows": {"gpu", "kind"},
    "gpuhealth_gpu_row_remap_pending": {"gpu"},
    "gpuhealth_gpu_row_remap_failure": {"gpu"},
    "gpuhealth_gpu_pcie_replays_total": {"gpu"},
    "gpuhealth_gpu_pcie_width_lanes": {"gpu"},
    "gpuhealth_gpu_recovery_action": {"gpu"},
    "gpuhealth_nvlink_up": {"gpu", "link"},
    "gpuhealth_xid_errors_total": {"xid", "gpu"},
    "gpuhealth_kernel_events_total": {"kind"},
    "gpuhealth_marks_removed_total": {"by"},
    "gpuhealth_agent_judge_seconds": {"monitor"},
    "gpuhealth_check_last_success_timestamp_seconds": {"check"},
    "gpuhealth_not_checked": {"check", "reason"},
    "gpuhealth_agent_info": {"version", "node"},
    "gpuhealth_agent_rounds_total": {"monitor"},
    "gpuhealth_agent_last_round_timestamp_seconds": {"monitor"},
    "gpuhealth_agent_round_seconds": {"monitor"},
    "gpuhealth_agent_monitor_timeouts_total": {"monitor"},
    "gpuhealth_agent_monitor_errors_total": {"monitor"},
    "gpuhealth_agent_check_errors_total": {"monitor"},
    "gpuhealth_agent_nvml_seconds": set(),
    "gpuhealth_agent_nvml_processes": set(),
    "gpuhealth_agent_nvml_process_starts_total": set(),
    "gpuhealth_agent_driver_released": set(),
    "gpuhealth_agent_kmsg_records_total": set(),
    "gpuhealth_agent_kmsg_lost_records_total": set(),
    "gpuhealth_agent_kmsg_lag_seconds": set(),
    "gpuhealth_loop_failures_total": {"loop"},
    "gpuhealth_agent_journal_errors_total": set(),
    "gpuhealth_agent_config_valid": set(),
    "gpuhealth_agent_metrics_errors_total": {"collector"},
    "gpuhealth_agent_resident_memory_bytes": {"process"},
}


@pytest.fixture(scope="module")
def ill(module_node: SimulatedNode) -> str:
    """The text of a node with a finding, an XID, and a reading that cannot be made."""
    module_node.driver.inject("ecc_uncorrectable", gpu=0, count=3)
    module_node.driver.inject("error", gpu=1, call="nvmlDeviceGetPcieReplayCounter", code=999)
    module_node.xid(79, gpu=2)
    wanted = {"ecc.uncorrectable", "xid.79", "agent.unexpected_reading"}
    wait_for("the findings", lambda: wanted <= module_node.findings())
    return module_node.get("/metrics")[1]


def gpu_samples(samples: Samples) -> set[str]:
    """The names of the readings of GPUs that have samples."""
    return {name for name in samples if name.startswith(("gpuhealth_gpu_", "gpuhealth_nvlink"))} - {
        "gpuhealth_gpu_verdict"
    }


def test_what_is_promised_is_there(ill: str) -> None:
    """Every metric that dashboards may rely on exists, with exactly these labels."""
    samples = parsed(ill)
    labels = {name: {label for key in samples.get(name, {}) for label, _ in key} for name in PROMISED}
    assert {name for name in PROMISED if not samples.get(name)} == set()
    assert labels == PROMISED


def test_every_promised_metric_is_in_the_reference() -> None:
    """A metric that shows only in some state, such as one of GPUs, has a row with its labels as well."""
    made = reference.FILE.read_text(encoding="utf-8")  # up to date, by tests/test_reference.py
    rows = {name: line for line in made.splitlines() for name in PROMISED if line.startswith(f"| `{name}`")}
    assert {
        name for name, labels in PROMISED.items() if not all(f"`{label}`" in rows[name] for label in labels)
    } == set()


def test_names_follow_the_rules(ill: str) -> None:
    """Counters end in _total and nothing else does; what has a unit has a base unit; every metric explains itself."""
    for family in text_string_to_metric_families(ill):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        assert all(sample.name.endswith("_total") == (family.type == "counter") for sample in family.samples)
        assert not any(part in family.name for part in ("_mhz", "_milli", "_percent", "_mib", "_kb"))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_promtool_finds_nothing(ill: str) -> None:
    """promtool's lint has nothing to say."""
    done = subprocess.run(["promtool", "check", "metrics"], input=ill, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_values_are_the_driver_s(node: SimulatedNode) -> None:
    """Every GPU's numbers are those of the driver, in base units."""
    for slot in range(8):
        node.driver.set({f"gpu{slot}.temperature": 40 + slot})
    samples = wait_for("the new readings", lambda: _read(node, set(range(40, 48))))
    info = [dict(labels) for labels in samples["gpuhealth_gpu_info"]]
    assert len(info) == 8
    for gpu in info:
        slot, uuid = int(gpu["index"]), gpu["gpu"]
        assert uuid.startswith("GPU-")
        assert gpu["pci"] == f"{node.pci(slot)}.0"
        assert values(samples, "gpuhealth_gpu_temperature_celsius")[uuid] == 40 + slot
        assert values(samples, "gpuhealth_gpu_power_watts")[uuid] == 70
        assert values(samples, "gpuhealth_gpu_power_limit_watts")[uuid] == 700
        assert values(samples, "gpuhealth_gpu_memory_total_bytes")[uuid] == node.driver.get(f"gpu{slot}.memory.total")
        assert values(samples, "gpuhealth_gpu_pcie_width_lanes")[uuid] == 16
        assert values(samples, "gpuhealth_gpu_sm_clock_hertz")[uuid] % 1e6 == 0
        assert values(samples, "gpuhealth_gpu_utilization_ratio")[uuid] == 0
        assert set(values(samples, "gpuhealth_nvlink_up", "link", gpu=uuid).values()) == {1}
        assert len(values(samples, "gpuhealth_nvlink_up", "link", gpu=uuid)) == 18


def _read(node: SimulatedNode, celsius: set[int]) -> Samples | None:
    samples = scraped(node)
    return samples if celsius == set(values(samples, "gpuhealth_gpu_temperature_celsius").values()) else None


@pytest.mark.usefixtures("ill")  # which is of a node without the faults that this test leaves behind
def test_faults_show_where_they_are(node: SimulatedNode) -> None:
    """ECC errors, replays, remapped rows, throttling, width and links change for the GPU that has the fault only."""
    node.driver.clear()
    before = wait_for("every reading of every GPU", lambda: _complete(node))
    (ill,) = (dict(labels)["gpu"] for labels in before["gpuhealth_gpu_info"] if ("index", "6") in labels)
    faults: list[tuple[str, dict[str, int]]] = [
        ("ecc_corrected", {"count": 5}),
        ("pcie_replays", {"count": 40}),
        ("remap_pending", {}),
        ("hw_thermal", {}),
        ("pcie_width", {"width": 8}),
        ("nvlink_down", {"link": 3}),
    ]
    for fault, arguments in faults:
        node.driver.inject(fault, gpu=6, **arguments)

    def changed(name: str, label: str = "gpu", **wanted: str) -> dict[str, float]:
        old, new = (values(samples, name, label, **wanted) for samples in (before, scraped(node)))
        return {key: new.get(key, -1) - value for key, value in old.items() if new.get(key) != value}

    dram = {"type": "corrected", "counter": "volatile", "location": "dram"}
    for expected, look in (
        ({ill: 5}, lambda: changed("gpuhealth_gpu_ecc_errors_total", **dram)),
        ({ill: 40}, lambda: changed("gpuhealth_gpu_pcie_replays_total")),
        ({ill: 1}, lambda: changed("gpuhealth_gpu_row_remap_pending")),
        ({ill: -8}, lambda: changed("gpuhealth_gpu_pcie_width_lanes")),
        ({"3": -1}, lambda: changed("gpuhealth_nvlink_up", "link", gpu=ill)),
    ):
        wait_for(f"{expected}", lambda look=look, expected=expected: look() == expected)  # type: ignore[misc]
    wait_for("throttled time", lambda: changed("gpuhealth_gpu_throttle_seconds_total", reason="hw_thermal").get(ill))


def _complete(node: SimulatedNode) -> Samples | None:
    samples = scraped(node)
    return samples if len(values(samples, "gpuhealth_gpu_pcie_replays_total")) == 8 else None


def test_findings_and_verdict(ill: str) -> None:
    """A finding is there with its severity and GPU, its GPU is unhealthy and so is the node; other GPUs are not."""
    samples = parsed(ill)
    found = values(samples, "gpuhealth_finding", "component", code="ecc.uncorrectable", severity="critical", kind="gpu")
    (uuid,) = found
    assert values(samples, "gpuhealth_gpu_verdict", "verdict", gpu=uuid) == {
        "healthy": 0,
        "degraded": 0,
        "unhealthy": 1,
        "unknown": 0,
    }
    assert values(samples, "gpuhealth_verdict", "verdict")["unhealthy"] == 1
    assert sum(values(samples, "gpuhealth_verdict", "verdict").values()) == 1
    assert samples["gpuhealth_node_healthy"] == {(): 0}
    healthy = values(samples, "gpuhealth_gpu_verdict", "gpu", verdict="healthy")
    assert sum(healthy.values()) == 5
    assert sum(values(samples, "gpuhealth_xid_errors_total", "gpu", xid="79").values()) == 1


def test_a_reading_that_fails_has_no_sample(ill: str) -> None:
    """The GPU whose replays cannot be read has no such sample, seven others have, and what is not checked is named."""
    samples = parsed(ill)
    assert len(values(samples, "gpuhealth_gpu_pcie_replays_total")) == 7
    assert "pcie.replay_rate" in values(samples, "gpuhealth_not_checked", "check")


def test_nothing_is_frozen_while_the_driver_hangs(impatient: SimulatedNode) -> None:
    """In a hang of one GPU all samples of GPUs vanish, what is not checked appears, and afterwards all is back."""
    node = impatient
    node.driver.inject("hang", gpu=4)
    wait_for("GPUs without samples", lambda: _without_gpus(node))
    unchecked = {"gpu.lost", "ecc.uncorrectable"}
    wait_for(
        "what is not checked",
        lambda: values(scraped(node), "gpuhealth_not_checked", "check", reason="timeout").keys() >= unchecked,
    )
    wait_for("the wait", lambda: (node.metric("gpuhealth_agent_nvml_seconds") or 0) > 1)
    wait_for("the other process", lambda: node.metric("gpuhealth_agent_nvml_processes") == 2)
    assert gpu_samples(scraped(node)) == set()
    node.driver.clear()
    node.driver.release()
    wait_for("samples of GPUs", lambda: len(values(scraped(node), "gpuhealth_gpu_power_watts")) == 8)


def _without_gpus(node: SimulatedNode) -> Samples | None:
    samples = scraped(node)
    return None if gpu_samples(samples) else samples


def test_nothing_is_known_before_the_first_round(make_agent: Callable[[], Agent]) -> None:
    """An agent that has not looked yet is unknown, not healthy, and shows no GPU; its loops count from zero."""
    samples = parsed(Exposition(make_agent(), 10.0).text().decode())
    assert values(samples, "gpuhealth_verdict", "verdict")["unknown"] == 1
    assert samples["gpuhealth_node_healthy"] == {(): 0}
    assert gpu_samples(samples) == set()
    assert set(samples["gpuhealth_loop_failures_total"].values()) == {0}


def test_rounds_that_have_stopped_make_unknown(make_agent: Callable[[], Agent]) -> None:
    """The last verdict holds as long as rounds come; when they have stopped it is unknown, though nothing changed."""
    agent = make_agent()
    exposition = Exposition(agent, 0.0)
    give_round(agent)
    samples = parsed(exposition.text().decode())
    assert values(samples, "gpuhealth_verdict", "verdict")["healthy"] == 1
    assert gpu_samples(samples)
    ago = timedelta(seconds=agent.settings.unknown_after)
    version = agent.version
    agent.node_health.last_round["nvidia"] -= ago  # the other monitors' rounds go on
    samples = parsed(exposition.text().decode())
    assert agent.version == version
    assert values(samples, "gpuhealth_verdict", "verdict")["unknown"] == 1
    assert samples["gpuhealth_node_healthy"] == {(): 0}
    assert gpu_samples(samples) == set()


def test_unchanged_text_is_not_made_again(make_agent: Callable[[], Agent]) -> None:
    """Many scrapes between two rounds get the same bytes."""
    agent = make_agent()
    exposition = Exposition(agent, 3600.0)  # no round is due meanwhile
    give_round(agent)
    first = exposition.text()
    assert exposition.text() is first
    give_round(agent)
    assert exposition.text() is not first


def test_a_held_quarantine_names_its_budget(make_agent: Callable[[], Agent]) -> None:
    """A node that ought to be out and may not says which limit of which budget has no place, and for what."""
    agent = make_agent()
    blocked = Blocked("xid.79", "pool-a", Limit.PER_FAULT, "as many are out")
    agent.reconciler._writer = SimpleNamespace(blocked=blocked, marks_removed={"person": 1, "program": 0})  # type: ignore[assignment]
    agent.reconciler._client = SimpleNamespace(unreadable=SimpleNamespace(counts={"Lease": 2}))  # type: ignore[assignment]
    agent.counts.api_calls["PATCH", 0] += 2
    samples = parsed(Exposition(agent, 10.0).text().decode())
    labels = (("budget", "pool-a"), ("code", "xid.79"), ("limit", "maxPerFault"))
    assert samples["gpuhealth_quarantine_blocked"] == {labels: 1}
    assert samples["gpuhealth_kube_requests_total"] == {(("method", "PATCH"), ("status", "0")): 2}
    assert samples["gpuhealth_marks_removed_total"] == {(("by", "person"),): 1, (("by", "program"),): 0}


def test_labels_are_escaped(make_agent: Callable[[], Agent]) -> None:
    """What stands in a label, a quote, a backslash or a line's end, cannot break the format."""
    shown = ShownStatus(make_agent().status())
    nasty = 'a"b\\c\nd'
    shown.status().counts.xids[nasty, ""] += 1
    samples = parsed(Exposition(shown, 10.0).text().decode())
    assert values(samples, "gpuhealth_xid_errors_total", "xid") == {nasty: 1}


@pytest.mark.process
def test_the_loops_are_the_agent_s(make_agent: Callable[[], Agent]) -> None:
    """The names that count from zero are those under which the agent counts failures: every loop's that it runs."""
    agent = make_agent()

    async def run() -> set[str]:
        running = asyncio.create_task(agent.run(), name="Task-agent")
        async with asyncio.timeout(300):
            while len(agent.counts.rounds) < len(agent.runners):
                await asyncio.sleep(0.01)
        names = {task.get_name() for task in asyncio.all_tasks()}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return {name for name in names if not name.startswith("Task-")}

    shown = parsed(Exposition(agent, 10.0).text().decode())["gpuhealth_loop_failures_total"]
    assert set(shown.values()) == {0}
    loops = {name for ((_, name),) in shown}
    assert loops == asyncio.run(run()) | {serve.__name__}
    assert {f"monitor_{monitor.name}" for monitor in monitors()} < loops


def test_a_monitor_of_its_own_has_its_own_numbers(make_agent: Callable[[], Agent]) -> None:
    """Rounds, times and errors are exported per monitor; without a round there is no last-round timestamp."""
    shown = ShownStatus(make_agent().status())
    first, *others = shown.status().monitors
    when = datetime(2026, 3, 1, tzinfo=UTC)
    busy = msgspec.structs.replace(
        first, rounds=5, read_seconds=0.5, judge_seconds=0.25, last_round=when, timeouts=2, errors=3, check_errors=4
    )
    shown.change(monitors=(busy, *others))
    samples = parsed(Exposition(shown, 10.0).text().decode())
    expected = {
        "gpuhealth_agent_rounds_total": 5,
        "gpuhealth_agent_round_seconds": 0.5,
        "gpuhealth_agent_judge_seconds": 0.25,
        "gpuhealth_agent_monitor_timeouts_total": 2,
        "gpuhealth_agent_monitor_errors_total": 3,
        "gpuhealth_agent_check_errors_total": 4,
    }
    idle = dict.fromkeys((part.monitor.name for part in others), 0)
    for name, value in expected.items():
        assert values(samples, name, "monitor") == {first.monitor.name: value, **idle}
    last = values(samples, "gpuhealth_agent_last_round_timestamp_seconds", "monitor")
    assert last == {first.monitor.name: when.timestamp()}


def test_components_that_are_no_gpu_have_a_verdict(make_agent: Callable[[], Agent]) -> None:
    """A MIG device has its state and its GPU, a finding on it says so, too; the node and its GPUs are not repeated."""
    agent = make_agent()
    devices = MigDevice("MIG-a", 3, 0), MigDevice("MIG-b", 4, 0)
    sliced = readings.gpu(0, mig_enabled=True, mig_devices=devices)
    give_round(agent, readings.node(sliced, readings.gpu(1), kernel_log=KernelLogStatus("kmsg")))
    device = Component(Kind.MIG, "MIG-a", sliced.id)
    lost = found("xid.94", component=device, time=agent.clock())
    agent.node_health.publish(agent.node_health.tracker.apply([lost], agent.clock(), "boot"))
    samples = parsed(Exposition(agent, 10.0).text().decode())
    (labels,) = samples["gpuhealth_finding"]
    assert dict(labels) == {
        "code": "xid.94",
        "severity": "critical",
        "kind": "mig",
        "component": "MIG-a",
        "parent": sliced.id,
    }
    for verdict, ids in {"unhealthy": {"MIG-a"}, "healthy": {"MIG-b"}}.items():
        states = values(samples, "gpuhealth_component_verdict", "component", verdict=verdict)
        assert states == {name: name in ids for name in ("MIG-a", "MIG-b")}
        parents = values(samples, "gpuhealth_component_verdict", "parent", verdict=verdict)
        assert set(parents) == {sliced.id}
    assert values(samples, "gpuhealth_gpu_verdict", "gpu", verdict="unhealthy") == {sliced.id: 1, readings.uuid(1): 0}
