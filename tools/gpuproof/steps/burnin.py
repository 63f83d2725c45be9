"""Burn-ins on this machine's GPUs: their figures, the same bits every time, and faults that are injected and caught."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from gpuproof.step import Context, Outcome, disproved, not_proved, proved

_FAULTS = {"exact": "result_bits", "repeat": "result_bits", "memory": "memory_bits"}
"""Tests, and the kind of fault that each of them must find."""
_NO_TORCH = "PyTorch is not installed for this Python"
_START_SECONDS = 12.0  # of a worker with CUDA, for each test
_SEED = 20260101  # the same in every proof, so that machines can be compared


def levels(context: Context) -> Outcome:
    """Proved where a quick burn-in of all tests passes on every device."""
    if _lacks_torch():
        return not_proved(_NO_TORCH)
    run, problem = _burnin(
        context, "levels", "--level", "quick", "--duration", f"{max(5.0, context.left / 2 - 20):.0f}s"
    )
    if run is None:
        return not_proved(f"no burn-in: {problem}")
    lines, figures = [], {}
    for result in run["results"]:
        lines.append(f"{result['test']} {result['gpu']}: {result['status']}: {result['message']}")
        figures[f"{result['test']} {result['gpu']}"] = result.get("figures", {})
    failed = [line for line in lines if ": failed: " in line]
    if failed:
        return disproved("a burn-in failed: on a sound GPU this is a fault of gpuhealth", *lines, figures=figures)
    if run["status"] != "passed":
        return not_proved(f"the burn-in was {run['status']}", *lines, figures=figures)
    return proved(f"{len(lines)} tests passed or were skipped with a reason", *lines, figures=figures)


def digests(context: Context) -> Outcome:
    """Proved where repeated products have the same digest in two runs, and on all GPUs of a model."""
    if _lacks_torch():
        return not_proved(_NO_TORCH)
    found: dict[tuple[str, str], set[str]] = {}
    runs = 0
    for number in range(2):
        seconds = max(2.0, context.left / (3 - number) - _START_SECONDS)
        run, problem = _burnin(context, f"digests-{number}", "--tests", "repeat", "--duration", f"{seconds:.0f}s")
        if run is None:
            return not_proved(f"no burn-in: {problem}")
        models = run.get("models", {})
        for result in run["results"]:
            runs += bool(result.get("digests"))
            for product, digest in result.get("digests", {}).items():
                found.setdefault((models.get(result["gpu"], ""), product), set()).add(digest)
    if runs < 2 or not found:
        return not_proved("the products were not repeated often enough to compare runs")
    different = [
        f"{product}: {len(values)} different results" for (_, product), values in found.items() if len(values) > 1
    ]
    if different:
        return disproved("the same product has different results", *different)
    return proved(f"{len(found)} products have one digest each over {runs} results", products=len(found))


def faults(context: Context) -> Outcome:
    """Proved where each test fails for the bits that are flipped in its data."""
    if _lacks_torch():
        return not_proved(_NO_TORCH)
    lines: list[str] = []
    missed: list[str] = []
    tried = 0
    for number, (test, kind) in enumerate(_FAULTS.items()):
        seconds = max(2.0, context.left / (len(_FAULTS) + 1 - number) - _START_SECONDS)
        given = json.dumps([{"kind": kind, "test": test, "after": 1}])
        words = ("--tests", test, "--duration", f"{seconds:.0f}s")
        run, problem = _burnin(context, f"fault-{test}", *words, GPUHEALTH_BURNIN__FAULTS=given)
        if run is None:
            lines.append(f"{test}: no burn-in: {problem}")
            continue
        for result in run["results"]:
            tried += 1
            line = f"{kind} in {test} {result['gpu']}: {result['status']}: {result['message']}"
            (lines if result["status"] == "failed" else missed).append(line)
    if missed:
        return disproved(f"{len(missed)} of {tried} injected faults were not caught", *missed, *lines)
    if tried < len(_FAULTS):
        return not_proved("not every test could be run", *lines)
    return proved(f"{tried} of {tried} injected faults were caught", *lines)


def _lacks_torch() -> bool:
    return importlib.util.find_spec("torch") is None


def _burnin(context: Context, name: str, *words: str, **environment: str) -> tuple[Any, str]:
    """The result of a burn-in, also saved as a file; None and the reason where there is none."""
    options = ("--json", "--devices", context.devices, "--seed", str(_SEED))
    done = context.gpuhealth("burnin", *options, *words, **environment)
    context.save(f"burnin-{name}.json", done.out)
    found = done.json
    return (found, "") if isinstance(found, dict) and "results" in found else (None, done.problem)
