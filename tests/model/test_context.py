"""What a check sees of a round, and what becomes of what its rules return."""

from __future__ import annotations

import pytest
from testing.findings import BOOT, GPU, START, TIMEOUT, found, mig

from gpuhealth.model.component import NODE, Component, ComponentInfo, Kind, gpu
from gpuhealth.model.context import CheckContext, outcome_of
from gpuhealth.model.finding import Clean, NotChecked, Outcome
from gpuhealth.model.history import History
from gpuhealth.model.missing import NOT_SUPPORTED, UNREAD
from gpuhealth.model.pci import PciAddress, PciSlot
from gpuhealth.monitors.registry import code_of

LOST = code_of("gpu.lost")
FINDING = found("gpu.lost")


@pytest.mark.parametrize(
    ("result", "outcomes"),
    [
        (None, [Clean("gpu.lost", GPU)]),
        (FINDING, [FINDING]),
        (TIMEOUT, [NotChecked("gpu.lost", GPU, TIMEOUT)]),
        (UNREAD, [NotChecked("gpu.lost", GPU, UNREAD)]),
        (NOT_SUPPORTED, []),
    ],
    ids=["clean", "finding", "missing", "unread", "unsupported"],
)
def test_what_a_rule_returns(result: None, outcomes: list[Outcome]) -> None:
    """A rule that could not judge is not clean; what the hardware does not have is nothing to check."""
    assert list(outcome_of(LOST, GPU, result)) == outcomes


def context(*components: ComponentInfo) -> CheckContext[None, None, None]:
    """A round on a node with these components."""
    return CheckContext(
        node="node-1",
        time=START,
        boot_id=BOOT,
        readings=None,
        settings=None,
        baseline=None,
        history=History(),
        components=components,
    )


def test_gpus_by_their_slot() -> None:
    """Only GPUs are found there, of the components of all monitors; a device that is none is not taken for one."""
    slots = {name: PciAddress(f"0000:{name}:00.0") for name in ("3b", "5d", "9a")}
    gpus = [ComponentInfo(component=gpu(f"GPU-{name}"), pci=slots[name]) for name in ("3b", "5d")]
    others = [
        ComponentInfo(component=Component(Kind.NIC, "eth0"), pci=slots["9a"]),
        ComponentInfo(component=mig("MIG-a")),
        ComponentInfo(component=NODE),
    ]
    seen = context(*others, *gpus)
    assert seen.gpus == tuple(gpus)
    assert seen.at(PciSlot("0000:5d:00")) == gpus[1]
    assert [seen.at(place) for place in (PciSlot("0000:9a:00"), PciSlot("0000:00:00"), None)] == [None] * 3


def test_the_time_of_a_round() -> None:
    """The round time is also available as a number; without a kernel log the context is unread and empty."""
    seen = context()
    assert seen.now == START.timestamp()
    assert (seen.kernel_log, seen.events, seen.gpus) == (UNREAD, (), ())
