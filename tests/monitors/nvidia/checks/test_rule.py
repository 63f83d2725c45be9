"""Which outcome each GPU and code gets, whatever could be read."""

from __future__ import annotations

import pytest
from testing.readings import (
    BROKEN,
    LOST,
    Judged,
    Round,
    device,
    gpu,
    gpus,
    node,
    nvml,
    outcomes,
    pci,
    remembering,
    uuid,
)

from gpuhealth.model import component
from gpuhealth.model.codes import CODES
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import Action, NotChecked, Severity
from gpuhealth.model.kernel_event import KernelEvent
from gpuhealth.model.missing import UNREAD, Missing, MissingReason
from gpuhealth.model.pci import PciSlot
from gpuhealth.monitors.judge import Judge, Memory
from gpuhealth.monitors.nvidia.checks import xid
from gpuhealth.monitors.nvidia.monitor import MONITOR
from gpuhealth.monitors.nvidia.readings import NvmlReadings
from gpuhealth.monitors.registry import code_of, monitors
from gpuhealth.monitors.settings import Settings

# What is said of the node, and what is said of a GPU that does not answer.
NODE_CODES = {
    "gpu.missing",
    "gpu.unmanaged",
    "gpu.replaced",
    "driver.unresponsive",
    "driver.not_loaded",
    "driver.version_mismatch",
    "fabric.manager_down",
    "agent.nvml_library",
    "agent.permission",
}
GPU_CODES = {code.name for code in MONITOR.codes} - NODE_CODES - {code.name for code in xid.CHECK.codes}
"""What events report holds whether the GPU answers now or not; all else has to be read."""
monitors()
ALL_CODES = {code.name for code in CODES.defined()}


def judge(looked: Round, memory: Memory | None = None, **settings: object) -> Judged:
    """Everything that all checks say of a round, of the codes at hand."""
    result = Judged()
    for outcome in outcomes(Judge(Settings(**settings), memory, time=looked.time), looked):  # type: ignore[arg-type]
        if outcome.code in NODE_CODES | GPU_CODES:
            result.add(outcome)
    return result


def having(count: int) -> Memory:
    """The memory of a node that had this many GPUs."""
    return remembering(gpus={uuid(index): pci(index) for index in range(count)})


def unread(reason: Missing, memory: Memory | None = None) -> Judged:
    """What the monitor's own checks say where it could not be read at all."""
    result, now = Judged(), node().time
    for outcome in Judge(Settings(), memory, time=now).round(MONITOR, reason, now):
        result.add(outcome)
    return result


def test_healthy_node() -> None:
    """A healthy node has no finding, and what could not be checked lacks only history or load."""
    judged = judge(node(*gpus(8)))
    assert judged.findings == []
    not_checked = [outcome for outcome in judged.values() if isinstance(outcome, NotChecked)]
    assert {MissingReason.NO_HISTORY} == {outcome.reason.reason for outcome in not_checked}


def test_second_look_has_history() -> None:
    """After a second look only what needs load remains unchecked."""
    memory = Memory()
    judge(node(*gpus(8)), memory)
    judged = judge(node(*gpus(8), at=10), memory)
    assert {"gpu.straggler"} == {code for (code, _), each in judged.items() if isinstance(each, NotChecked)}


def test_nothing_read_is_not_healthy() -> None:
    """A reading that nobody made leaves its code unchecked: nothing is clean by default."""
    bare = gpu(0)
    for field in ("ecc_enabled", "recovery_action", "nvlinks", "temperature_margin_celsius", "persistence_mode"):
        bare = type(bare)(**{name: getattr(bare, name) for name in bare.__struct_fields__ if name != field})
    judged = judge(node(bare))
    for code in ("ecc.disabled", "gpu.recovery_action", "nvlink.down", "thermal.gpu", "persistence.off"):
        assert MissingReason.ERROR is judged.why_not(code)


def test_one_lost_among_eight() -> None:
    """A lost GPU is found lost and nothing else is said of it; the other seven are judged as ever."""
    memory = having(8)
    judge(node(*gpus(8)), memory)
    judged = judge(node(*gpus(8, changed=3, error=LOST), at=10), memory)
    assert [finding.code for finding in judged.findings] == ["gpu.lost"]
    assert judged.findings[0].component == component.gpu(uuid(3))
    others = {code: outcome for (code, where), outcome in judged.items() if where == uuid(3)}
    assert GPU_CODES - {"gpu.lost"} <= {code for code, outcome in others.items() if isinstance(outcome, NotChecked)}
    for index in (0, 1, 2, 4, 5, 6, 7):
        assert judged.is_clean("ecc.uncorrectable", uuid(index))


