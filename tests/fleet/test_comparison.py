"""The comparison of GPUs over the fleet."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.burnin_results import result, run

from gpuhealth.api.resource import body
from gpuhealth.fleet import views
from gpuhealth.fleet.comparison import MIN_SPEEDS, MISMATCH, SLOW, GpuResult, find_outliers
from gpuhealth.quarantine.report_burnins import burnin_of

GPU = "GPU-0"
RIGHT, WRONG, ODD = "a" * 64, "b" * 64, "c" * 64
H100 = "NVIDIA H100 80GB HBM3"
PRODUCT = "bf16/1024x1024x1024/seed7"


def _computed(number: int, digest: str = RIGHT, **other: str) -> GpuResult:
    return msgspec.structs.replace(
        GpuResult(
            node=f"node-{number // 8}",
            gpu=f"GPU-{number}",
            model=H100,
            level="standard",
            software="torch 2.13, cuda 13.0",
            digests=((PRODUCT, digest),),
        ),
        **other,
    )


def _ran(number: int, speed: float, level: str = "standard", model: str = H100) -> GpuResult:
    node, gpu = f"node-{number // 8}", f"GPU-{number}"
    return GpuResult(node=node, gpu=gpu, model=model, level=level, speeds=(("bf16_tflops", speed),))


def test_a_gpu_with_another_digest_is_found() -> None:
    """One of a hundred has another digest: it alone is found, with the product and both digests."""
    (found,) = find_outliers([_computed(number, WRONG if number == 42 else RIGHT) for number in range(100)])
    assert (found.node, found.gpu, found.code) == ("node-5", "GPU-42", MISMATCH)
    for word in (PRODUCT, RIGHT[:12], WRONG[:12], "99 of 100"):
        assert word in found.message


@pytest.mark.parametrize(
    "fleet",
    [
        pytest.param([_computed(0), _computed(1, WRONG)], id="two cannot tell which of them is wrong"),
        pytest.param([_computed(0), _computed(1, WRONG), _computed(2, ODD)], id="no majority"),
        pytest.param(
            [*map(_computed, range(4)), _computed(4, WRONG, software="torch 2.14")], id="other software, other result"
        ),
        pytest.param([*map(_computed, range(4)), _computed(4, WRONG, model="NVIDIA B200")], id="another model"),
        pytest.param([*map(_computed, range(4)), GpuResult(node="n", gpu="g", model=H100)], id="not computed"),
        pytest.param([], id="nothing tested yet"),
    ],
)
def test_without_comparison_there_is_no_outlier(fleet: list[GpuResult]) -> None:
    """Without a majority among the same model and software there is no outlier."""
    assert find_outliers(fleet) == []


def test_a_slow_gpu_is_found_and_the_usual_spread_is_not() -> None:
    """Speeds that spread by 2 % give no outlier; a GPU that is 25 % slower is found, with median and share."""
    draw = random.Random(1)
    fleet = [_ran(number, 700 * draw.gauss(1, 0.02)) for number in range(200)]
    assert find_outliers(fleet) == []
    (found,) = find_outliers([*fleet, _ran(200, 525)])
    assert (found.gpu, found.code) == ("GPU-200", SLOW)
    assert "25% below the median" in found.message or "24% below the median" in found.message


def test_speeds_of_other_levels_models_and_small_groups_are_not_compared() -> None:
    """Figures of quick and long tests are not compared; too few GPUs have no usual speed."""
    fleet = [_ran(number, 700) for number in range(20)]
    assert find_outliers([*fleet, _ran(20, 300, level="quick"), _ran(21, 60, model="Tesla T4")]) == []
    assert find_outliers([*(_ran(number, 700) for number in range(MIN_SPEEDS - 2)), _ran(99, 10)]) == []


def test_what_is_compared_is_what_the_agent_writes() -> None:
    """Digests with their software, and the speeds of the tests that measure them: no pair, no small product."""
    speeds = {"bf16_tflops": 700.0, "ranks": 8.0}
    results = (
        result("repeat", digests={PRODUCT: RIGHT}, figures={"bf16_tflops": 9.0}),
        result("soak", figures=speeds),
        result("bandwidth", figures={"memory_copy_gigabytes_per_second": 2800.0}),
        result("p2p", figures={"to_GPU-1_gigabytes_per_second": 300.0}),
    )
    done = run(*results, software={"torch": "2.13", "cuda": "13.0"}, models={GPU: H100})
    said = {"metadata": {"name": "n"}, "status": {"burnin": body(burnin_of([done], [GPU]))}}
    (found,) = views.report_view(said).results
    assert (found.node, found.gpu, found.model, found.level) == ("n", GPU, H100, done.level)
    assert (found.software, found.digests) == ("cuda 13.0, torch 2.13", ((PRODUCT, RIGHT[:16]),))
    assert dict(found.speeds) == {"bf16_tflops": 700.0, "memory_copy_gigabytes_per_second": 2800.0}
    assert views.report_view(said).tested_at is not None


@given(
    wrong=st.integers(0, 9),
    right=st.integers(10, 40),
    slow=st.lists(st.floats(1, 500), max_size=9),
)
def test_a_minority_never_hides_itself(wrong: int, right: int, slow: list[float]) -> None:
    """Any minority of bad GPUs is found exactly: neither majority nor median shifts."""
    computed = [_computed(n, WRONG if n < wrong else RIGHT) for n in range(wrong + right)]
    assert {o.gpu for o in find_outliers(computed)} == {f"GPU-{n}" for n in range(wrong)}
    ran = [_ran(n, 700.0) for n in range(20)] + [_ran(100 + n, speed) for n, speed in enumerate(slow)]
    assert {o.gpu for o in find_outliers(ran)} == {f"GPU-{100 + n}" for n in range(len(slow))}


def _forged(number: int, digest: str = WRONG, speed: float = 1e9) -> GpuResult:
    forged = _computed(number, digest, node="thief", gpu=f"GPU-forged-{number}")
    return msgspec.structs.replace(forged, speeds=(("bf16_tflops", speed),))


def test_one_report_makes_no_majority() -> None:
    """A node that reports a thousand GPUs, all with one other digest and speed, differs itself, and no other node."""
    honest = [msgspec.structs.replace(_computed(k), speeds=(("bf16_tflops", 600.0),)) for k in range(24)]
    found = find_outliers([*honest, *map(_forged, range(1000))])
    assert {outlier.node for outlier in found} == {"thief"}
    assert {outlier.code for outlier in found} == {MISMATCH}


def test_a_report_of_a_thousand_gpus_is_read_in_part() -> None:
    """As many GPUs of a report are compared as a node can have: each outlier is a sample of a metric."""
    gpus = {f"GPU-{number}": {"model": H100} for number in range(1000)}
    view = views.report_view({"metadata": {"name": "n"}, "status": {"burnin": {"gpus": gpus}}})
    assert len(view.results) == 64
