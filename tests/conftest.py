"""What tests of several folders share: markers, the option --fast, and control planes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from kube import ControlPlane, documents
from testing.cluster_objects import Pool
from testing.fast import *  # noqa: F403 - hooks of pytest
from testing.managed_cluster import Cluster
from testing.processes import preload
from testing.started_plane import started_plane

BASE = Path(__file__).parents[1] / "daemonset"

# How long an example takes says more of what else the machine does.
settings.register_profile(
    "patient", settings.default, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# Most tests start processes of ours, and one that may not keep its bytecode spends a third of its time on compiling.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A control plane's processes take less CPU, and the cores are busy with other tests.
os.environ.setdefault("GOMAXPROCS", "1")
os.environ.setdefault("GOGC", "200")

# Ignored in a job that a script has put in the background; the processes that tests interrupt would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

preload()


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A control plane with gpuhealth's manifests applied, and an audit log."""
    with started_plane(audit=True) as control_plane:
        control_plane.apply(BASE)
        yield control_plane


@pytest.fixture(scope="session")
def managed() -> Iterator[ControlPlane]:
    """A control plane with a controller manager, a scheduler, and an audit log."""
    with started_plane(controller_manager=True, scheduler=True, audit=True) as control_plane:
        # Not what makes pods: the tests make the agents' pods themselves, and a DaemonSet would take them over.
        control_plane.apply([d for d in documents(BASE) if d["kind"] not in {"DaemonSet", "Deployment"}])
        # The GPU Operator makes it, or the container toolkit's own installation.
        control_plane.apply(
            [
                {
                    "apiVersion": "node.k8s.io/v1",
                    "kind": "RuntimeClass",
                    "metadata": {"name": "nvidia"},
                    "handler": "nvidia",
                }
            ]
        )
        yield control_plane


@pytest.fixture
def pool(plane: ControlPlane) -> Iterator[Pool]:
    """Nodes and budgets of the test's own, on the control plane without a scheduler."""
    made = Pool(plane)
    yield made
    made.remove()


@pytest.fixture
def cluster(managed: ControlPlane) -> Iterator[Cluster]:
    """Nodes, pods and budgets of the test's own, on the control plane with a scheduler."""
    made = Cluster(managed)
    yield made
    made.remove()