def test_reset_required() -> None:
    """A GPU that wants a reset is there, and not measured any further."""
    reason = Missing(MissingReason.RESET_REQUIRED, "GPU requires reset (16)")
    judged = judge(node(*gpus(2, changed=1, error=reason)))
    assert [finding.code for finding in judged.findings] == ["gpu.reset_required"]
    assert judged.is_clean("gpu.lost", uuid(1))
    assert MissingReason.RESET_REQUIRED is judged.why_not("ecc.uncorrectable", uuid(1))


@pytest.mark.parametrize(
    "away",
    [
        NvmlReadings(problem=UNREAD),
        NvmlReadings(problem=Missing(MissingReason.NOT_LOADED, "nvmlInit_v2: Driver Not Loaded (9)")),
        NvmlReadings(waiting_seconds=5.0, waiting_for="nvmlDeviceGetEccMode on GPU 0"),
    ],
)
def test_nvml_away(away: NvmlReadings) -> None:
    """While NVML does not answer, every code of every remembered GPU is unchecked and none is clean."""
    judged = judge(node(*gpus(2), nvml=away), having(2))
    for index in range(2):
        for code in GPU_CODES:
            judged.why_not(code, uuid(index))


def test_nvml_away_and_nothing_remembered() -> None:
    """Where no GPU is known, the codes of GPUs are unchecked for the node."""
    away = NvmlReadings(problem=Missing(MissingReason.TIMEOUT, "no answer"))
    for judged in (unread(UNREAD), judge(node(nvml=away, pci=(), device_nodes=()))):
        assert judged.findings == []
        for code in GPU_CODES:
            judged.why_not(code, NODE)


def test_no_readings_of_the_monitor_at_all() -> None:
    """A monitor that failed or was late as a whole leaves everything unchecked, on the node and on remembered GPUs."""
    for reason in (MissingReason.TIMEOUT, MissingReason.ERROR):
        said = unread(Missing(reason, "nvidia was not read"), having(2))
        assert said.findings == []
        for code in NODE_CODES:
            assert said.why_not(code, NODE) is reason
        for code in GPU_CODES:
            assert {said.why_not(code, uuid(index)) for index in range(2)} == {reason}


def test_half_a_round() -> None:
    """GPUs that answered before the driver hung are judged, the remembered others are not checked."""
    half = nvml(gpu(0), answered=False, count=2, waiting_seconds=70.0, waiting_for="nvmlDeviceGetEccMode on GPU 1")
    judged = judge(node(*gpus(2), nvml=half), having(2))
    assert judged.is_clean("ecc.uncorrectable", uuid(0))
    assert MissingReason.TIMEOUT is judged.why_not("ecc.uncorrectable", uuid(1))
    assert [finding.code for finding in judged.findings] == ["driver.unresponsive"]


def test_released() -> None:
    """While the driver is released nothing is found, whatever sysfs and procfs show."""
    released = NvmlReadings(problem=Missing(MissingReason.RELEASED, "the driver was released on request"))
    judged = judge(node(gpu(0), nvml=released, fabric_manager_running=False), having(8), expected_gpus=8)
    assert judged.findings == []
    assert {MissingReason.RELEASED} == {each.reason.reason for each in judged.values() if isinstance(each, NotChecked)}
    assert {code for code, _ in judged} == NODE_CODES | GPU_CODES


def test_lost_gpu_without_a_name() -> None:
    """A lost GPU without a readable uuid is identified by its address, or as the only one unaccounted for."""
    by_address = gpu(1, uuid=LOST, error=LOST)
    nameless = gpu(1, uuid=LOST, pci=LOST, error=LOST)
    for broken in (by_address, nameless):
        judged = judge(node(gpu(0), broken, nvml=nvml(gpu(0), broken)), having(2))
        assert [("gpu.lost", component.gpu(uuid(1)))] == [
            (finding.code, finding.component) for finding in judged.findings
        ]


