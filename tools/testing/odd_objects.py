"""Objects of the API server with arbitrary values anywhere in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from gpuhealth.kube.kinds import BUDGETS, LEASES, NAMESPACES, NODES, PODS, REPORTS, Kind

Json = Any
TIME = "2026-03-01T12:00:00Z"
GPU_RUN = {
    "model": "H100",
    "level": "standard",
    "tests": {
        "gemm": {"digests": {"fp16": "abc"}, "software": {"cublas": "12.1"}},
        "soak": {"figures": {"fp16_tflops": 600.0}},
    },
}
META = {"name": "a", "uid": "u", "resourceVersion": "7", "generation": 1, "labels": {"gpuhealth.io/state": "healthy"}}
SAMPLES: dict[Kind, Json] = {
    NODES: {
        "metadata": META | {"annotations": {"gpuhealth.io/fleet-findings": "[]", "gpuhealth.io/override": "healthy"}},
        "spec": {"taints": [{"key": "gpuhealth.io/unhealthy", "effect": "NoSchedule"}], "unschedulable": True},
        "status": {
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "GPUHealthy", "status": "True", "reason": "Ok"},
            ],
            "allocatable": {"nvidia.com/gpu": "8"},
        },
    },
    REPORTS: {
        "metadata": META,
        "status": {
            "verdict": "healthy",
            "inventory": {"gpus": [{"uuid": "GPU-1", "model": "H100", "verdict": "healthy"}]},
            "quarantine": {"state": "quarantined", "code": "xid.79", "since": TIME, "drain": True, "budget": "b"},
            "drain": {
                "phase": "draining",
                "quarantineSince": TIME,
                "startedAt": TIME,
                "deadline": TIME,
                "remaining": 2,
            },
            "burnin": {"testedAt": TIME, "gpus": {"GPU-1": GPU_RUN}},
        },
    },
    PODS: {
        "metadata": META
        | {
            "namespace": "n",
            "annotations": {"gpuhealth.io/node": "a"},
            "ownerReferences": [{"kind": "Job", "controller": True}],
            "deletionTimestamp": TIME,
        },
        "spec": {"nodeName": "a"},
        "status": {
            "phase": "Failed",
            "reason": "Evicted",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"state": {"terminated": {"exitCode": 2, "reason": "Error"}}}],
        },
    },
    BUDGETS: {
        "metadata": META,
        "spec": {
            "nodeSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In"}]},
            "maxUnavailable": "5%",
            "maxPerWindow": 1,
            "window": "1h",
            "countUnavailable": True,
        },
        "status": {
            "size": 1,
            "conditions": [{"type": "FaultLimitReached", "status": "False", "lastTransitionTime": TIME}],
        },
    },
    LEASES: {
        "metadata": META | {"labels": {"gpuhealth.io/budget": "a"}},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 5, "renewTime": TIME},
    },
    NAMESPACES: {"metadata": META, "status": {"phase": "Active"}},
}
ODD_TIMES = st.sampled_from(
    [
        "0000-01-01T00:00:00Z",
        "2026-01-01T00:00:00+99:99",
        "9999-12-31T23:59:59-12:00",
        "2026-01-01t00:00:00z",
        "now",
        "",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | ODD_TIMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths(value: Json, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within an object."""
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*at, key))


@st.composite
def mutants(draw: st.DrawFn, sample: Json) -> Json:
    """The object with one or two of its values replaced or removed."""
    item = copy.deepcopy(sample)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from([path for path in paths(item) if path]))
        outer = item
        for key in at[:-1]:
            outer = outer[key]
        if draw(st.booleans()):
            outer[at[-1]] = draw(VALUES)
        else:
            del outer[at[-1]]
    return item
