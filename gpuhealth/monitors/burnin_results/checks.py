"""Rules on burn-in results: each result is valid until a later run of the same test on the same GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeAlias

import msgspec

from gpuhealth.model.burnin_run import BurninRun, TestResult, TestStatus
from gpuhealth.model.codes import Clears, Code, define
from gpuhealth.model.component import ComponentInfo
from gpuhealth.model.context import Check, CheckContext
from gpuhealth.model.finding import Action, Finding, Outcome, Severity
from gpuhealth.model.missing import Missing, MissingReason, Reading
from gpuhealth.monitors.burnin_results.readings import BurninReadings
from gpuhealth.monitors.monitor import NoBaseline, NoSettings

_NAMED = 4  # failures of unknown tests; more are counted
_TEXT_LIMIT = 200  # characters of a text that a result file of another version contains

Context: TypeAlias = CheckContext[Reading[BurninReadings], NoSettings, NoBaseline]


def _define(test: str, action: Action, meaning: str, advice: str) -> Code:
    return define(
        f"burnin.{test}",
        Severity.CRITICAL,
        action,
        meaning=meaning,
        advice=f"{advice} The finding ends when the test passes: gpuhealth burnin --tests {test}.",
        quarantine=True,
        drain=True,
        clears=Clears.TEST_PASSED,
    )


CODES = (
    _define(
        "exact",
        Action.INSPECT_HARDWARE,
        meaning="The GPU computed a wrong result where the right one is known to the last bit: it corrupts everything"
        " that is computed on it, without any error.",
        advice="Have the GPU replaced; the evidence names type, shape, seed and bits for the vendor.",
    ),
    _define(
        "repeat",
        Action.INSPECT_HARDWARE,
        meaning="The same product did not give the same bits each time, or not those of the node's other GPUs of its"
        " model: some of the results are wrong.",
        advice="Run it once more alone on this GPU; if it comes back, have the GPU replaced.",
    ),
    _define(
        "memory",
        Action.RESET_GPU,
        meaning="Data read back from the GPU's memory differed from the data written, at the address that the evidence"
        " names.",
        advice="Reset the GPU, so that bad rows can be replaced, and test again; have it replaced if it comes back.",
    ),
    _define(
        "bandwidth",
        Action.INSPECT_HARDWARE,
        meaning="The GPU's memory or its connection to the host is slower than its model or its neighbours.",
        advice="Look at the width and generation of its PCIe link, at replays and at the CPU that it belongs to;"
        " reseat or replace it.",
    ),
    _define(
        "p2p",
        Action.INSPECT_HARDWARE,
        meaning="Data between this GPU and another of the node arrives too slowly, or wrong.",
        advice="Look at NVLinks, NVSwitches and fabric manager (`gpuhealth explain nvlink`), at ACS on the PCIe path.",
    ),
    _define(
        "collectives",
        Action.INSPECT_HARDWARE,
        meaning="An all-reduce over the node's GPUs gave a wrong sum, did not end, or was too slow.",
        advice="Run the p2p test to find the pair; look at NVLinks, fabric manager and the version of NCCL.",
    ),
    _define(
        "soak",
        Action.INSPECT_HARDWARE,
        meaning="Under load for minutes the GPU slowed itself down, reported errors, or fell behind its neighbours.",
        advice="Look at cooling, power supply and power limit; compare with a neighbouring GPU.",
    ),
)


def _run(context: Context) -> Iterator[Outcome]:
    burnin = context.readings
    if isinstance(burnin, Missing):
        yield from (code.not_checked(burnin) for code in CODES)
        return
    last = {
        (result.gpu, result.test): (run, result)
        for run in burnin.runs
        for result in run.results
        if result.status.is_conclusive
    }
    own = {gpu.component.id for gpu in context.gpus}
    unknown = [result for _, result in last.values() if result.gpu in own and _is_unknown_failure(result)]
    if problem := "; ".join(filter(None, [burnin.unreadable, *_sentences(unknown)])):
        yield from (code.not_checked(Missing(MissingReason.ERROR, problem)) for code in CODES)
    for gpu in context.gpus:
        for code in CODES:
            if conclusive := last.get((gpu.component.id, _test(code))):
                failed = conclusive[1].status is TestStatus.FAILED
                yield _found(code, gpu, context, *conclusive) if failed else code.clean(gpu.component)


def _test(code: Code) -> str:
    return code.name.removeprefix("burnin.")


def _is_unknown_failure(result: TestResult) -> bool:
    """Whether a test without a finding code failed: the burn-in's image may be of a newer version than the agent.

    It is reported as not checked, and is not a finding, because its meaning and remedy are unknown.
    """
    return result.status is TestStatus.FAILED and all(_test(code) != result.test for code in CODES)


def _sentences(unknown: Sequence[TestResult]) -> Iterator[str]:
    for result in unknown[:_NAMED]:
        test, gpu, message = (text[:_TEXT_LIMIT] for text in (result.test, result.gpu, result.message))
        yield f"burn-in test {test!r} failed on {gpu}, and this version of gpuhealth does not know it: {message}"
    if len(unknown) > _NAMED:
        yield f"and {len(unknown) - _NAMED} more"


def _found(code: Code, gpu: ComponentInfo, context: Context, run: BurninRun, result: TestResult) -> Finding:
    found = code.found(
        gpu.component,
        f"{gpu.label}: {result.message}",
        now=context.time,
        source=f"{run.level} burn-in ({run.reason}), test {result.test}",
        reading="; ".join(miscompare.describe(details=True) for miscompare in result.miscompares),
    )
    when = result.started + timedelta(seconds=result.seconds)
    evidence = msgspec.structs.replace(found.evidence, time=when, line=result.evidence)
    return msgspec.structs.replace(found, evidence=evidence)


CHECK = Check(CODES, _run)
