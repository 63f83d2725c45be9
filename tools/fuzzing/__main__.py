"""`tools/fuzz` runs fuzz targets in several processes, and prints how many inputs each had and what broke."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from fuzzing import registry, runner
from fuzzing.runner import Failure, Result
from fuzzing.target import quiet_log

FAILURES = Path("tools/fuzzing/failures")
_INPUTS = 100_000  # of all targets, unless the command names a number or a time


class _Worker(NamedTuple):
    process: Any
    reports: Connection
    number: Any  # of the case that it runs
    first: int


def main() -> int:
    """0 when no rule was broken, 1 otherwise."""
    arguments = _arguments()
    if arguments.list:
        for name, entry in registry.TARGETS.items():
            print(f"{name:16} {entry.summary}")
        return 0
    names = arguments.target or list(registry.TARGETS)
    if arguments.input is not None:
        return _again(names, arguments.input)
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4))
    results = []
    total = sum(registry.TARGETS[name].share for name in names)
    for name in names:
        share = registry.TARGETS[name].share / total
        inputs = 0 if arguments.seconds and not arguments.inputs else round((arguments.inputs or _INPUTS) * share)
        result = _fuzzed(name, seed, inputs, arguments.seconds / len(names), arguments.processes)
        results.append(result)
        if not arguments.json:
            _show(result, seed)
    if arguments.json:
        print(json.dumps({"seed": seed, "targets": [_figures(result) for result in results]}))
    return 1 if any(result.failed_cases for result in results) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[*registry.TARGETS, []], help="default: all")
    parser.add_argument("--inputs", type=int, default=0, help=f"of all targets together; default {_INPUTS}")
    parser.add_argument("--seconds", type=float, default=0.0, help="of all targets together, in place of --inputs")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this saved case once")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--list", action="store_true", help="list the targets")
    return parser.parse_args()


def _again(names: list[str], path: Path) -> int:
    if len(names) != 1:
        print("--input needs the name of one target", file=sys.stderr)
        return 2
    target = registry.target(names[0])
    with quiet_log(), runner.time_limit() as set_timer:
        done = runner.run_case(names[0], target, path.read_bytes(), set_timer)
    target.close()
    if isinstance(done, Failure):
        print(done.traceback)
        return 1
    print(f"{names[0]}: {done} inputs, no rule broken")
    return 0


def _fuzzed(name: str, seed: int, inputs: int, seconds: float, processes: int) -> Result:
    """The results of all processes together. One that died is a failure of the case that it was running."""
    context = multiprocessing.get_context("fork")
    workers = []
    began = time.monotonic()
    for first in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        number = context.Value("q", -1, lock=False)
        part = -(-inputs // processes)
        process = context.Process(target=_work, args=(name, seed, part, seconds, first, processes, theirs, number))
        process.start()
        theirs.close()
        workers.append(_Worker(process, ours, number, first))
    total = Result(name, failures=[])
    for worker in workers:
        result = _received(worker, name, seed)
        total.inputs += result.inputs
        total.cases += result.cases
        total.failed_cases += result.failed_cases
        total.slowest_seconds = max(total.slowest_seconds, result.slowest_seconds)
        kinds = {(failure.place, failure.error.partition(":")[0]) for failure in total.failures}
        total.failures += [
            failure for failure in result.failures if (failure.place, failure.error.partition(":")[0]) not in kinds
        ]
    total.seconds = time.monotonic() - began
    return total


def _received(worker: _Worker, name: str, seed: int) -> Result:
    try:
        result: Result = worker.reports.recv()
    except EOFError:
        worker.process.join()
        target = registry.target(name)
        case = runner.case_of(target, seed, worker.number.value)
        target.close()
        error = f"Died: the process ended with {worker.process.exitcode} in case {worker.number.value}"
        failure = Failure(name, error, f"case {worker.number.value}", error, case)
        return Result(name, inputs=worker.number.value, failures=[failure], failed_cases=1)
    worker.process.join()
    return result


def _work(
    name: str, seed: int, inputs: int, seconds: float, first: int, step: int, reports: Connection, number: Any
) -> None:
    target = registry.target(name)
    with runner.watchdog() as alive:

        def on_case(case: int) -> None:
            number.value = case
            if case // step % 64 == 0:
                alive()

        result = runner.run(
            name, target, seed=seed, inputs=inputs, seconds=seconds, first=first, step=step, on_case=on_case
        )
    target.close()
    reports.send(result)
    reports.close()


def _figures(result: Result) -> dict[str, Any]:
    return {
        "target": result.target,
        "inputs": result.inputs,
        "cases": result.cases,
        "seconds": round(result.seconds, 2),
        "inputs_per_s": round(result.inputs / max(result.seconds, 1e-9), 1),
        "slowest_case_ms": round(result.slowest_seconds * 1e3, 1),
        "failed_cases": result.failed_cases,
        "failures": [
            {"error": failure.error, "place": failure.place, "input": str(runner.saved(failure, FAILURES))}
            for failure in result.failures
        ],
    }


def _show(result: Result, seed: int) -> None:
    figures = _figures(result)
    print(
        f"{figures['target']:16} {figures['inputs']:>9,} inputs in {figures['seconds']:>7.1f} s"
        f" ({figures['inputs_per_s']:>9,.0f}/s, slowest case {figures['slowest_case_ms']:.0f} ms), seed {seed}:"
        f" {figures['failed_cases']} failed",
        flush=True,
    )
    for failure in figures["failures"]:
        print(f"    {failure['place']}: {failure['error'][:300]!a}")
        print(f"    tools/fuzz {figures['target']} --input {failure['input']}")


if __name__ == "__main__":
    sys.exit(main())
