"""The fuzz targets: a short run of each, and proof that the rules of each can be broken."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from fuzzing import registry, runner
from fuzzing.runner import Failure
from fuzzing.target import FuzzTarget, quiet_log

from gpuhealth.agent import capture
from gpuhealth.cli import node_report
from gpuhealth.kernel_log import parser
from gpuhealth.kube import client
from gpuhealth.model.kernel_event import KernelEvent, KernelRecord
from gpuhealth.model.tracker import FindingTracker, NodeFacts
from gpuhealth.model.verdict import State, Verdict
from gpuhealth.quarantine import target
from gpuhealth.runtime import http_server, settings_file

pytestmark = pytest.mark.process  # targets start threads, servers and the simulated driver

_SECONDS = 0.8
"""For each target and seed: all of them together take about 20 seconds."""
_SEEDS = {"fixed": 1, "fresh": int.from_bytes(os.urandom(4))}


@contextlib.contextmanager
def opened(name: str) -> Iterator[FuzzTarget]:
    """A target, closed at the end."""
    fuzzed = registry.target(name)
    try:
        yield fuzzed
    finally:
        fuzzed.close()


@pytest.mark.parametrize("name", registry.TARGETS)
def test_a_short_run(name: str) -> None:
    """No rule of the target is broken, with the same inputs each time and with inputs that nobody has tried."""
    with opened(name) as fuzzed:
        for kind, seed in _SEEDS.items():
            print(f"{kind} seed: {seed}")  # noqa: T201 - pytest shows it of a test that fails
            result = runner.run(name, fuzzed, seed=seed, seconds=_SECONDS)
            assert not result.failures, _report(result.failures[0], seed)
            assert result.inputs > 0


def _report(failure: Failure, seed: int) -> str:
    return f"seed {seed}: {failure.error} at {failure.place}\n{failure.traceback}\n{failure.case[:2000]!r}"


# --- each target can fail ---------------------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def _always_healthy(patch: pytest.MonkeyPatch) -> None:
    """Every verdict is healthy, whatever was measured."""
    verdict = FindingTracker.verdict

    def healthy(tracker: FindingTracker, facts: NodeFacts) -> Verdict:
        return msgspec.structs.replace(verdict(tracker, facts), verdict=State.HEALTHY)

    patch.setattr(FindingTracker, "verdict", healthy)


def _raw_text(patch: pytest.MonkeyPatch) -> None:
    """Texts of users reach findings as they are."""
    patch.setattr(parser, "_printable", lambda event: event)


def _deaf(patch: pytest.MonkeyPatch) -> None:
    """XID 79 is passed over."""
    feed = parser.KernelLogParser.feed

    def passing_over(self: parser.KernelLogParser, record: KernelRecord) -> KernelEvent | None:
        return None if "79" in record.text else feed(self, record)

    patch.setattr(parser.KernelLogParser, "feed", passing_over)


def _removes_taints(patch: pytest.MonkeyPatch) -> None:
    """Taints of others are removed, too."""
    patch.setattr(target, "_new_taints", lambda *_: [])


def _trusting_json(patch: pytest.MonkeyPatch) -> None:
    """The parts of a capture are taken for valid JSON."""
    patch.setattr(capture, "JSON_ERRORS", ())


def _raw_errors(patch: pytest.MonkeyPatch) -> None:
    """Errors quote the settings as they are."""
    patch.setattr(settings_file, "_printable", str)


def _forgetful(patch: pytest.MonkeyPatch) -> None:
    """The record on the Node is no evidence."""
    patch.setattr(FindingTracker, "recall", lambda *_: [])


def _failing_page(patch: pytest.MonkeyPatch) -> None:
    """A page raises an error."""

    async def failing(_: object) -> None:
        raise RuntimeError

    patch.setattr(http_server, "_handler", lambda _: failing)


def _trusting(patch: pytest.MonkeyPatch) -> None:
    """Every answer is taken for the object that was asked for."""
    patch.setattr(client, "object_of", lambda _, answer, __="": answer)


def _raw_output(patch: pytest.MonkeyPatch) -> None:
    """What is printed may control the terminal."""
    patch.setattr(node_report, "printable", lambda text: f"{text}\x1b[31m")


BREAKS: dict[str, Break] = {
    "nvml_answers": _always_healthy,
    "kmsg_records": _raw_text,
    "classify_text": _deaf,
    "sys_proc_trees": _always_healthy,
    "api_objects": _removes_taints,
    "settings": _raw_errors,
    "captures": _trusting_json,
    "journals": _forgetful,
    "http_server": _failing_page,
    "api_answers": _trusting,
    "command_output": _raw_output,
}
_MOST_INPUTS = 20_000


@pytest.mark.parametrize("name", registry.TARGETS)
def test_a_broken_function_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a function of the boundary broken, the target reports a failure, which its saved input reproduces."""
    BREAKS[name](monkeypatch)
    with opened(name) as fuzzed:
        result = runner.run(name, fuzzed, seed=1, inputs=_MOST_INPUTS, minimise=False, until_failure=True)
        assert result.failures, "no rule was broken"
        with quiet_log(), runner.time_limit() as set_timer:
            assert isinstance(runner.run_case(name, fuzzed, result.failures[0].case, set_timer), Failure)


# --- the tool ---------------------------------------------------------------------------------------------------------


class _Slow:
    """A target whose case does not end."""

    def make(self, _: random.Random) -> bytes:
        return b"x"

    def check(self, _: bytes) -> int:
        while True:
            pass

    def close(self) -> None:
        pass


class _Odd:
    """A target that fails for one line."""

    def make(self, _: random.Random) -> bytes:
        return b"\n".join(b"bad" if number == 7 else b"good" for number in range(20))

    def check(self, case: bytes) -> int:
        assert b"bad" not in case
        return 1

    def close(self) -> None:
        pass


def test_a_hang_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that does not end within the limit is reported, and the run goes on."""
    monkeypatch.setattr(runner, "LIMIT_SECONDS", 0.05)
    result = runner.run("slow", _Slow(), seed=1, inputs=2)
    assert result.failed_cases == 2
    assert "HangError" in result.failures[0].error


def test_a_failure_is_made_smaller_and_saved(tmp_path: Path) -> None:
    """Of the lines of a case only the one that fails is left, and its file holds it."""
    result = runner.run("odd", _Odd(), seed=1, inputs=1)
    (failure,) = result.failures
    assert failure.case == b"bad"
    assert runner.saved(failure, tmp_path).read_bytes() == b"bad"


def test_cases_depend_on_seed_and_number_alone() -> None:
    """A seed gives the same cases each time, whatever ran before, and another seed gives other cases."""
    with opened("classify_text") as fuzzed:
        first = [runner.case_of(fuzzed, 1, number) for number in range(3)]
        assert runner.case_of(fuzzed, 1, 2) == first[2]
        assert runner.case_of(fuzzed, 2, 2) != first[2]
        assert len({*first}) == 3