def test_lost_before_anybody_looked() -> None:
    """A single GPU that never answered is identified by the PCI address that no other GPU has."""
    broken = gpu(1, uuid=LOST, pci=LOST, error=LOST)
    listed = (gpu(0), broken, gpu(2))
    judged = judge(node(*gpus(3), nvml=nvml(*listed)))
    assert [("gpu.lost", component.gpu(pci(1)))] == [(finding.code, finding.component) for finding in judged.findings]
    for others in ((device(0), device(2)), tuple(device(index) for index in range(4))):  # hidden, or not the driver's
        judged = judge(node(*gpus(3), nvml=nvml(*listed), pci=others))
        assert component.gpu("gpu1") in {finding.component for finding in judged.findings if finding.code == "gpu.lost"}


def test_two_nameless_gpus_are_not_guessed() -> None:
    """Two unidentifiable GPUs are not assigned a remembered uuid."""
    broken = [gpu(index, uuid=LOST, pci=LOST, error=LOST) for index in (1, 2)]
    judged = judge(node(*gpus(3), nvml=nvml(gpu(0), *broken)), having(3))
    assert {component.gpu("gpu1"), component.gpu("gpu2")} == {
        finding.component for finding in judged.findings if finding.code == "gpu.lost"
    }


def test_several_findings_are_all_kept() -> None:
    """Faults of different kinds on one node are all reported, on the same GPU and on others."""
    broken = gpu(0, remap_failed=True, persistence_mode=False, recovery_action=2)
    judged = judge(node(broken, gpu(1, pcie_width=8)))
    assert {
        ("gpu_memory.remap_failed", component.gpu(uuid(0))),
        ("persistence.off", component.gpu(uuid(0))),
        ("gpu.recovery_action", component.gpu(uuid(0))),
        ("pcie.width", component.gpu(uuid(1))),
    } == {(finding.code, finding.component) for finding in judged.findings}


def test_not_supported_leaves_no_outcome() -> None:
    """What the hardware does not have is neither clean nor unchecked."""
    plain = gpu(0, nvlinks=Missing(MissingReason.NOT_SUPPORTED), fabric=Missing(MissingReason.NOT_SUPPORTED))
    judged = judge(node(plain))
    for code in ("nvlink.down", "nvlink.errors", "nvlink.ber", "fabric.incomplete", "fabric.unhealthy"):
        assert judged.says_nothing(code)


def test_findings_can_be_explained() -> None:
    """Every finding says what was read, where and when, and how it ends; its message names the GPU's place."""
    finding = judge(node(gpu(0, remap_failed=True))).finding("gpu_memory.remap_failed")
    assert finding.evidence.source
    assert finding.evidence.time == finding.first_seen == finding.last_seen
    assert finding.clears_when
    assert pci(0) in finding.message


@pytest.mark.parametrize("name", sorted(ALL_CODES))
def test_codes_explain_themselves(name: str) -> None:
    """Every code can be looked up, says what it means and what to do, and drains only what it quarantines."""
    code = code_of(name)
    assert code.name == name
    assert code.meaning.endswith(".")
    assert code.advice.endswith(".")
    assert code.quarantine or not code.drain


def test_unknown_code() -> None:
    """A code that does not exist is refused."""
    for name in ("gpu.nonsense", "xid.", "xid.x", "nonsense.79", ""):
        with pytest.raises(KeyError):
            code_of(name)


def test_codes_of_xids() -> None:
    """XIDs and SXids have a code each, by their number."""
    assert code_of("xid.79").name == "xid.79"
    assert code_of("sxid.20034").name == "sxid.20034"


def test_events_alone() -> None:
    """Events are judged on their own, and together with readings in a full round."""
    event = KernelEvent(
        kind="xid",
        line="NVRM: Xid ...",
        finding="xid.79",
        severity=Severity.CRITICAL,
        action=Action.REBOOT_NODE,
        pci=PciSlot("0000:01:00"),
    )
    looked = node(gpu(0), events=(event,))
    judge = Judge(Settings(), having(1), time=looked.time)
    judge.set_readings(MONITOR, looked.nvidia, looked.time)
    alone = judge.judge_events([event], looked.time)
    assert [(outcome.code, outcome.component) for outcome in alone] == [("xid.79", component.gpu(uuid(0)))]
    assert alone[0] in outcomes(Judge(Settings(), having(1), time=looked.time), looked)


def test_error_of_the_whole_gpu() -> None:
    """A GPU whose handle cannot be had is not clean in anything, and the error is a finding."""
    broken = gpu(0, error=BROKEN, failed_calls={"nvmlDeviceGetHandleByIndex": BROKEN})
    judged = judge(node(broken))
    assert [finding.code for finding in judged.findings] == ["nvml.error"]
    for code in GPU_CODES - {"nvml.error"}:
        judged.why_not(code)
