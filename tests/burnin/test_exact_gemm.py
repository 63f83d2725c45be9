"""The benchmark of exact arithmetic, in small: every flip is caught where other methods miss some, and nothing else."""

from __future__ import annotations

from testing import exact_gemm

from gpuhealth.burnin.gemm import FORMATS

FORMS = [fmt for fmt in FORMATS if fmt.processor_size > 100]  # without those that are slow on a processor


def test_all_flips_are_caught_and_other_methods_miss_some() -> None:
    """Every kind of flip is found in every format; each other method misses some, or all after a wrong first result."""
    rates = exact_gemm.caught(FORMS, trials=6)
    assert {rate for name, rate in rates.items() if name.endswith("/exact")} == {100.0}
    for method in exact_gemm.METHODS:
        assert min(rate for name, rate in rates.items() if name.endswith(f"/{method}")) < 100
    assert max(rate for name, rate in rates.items() if name.endswith("/gpu_burn_first_wrong")) == 0


def test_flips_in_inputs_are_caught() -> None:
    """Flips in inputs are found in the operands, and in the result where they change it."""
    figures = exact_gemm.caught_in_inputs(FORMS, trials=8)
    assert figures["input_flips_that_change_a_result"] > 0
    assert figures["input_flips_caught_percent"] == figures["input_flips_caught_in_results_percent"] == 100


def test_clean_products_are_never_called_wrong() -> None:
    """No clean product is rejected, in all formats and many shapes."""
    assert exact_gemm.false_positives(FORMATS, products=160) == {"false_positives": 0, "clean_products": 160}


def test_the_cost_of_proving_is_measured() -> None:
    """The overhead is measured; at this size it is not representative of a GPU."""
    assert exact_gemm.overhead(FORMS[1], 128) > 0
