"""Findings on components of every kind: what their absence ends, and what the state of a part says of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.burnin_results import START as BURNIN_START
from testing.burnin_results import result, run
from testing.findings import BOOT, GPU, at, clean, facts, found, kinds, mig, not_checked, tracker

from gpuhealth.model.burnin_run import BurninRun
from gpuhealth.model.component import NODE, Component, ComponentInfo, Kind, gpu
from gpuhealth.model.finding import Outcome, Severity
from gpuhealth.model.tracker import ChangeKind, FindingTracker, NodeFacts
from gpuhealth.model.verdict import State
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime.settings import FindingSettings, Quarantine

OTHER = gpu("GPU-2")
MOUNT, SCRATCH = Component(Kind.MOUNT, "/data"), Component(Kind.MOUNT, "/scratch")
DISK, NIC, PORT = (
    Component(Kind.DISK, "sda"),
    Component(Kind.NIC, "eth0"),
    Component(Kind.IB_PORT, "1", parent="mlx5_0"),
)
READ, LATCHED, QUIET = "gpu_memory.remap_failed", "host.disk_readonly", "host.io_errors"
"""Codes that end by a clean reading, by a reboot, and after a time without them; what they mean is of no matter."""
STATE = {Severity.INFO: State.HEALTHY, Severity.WARNING: State.DEGRADED, Severity.CRITICAL: State.UNHEALTHY}


def listed(
    *present: Component, complete: frozenset[Kind], seconds: float = 5, burnins: tuple[BurninRun, ...] = ()
) -> NodeFacts:
    """A round in which exactly these components are there, as far as their kinds were listed completely."""
    return facts(*present, time=at(seconds), complete=complete, runs=burnins)


MOUNTS, DISKS = frozenset({Kind.MOUNT}), frozenset({Kind.DISK})

# -- what is gone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", [MOUNT, DISK, NIC, PORT], ids=lambda each: each.kind)
@pytest.mark.parametrize("code", [READ, LATCHED, QUIET])
def test_a_component_that_is_gone_takes_its_findings_along(component: Component, code: str) -> None:
    """Whatever else would end them, but only once all components of its kind were listed without it."""
    tracked = tracker()
    tracked.apply([found(code, component=component)], at(0), BOOT)
    others = frozenset(Kind) - {component.kind}
    assert tracked.resolve(listed(complete=frozenset())) == [], "nothing was listed completely"
    assert tracked.resolve(listed(GPU, complete=others)) == [], "other kinds were"
    assert tracked.resolve(listed(component, complete=frozenset(Kind))) == [], "it is there"
    (cleared,) = tracked.resolve(listed(GPU, complete=frozenset({component.kind})))
    assert (cleared.kind, cleared.finding.component) == (ChangeKind.CLEARED, component)
    assert "no longer in the node" in cleared.reason
    assert tracked.active() == ()


def test_only_what_is_gone_ends() -> None:
    """Another component of the kind, one of another kind and the same name, and the node keep theirs."""
    tracked = tracker()
    alike = Component(Kind.DISK, MOUNT.id)
    for component in (MOUNT, SCRATCH, alike, NODE, GPU):
        tracked.apply([found(LATCHED, component=component)], at(0), BOOT)
    changes = tracked.resolve(listed(SCRATCH, complete=MOUNTS))
    assert [change.finding.component for change in changes] == [MOUNT]
    assert {finding.component for finding in tracked.active()} == {SCRATCH, alike, NODE, GPU}


def test_a_part_that_moved_is_another_one() -> None:
    """A port of the same name on another adapter is not the one that was found."""
    tracked, moved = tracker(), Component(Kind.IB_PORT, PORT.id, parent="mlx5_1")
    tracked.apply([found(LATCHED, component=PORT)], at(0), BOOT)
    assert len(tracked.resolve(listed(moved, complete=frozenset({Kind.IB_PORT})))) == 1


def test_a_gpu_that_is_gone_takes_those_of_its_mig_devices_along() -> None:
    """And those of a MIG device stay for as long as its GPU is there: that it was deleted proves nothing."""
    tracked = tracker()
    tracked.apply(
        [found("xid.95", component=mig("MIG-a")), found("xid.95", component=mig("MIG-z", OTHER))], at(0), BOOT
    )
    assert tracked.resolve(facts(GPU, OTHER, time=at(5))) == []
    (cleared,) = tracked.resolve(facts(OTHER, time=at(6)))
    assert cleared.finding.component == mig("MIG-a")


def test_what_is_gone_may_ask_for_a_test() -> None:
    """Where the settings want one before a return, the node is tested in place of the part that was replaced."""
    tracked = tracker(Settings(quarantine=Quarantine(test_before_return=True)))
    tracked.apply([found(LATCHED, component=DISK)], at(0), BOOT)
    changes = tracked.resolve(listed(GPU, complete=DISKS))
    assert kinds(changes) == [(ChangeKind.CLEARED, LATCHED), (ChangeKind.RAISED, "burnin.required")]
    (required,) = tracked.quarantine().findings
    assert (required.component, required.stands_for) == (NODE, (LATCHED,))
    later = run(result(gpu=GPU.id), at=(at(10) - BURNIN_START).total_seconds())
    assert kinds(tracked.resolve(listed(GPU, complete=DISKS, seconds=99, burnins=(later,)))) == [
        (ChangeKind.CLEARED, "burnin.required")
    ]


def test_why_a_node_is_out_of_service_names_the_part() -> None:
    """The record on the Node says which mount it was, so that another agent does not take a second one for it."""
    tracked = tracker()
    tracked.apply([found(LATCHED, component=MOUNT)], at(0), BOOT)
    (cause,) = tracked.quarantine().causes
    assert (cause.code, cause.component, cause.boot_id) == (LATCHED, MOUNT, BOOT)


def test_a_reset_ends_nothing_of_the_host() -> None:
    """A recovery that was asked for on a GPU, or on no GPU in particular, is none of a mount or of the node."""
    tracked = tracker()
    places = [GPU, MOUNT, NODE]
    tracked.apply([found("xid.95", component=place) for place in places], at(0), BOOT)
    tracked.apply([found("xid.154", component=place) for place in (GPU, NODE)], at(1), BOOT)
    changes = tracked.apply([clean("xid.154", place) for place in (NODE, GPU)], at(2), BOOT)
    assert [(change.finding.code, change.finding.component) for change in changes] == [
        ("xid.154", NODE),
        ("xid.154", GPU),
        ("xid.95", GPU),
    ]
    assert {finding.component for finding in tracked.active()} == {MOUNT, NODE}


def test_a_reset_of_a_gpu_ends_what_its_mig_devices_waited_for() -> None:
    """A fault of one MIG device that asked for a reset of the GPU is over with that, another GPU's is not."""
    tracked = tracker()
    tracked.apply(
        [found("xid.95", component=mig("MIG-a")), found("xid.95", component=mig("MIG-z", OTHER))], at(0), BOOT
    )
    tracked.apply([found("xid.154")], at(1), BOOT)
    tracked.apply([clean("xid.154")], at(2), BOOT)
    assert [finding.component for finding in tracked.active()] == [mig("MIG-z", OTHER)]


