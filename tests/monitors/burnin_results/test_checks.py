"""Findings from the results of active tests."""

from __future__ import annotations

from datetime import timedelta

from testing.burnin_results import FAILED, SKIPPED, STOPPED, result, run
from testing.readings import LOST, Judged, gpu, judged, node, nvml, pci, remembering, uuid

from gpuhealth.model.burnin_run import BurninRun, Miscompare
from gpuhealth.model.codes import Clears
from gpuhealth.model.component import NODE
from gpuhealth.model.finding import NotChecked, Severity
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.burnin_results import checks as subject
from gpuhealth.monitors.burnin_results.readings import BurninReadings
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.registry import code_of


def said(*runs: BurninRun, unreadable: str = "", memory: Memory | None = None) -> Judged:
    """What is said of a node of one GPU with these runs."""
    readings = node(gpu(), burnin=BurninReadings(runs, unreadable))
    return judged(subject.CHECK, readings, memory)


def why(outcomes: Judged) -> Missing:
    """The reason why burn-in results could not be judged."""
    outcome = outcomes["burnin.exact", NODE.id]
    assert isinstance(outcome, NotChecked)
    return outcome.reason


def test_failure_tells_what_and_when() -> None:
    """The finding has the test's sentence, how the bits differ, the time of the test and the worker's last words."""
    wrong = Miscompare(
        what="bf16 64x64x64 seed 7", index=129, wrong=1, xor="0x0040", kind="repeatable", repeats="5 of 5 hot"
    )
    failed = result(status=FAILED, message="one output is wrong", miscompares=(wrong,), evidence="SIGSEGV")
    finding = said(run(failed)).finding("burnin.exact")
    assert finding.severity is Severity.CRITICAL
    assert "one output is wrong" in finding.message
    assert finding.evidence.reading == (
        "bf16 64x64x64 seed 7: 1 wrong element, first at element 129, bits 0x0040, repeatable, 5 of 5 hot"
    )
    assert finding.evidence.time == failed.started + timedelta(seconds=failed.seconds)
    assert finding.evidence.line == "SIGSEGV"
    assert "quick burn-in (manual)" in finding.evidence.source


def test_only_a_later_pass_of_the_same_test_is_clean() -> None:
    """Another test's pass, a stopped and a skipped run leave the failure as it is."""
    runs = [run(result(status=FAILED)), run(result("soak"), at=60)]
    runs += [run(result(status=STOPPED), at=120), run(result(status=SKIPPED), at=180)]
    assert said(*runs).severity("burnin.exact") is Severity.CRITICAL
    assert said(*runs).is_clean("burnin.soak")
    assert said(*runs, run(result(), at=240)).is_clean("burnin.exact")
    assert said(run(result()), run(result(status=FAILED), at=60)).severity("burnin.exact") is Severity.CRITICAL


def test_never_tested_says_nothing() -> None:
    """That a GPU was never tested is no finding, and no clean bill."""
    assert said() == {}
    assert said(run(result(status=STOPPED))) == {}


def test_results_of_others_do_not_count() -> None:
    """A result of a GPU that is not in the node, or of the processor, is nobody's finding here."""
    assert said(run(result(gpu="GPU-9", status=FAILED), result(gpu="cpu", status=FAILED))) == {}


def test_of_a_gpu_that_answers_no_more() -> None:
    """The result stands while the GPU is lost, gone, or NVML is away."""
    failed = BurninReadings((run(result(status=FAILED)),))
    remembered = remembering(gpus={uuid(0): pci(0)})
    assert judged(subject.CHECK, node(gpu(error=LOST), burnin=failed)).severity("burnin.exact") is Severity.CRITICAL
    away = node(nvml=nvml(problem=Missing(MissingReason.TIMEOUT)), burnin=failed)
    assert judged(subject.CHECK, away, remembered).severity("burnin.exact") is Severity.CRITICAL


def test_unreadable_results_are_not_clean() -> None:
    """A damaged result leaves every test not checked, and the others count all the same; so does a folder's."""
    partly = said(run(result(status=FAILED)), unreadable="a.json: truncated")
    assert partly.severity("burnin.exact") is Severity.CRITICAL
    assert partly.why_not("burnin.exact", NODE) is MissingReason.ERROR
    closed = judged(subject.CHECK, node(gpu(), burnin=Missing(MissingReason.NO_PERMISSION)))
    assert {code for code, _ in closed} == {code.name for code in subject.CODES}
    assert closed.why_not("burnin.soak", NODE) is MissingReason.NO_PERMISSION


def test_a_failure_of_an_unknown_test_does_not_vanish() -> None:
    """A newer burn-in image may have a test that this version has no code for: its failure is in the coverage.

    It ends when the test passes. A pass, and a failure on a GPU of another node, need no word.
    """
    failed = result("riddle", status=FAILED, message="the answer was wrong")
    here = said(run(failed))
    assert {code for code, _ in here} == {code.name for code in subject.CODES}
    reason = why(here)
    assert reason.reason is MissingReason.ERROR
    assert reason.detail == (
        "burn-in test 'riddle' failed on GPU-0, and this version of gpuhealth does not know it: the answer was wrong"
    )
    assert said(run(failed), run(result("riddle"), at=60)) == {}
    assert said(run(result("riddle", gpu="GPU-9", status=FAILED))) == {}


def test_many_failures_of_unknown_tests_are_counted() -> None:
    """However many results a file has, the reason stays short; results of known tests are judged all the same."""
    failed = [result(f"riddle-{number}", status=FAILED, message="x" * 10_000) for number in range(6)]
    here = said(run(result(status=FAILED), *failed))
    detail = why(here).detail
    assert detail.endswith("; and 2 more")
    assert len(detail) < 2000
    assert here.severity("burnin.exact") is Severity.CRITICAL


def test_all_quarantine_and_drain() -> None:
    """A GPU that fails an active test is out of service; only a test brings it back."""
    for code in subject.CODES:
        assert (code.quarantine, code.drain, code.clears) == (True, True, Clears.TEST_PASSED)
        assert code_of(code.name) is code
