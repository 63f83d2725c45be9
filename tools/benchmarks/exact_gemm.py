"""Exact arithmetic: the cost of proofs, the flips that it and other methods catch, and false positives."""

from __future__ import annotations

import time

import torch
from rich.table import Table
from testing.exact_gemm import METHODS, PROCESSOR, caught, caught_in_inputs, false_positives, overhead

from gpuhealth.burnin.device import enable_deterministic_mode
from gpuhealth.burnin.exact import PRODUCTS_PER_PAIR
from gpuhealth.burnin.gemm import FORMATS, unavailable_reason

_LARGE = {"fp64": 2048, "fp32": 4096, "bf16": 4096, "int8": 8192}  # formats with a fast kernel on a processor
_TRIALS = 100  # for each format and kind of flip
_CLEAN = 10_000


def run(seconds: float) -> tuple[dict[str, float], dict[str, object]]:
    """`seconds` shortens the counts where it is below the default; the figures say how many there were."""
    enable_deterministic_mode()
    began = time.monotonic()
    share = min(1.0, seconds / 600)
    forms = [form for form in FORMATS if not unavailable_reason(form, PROCESSOR)]
    costs = {form.name: overhead(form, _LARGE[form.name]) for form in forms if form.name in _LARGE}
    trials = max(5, int(_TRIALS * share))
    rates = caught(forms, trials)
    exact = [rate for name, rate in rates.items() if name.endswith("/exact")]
    figures = {
        "overhead_percent": max(costs.values()),
        **{f"overhead_percent/{name}": cost for name, cost in costs.items()},
        "caught_percent": sum(exact) / len(exact),
        **caught_in_inputs(forms, trials),
        **false_positives(forms, max(100, int(_CLEAN * share))),
        **{f"caught_percent/{name}": rate for name, rate in rates.items()},
    }
    return figures, {
        "sizes": _LARGE,
        "products_per_pair": PRODUCTS_PER_PAIR,
        "threads": torch.get_num_threads(),
        "flips_per_format_and_kind": trials,
        "formats": [form.name for form in forms],
        "torch": torch.__version__,
        "took_seconds": round(time.monotonic() - began),
    }


def table(figures: dict[str, float]) -> Table:
    """Catch rates, a row for each format and kind of flip, a column for each method."""
    methods = ["exact", *METHODS]
    result = Table("flips", *methods, title="per cent caught")
    rows: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        if name.count("/") == 3:
            _, form, kind, method = name.split("/")
            rows.setdefault(f"{form} {kind}", {})[method] = value
    for row, values in rows.items():
        result.add_row(row, *(f"{values[method]:.0f}" for method in methods))
    return result