# -- the state of a part and of the whole ------------------------------------------------------------------------------


def states(tracked: FindingTracker, known: NodeFacts) -> dict[Component, State]:
    """The state of every component, the node's own among them."""
    verdict = tracked.verdict(known)
    assert NODE not in {part.component for part in verdict.components}, "that is the verdict itself"
    return {part.component: part.verdict for part in verdict.components} | {NODE: verdict.verdict}


A, B = mig("MIG-a"), mig("MIG-b")


@pytest.mark.parametrize(("severity", "state"), STATE.items())
def test_a_mig_device_and_its_gpu(severity: Severity, state: State) -> None:
    """What a MIG device has, its GPU has and no other device; what the GPU has, all of its devices have."""
    of_device, of_gpu = tracker(), tracker()
    known = facts(GPU, A, B, OTHER)
    of_device.apply_round("nvidia", [found(READ, severity, A), clean("gpu.lost"), clean("gpu.lost", OTHER)], known)
    assert states(of_device, known) == {GPU: state, A: state, B: State.HEALTHY, OTHER: State.HEALTHY, NODE: state}
    of_gpu.apply_round("nvidia", [found(READ, severity), clean("gpu.lost", OTHER)], known)
    assert states(of_gpu, known) == {GPU: state, A: state, B: state, OTHER: State.HEALTHY, NODE: state}


def test_a_gpu_that_is_unknown_makes_its_mig_devices_unknown() -> None:
    """A device that is degraded by itself is then unknown, one that is unhealthy stays so."""
    tracked, known = tracker(), facts(GPU, A, B, OTHER)
    tracked.apply([found(READ, Severity.WARNING, A), found(READ, component=B)], at(0), BOOT)
    tracked.apply_round("nvidia", [not_checked("gpu.lost"), clean("gpu.lost", OTHER)], known)
    assert states(tracked, known) == {
        GPU: State.UNHEALTHY,
        A: State.UNKNOWN,
        B: State.UNHEALTHY,
        OTHER: State.HEALTHY,
        NODE: State.UNHEALTHY,
    }


def test_a_mig_device_that_is_not_listed_any_more() -> None:
    """A finding on it is still one of its GPU."""
    tracked = tracker()
    tracked.apply([found(READ, component=A)], at(0), BOOT)
    assert states(tracked, facts(GPU, B)) == {
        GPU: State.UNHEALTHY,
        A: State.UNHEALTHY,
        B: State.HEALTHY,
        NODE: State.UNHEALTHY,
    }


