"""How long the levels take, and what they leave out."""

from __future__ import annotations

import pytest

from gpuhealth.burnin.levels import plan
from gpuhealth.burnin.registry import TESTS


@pytest.mark.parametrize(("level", "least", "most"), [("quick", 10, 45), ("standard", 120, 270), ("long", 1800, 5400)])
def test_a_level_takes_as_long_as_it_says(level: str, least: float, most: float) -> None:
    """quick ≤ 60 s, standard ≤ 5 min, long ≥ 30 min, with time left to start the processes."""
    assert least <= sum(plan(level).values()) <= most


def test_tests_keep_their_order_and_are_known() -> None:
    """Tests run in the order of the registry, in whatever order they are named."""
    assert list(plan("long")) == list(TESTS)
    assert list(plan("standard", ["soak", "exact"])) == ["exact", "soak"]
    assert [name for name, test in TESTS.items() if "quick" in test.seconds] == list(plan("quick"))


def test_a_test_that_the_level_leaves_out_takes_the_next_ones_time() -> None:
    """With `--level quick --tests soak`, soak gets the time of the level standard."""
    assert plan("quick", ["soak"]) == {"soak": TESTS["soak"].seconds["standard"]}


def test_a_duration_is_shared_as_the_level_shares_it() -> None:
    """A given duration is used completely, with the proportions of the level."""
    scaled = plan("standard", duration=600)
    assert sum(scaled.values()) == pytest.approx(600)
    soak, exact = (TESTS[name].seconds["standard"] for name in ("soak", "exact"))
    assert scaled["soak"] / scaled["exact"] == pytest.approx(soak / exact)
