"""The table of attacks: what stolen tokens send to a real API server behind the admission policies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import suppress

import attack_table
import pytest
from kube import ControlPlane, Document, documents
from kube.control_plane import RequestError
from kube.manifests import ordered
from testing.admission import ALL, POLICIES, Admission, needed_rules, with_variable
from testing.attacks import ROWS
from testing.attacks.row import RBAC, SERVER, Row
from testing.attacks.scene import Scene, Tokens
from testing.cluster_objects import Pool
from testing.kubectl import FOLLOW, built, shown_in
from testing.paths import BASE
from testing.started_plane import started_plane
from testing.waiting import until

REFUSALS = {RBAC: r"is forbidden: (User .*)?", SERVER: r"(?!.*denied the request).*"}
IN_MODE_CORDON = with_variable(ALL, "mode", "'cordon'")
"""The policies as for the mode that allows an agent the most."""


class Guarded:
    """A control plane behind the policies, with tokens as pods get them."""

    def __init__(self, plane: ControlPlane, admission: Admission, namespace: str = "gpuhealth") -> None:
        self.plane, self.admission = plane, admission
        self.tokens = Tokens(plane, namespace)
        self._namespace = namespace

    def scene(self) -> Scene:
        """Nodes and objects about them, with a budget."""
        pool = Pool(self.plane)
        pool.budget(5)
        return Scene(self.plane, pool, self.tokens, self._namespace)


def started(base: list[Document], policies: list[Document], namespace: str = "gpuhealth") -> Iterator[Guarded]:
    """A control plane with the base and the policies in force."""
    with started_plane("policy-plugin") as plane:
        plane.apply(d for d in base if d["kind"] not in {"DaemonSet", "Deployment"})
        usual = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}
        runtimes = [{"metadata": {"name": name}, "handler": name} for name in ("nvidia", "other")]
        plane.apply([usual, *({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", **each} for each in runtimes)])
        with Admission(plane, policies, namespace) as admission:
            lease = {"metadata": {"name": "is-it-there", "namespace": namespace}, "spec": {}}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease}
            asyncio.run(until(lambda: plane.apply([body]) and admission.reviewed))
            yield Guarded(plane, admission, namespace)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """A control plane of its own: the other tests' tokens are bound to no pod."""
    yield from started(documents(BASE), IN_MODE_CORDON)


@pytest.fixture(scope="module")
def shared(guarded: Guarded) -> Iterator[Scene]:
    """One for all rows of one request: what is refused changes nothing, and what is allowed is only tried."""
    made = guarded.scene()
    yield made
    made.remove()


@pytest.fixture
def scene(request: pytest.FixtureRequest, guarded: Guarded, shared: Scene) -> Iterator[Scene]:
    """For a row of several requests one of its own."""
    row: Row = request.getfixturevalue("row")
    if len(row.requests) == 1:
        yield shared
        return
    made = guarded.scene()
    yield made
    made.remove()


def refused(scene: Scene, row: Row) -> None:
    """Sends a row, which is refused by whom it says, with the reason."""
    said = REFUSALS.get(row.refused_by, f"denied the request: .*'{row.refused_by}' .*")
    with pytest.raises(RequestError) as error:
        scene.send(row)
    assert re.search(f"{said}({row.why})", str(error.value)), str(error.value)


@pytest.mark.parametrize("row", [row for row in ROWS if row.refused_by], ids=str)
def test_refused(scene: Scene, row: Row) -> None:
    """The last request is refused, by the policy that the row names and for its reason; those before are not."""
    refused(scene, row)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.refused_by], ids=str)
def test_allowed(scene: Scene, row: Row) -> None:
    """What agent, preflight and controller do is allowed, and what harms nobody else."""
    scene.send(row, dry_run=True)


def test_every_rule_is_needed(guarded: Guarded, shared: Scene) -> None:
    """For each rule there is a row that nothing but this rule of its policy refuses."""
    seen = len(guarded.admission.reviewed)
    for row in ROWS:
        if row.refused_by.startswith("gpuhealth-") and len(row.requests) == 1:
            with suppress(RequestError):
                shared.send(row)
    policies = with_variable(POLICIES, "mode", "'cordon'")
    needed = needed_rules(policies, guarded.admission.reviewed[seen:])
    assert needed == {rule["message"] for policy in policies for rule in policy["spec"]["validations"]}


def test_rows_are_distinct() -> None:
    """No attack is in the table twice, and at least 150 are refused."""
    assert len({str(row) for row in ROWS}) == len(ROWS)
    assert len([row for row in ROWS if row.refused_by]) >= 150


def test_the_table_is_fresh() -> None:
    """The document shows the rows that are tested."""
    fresh = attack_table.FILE.read_text(encoding="utf-8") == attack_table.text()
    assert fresh, f"{attack_table.FILE} is stale: run `{attack_table.COMMAND}`"


# --- in another namespace ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The base and the policies as kubectl builds them for the namespace gpu-ops, with the component follow/."""
    objects = built(shown_in(FOLLOW, tmp_path_factory.mktemp("kustomizations")))
    policies = [d for d in objects if d["kind"].startswith("ValidatingAdmissionPolicy")]
    base = [d for d in objects if d not in policies]
    yield from started(ordered(base), with_variable(policies, "mode", "'cordon'"), "gpu-ops")


@pytest.fixture(scope="module")
def scene_elsewhere(elsewhere: Guarded) -> Iterator[Scene]:
    """One for all rows there."""
    made = elsewhere.scene()
    yield made
    made.remove()


def test_protection_follows_the_namespace(elsewhere: Guarded, scene_elsewhere: Scene) -> None:
    """Each row of one request ends in another namespace as it does in the usual one, also the Events in default."""
    for row in ROWS:
        if len(row.requests) > 1:
            continue
        try:
            if row.refused_by:
                refused(scene_elsewhere, row)
            else:
                scene_elsewhere.send(row, dry_run=True)
        except BaseException as error:  # also a failed assertion; the note says which row
            error.add_note(str(row))
            raise
    assert {"events", "leases", "nodes", "pods"} <= {r["resource"]["resource"] for r in elsewhere.admission.reviewed}