def test_a_part_of_the_host_that_cannot_be_checked() -> None:
    """An essential check of a mount that is not made leaves the node unknown, and its GPUs as they are."""
    tracked, known = tracker(), facts(GPU, MOUNT)
    tracked.apply_round("nvidia", [clean("gpu.lost")], known)
    tracked.apply_round("mounts", [not_checked("gpu.lost", MOUNT)], known)
    assert states(tracked, known) == {GPU: State.HEALTHY, MOUNT: State.UNKNOWN, NODE: State.UNKNOWN}
    tracked.apply_round("mounts", [clean("gpu.lost", MOUNT)], known)
    assert states(tracked, known) == {GPU: State.HEALTHY, MOUNT: State.HEALTHY, NODE: State.HEALTHY}


def test_a_part_that_only_a_check_names() -> None:
    """A component that no monitor lists, such as a monitor of ours, is in the verdict while something is said of it."""
    tracked, monitor = tracker(), Component(Kind.MONITOR, "mounts")
    tracked.apply_round("mounts", [found("agent.monitor_failed", Severity.WARNING, monitor)], facts(GPU))
    assert states(tracked, facts(GPU)) == {GPU: State.HEALTHY, monitor: State.DEGRADED, NODE: State.DEGRADED}
    assert tracked.resolve(listed(GPU, complete=frozenset(Kind) - {Kind.MONITOR})) == [], "it cannot be taken out"
    tracked.apply_round("mounts", [], facts(GPU, time=at(1)))
    assert states(tracked, facts(GPU)) == {GPU: State.HEALTHY, monitor: State.DEGRADED, NODE: State.DEGRADED}


def test_the_order_of_a_verdict() -> None:
    """Always the same, however the components come."""
    known = [OTHER, SCRATCH, B, MOUNT, A, GPU, DISK]
    orders = [tracker().verdict(facts(*order)).components for order in (known, known[::-1])]
    assert orders[0] == orders[1]
    assert [part.component for part in orders[0]] == sorted(known)


PLACES = [GPU, A, B, OTHER, mig("MIG-z", OTHER), MOUNT, DISK, NIC, PORT, NODE]
SEVERITIES = st.dictionaries(st.sampled_from(PLACES), st.sampled_from(list(Severity)))


@given(SEVERITIES, st.sets(st.sampled_from(PLACES)))
def test_whatever_is_found_and_not_checked(severities: dict[Component, Severity], unread: set[Component]) -> None:
    """A part is the worst of what is its own, the GPU's where it is a MIG device, its devices' where it is a GPU; the
    node is the worst of all, and healthy only if every part is."""
    tracked = tracker()
    parts = [place for place in PLACES if place != NODE]
    outcomes: list[Outcome] = [found(READ, severity, place) for place, severity in severities.items()]
    outcomes += [not_checked("gpu.lost", place) for place in unread]
    tracked.apply_round("all", outcomes, facts(*parts))
    found_states = states(tracked, facts(*parts))

    def own(place: Component) -> list[State]:
        severity = severities.get(place)
        return [State.UNKNOWN] * (place in unread) + ([STATE[severity]] if severity else [])

    def expected(place: Component) -> State:
        concerned = {place}
        if place.kind is Kind.MIG:
            concerned.add(gpu(place.gpu))
        if place.kind is Kind.GPU:
            concerned |= {part for part in parts if part.gpu == place.id}
        return State.combined([State.HEALTHY, *(state for each in concerned for state in own(each))])

    assert {place: found_states[place] for place in parts} == {place: expected(place) for place in parts}
    everything = [state for place in PLACES for state in own(place)]
    assert found_states[NODE] is State.combined([State.HEALTHY, *everything])


def test_policies_hold_for_every_kind() -> None:
    """A deployment may keep a node in service whatever one of its mounts has."""
    tracked = tracker(Settings(findings={LATCHED: FindingSettings(quarantine=False)}))
    tracked.apply([found(LATCHED, component=MOUNT)], at(0), BOOT)
    assert tracked.quarantine().findings == ()
    assert tracked.active()[0].severity is Severity.CRITICAL


def test_labels_of_parts_are_no_gpus() -> None:
    """Only GPUs are in the list of GPUs, with their MIG devices by instance."""
    devices = [ComponentInfo(component=A, index=7), ComponentInfo(component=mig("MIG-z", OTHER), index=9)]
    verdict = tracker().verdict(facts(MOUNT, GPU, *devices, NIC, OTHER))
    assert [each.uuid for each in verdict.gpus] == [GPU.id, OTHER.id]
    assert [[(device.uuid, device.gpu_instance) for device in each.mig] for each in verdict.gpus] == [
        [("MIG-a", 7)],
        [("MIG-z", 9)],
    ]
