"""The output of `gpuhealth doctor` for people."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.text import Text

from gpuhealth.cli.wording import STYLE, counted
from gpuhealth.installation.doctor import Answer, Diagnosis
from gpuhealth.installation.manifests import INSTALL
from gpuhealth.installation.problem import Level
from gpuhealth.runtime.text import printable

if TYPE_CHECKING:
    from rich.console import Console

_STYLES: dict[str, str] = {
    Answer.FINE: STYLE["healthy"],
    Level.INFO: STYLE["info"],
    Level.WARNING: STYLE["warning"],
    Level.ERROR: STYLE["critical"],
    Answer.NOT_INSTALLED: STYLE["critical"],
    Answer.INCOMPLETE: STYLE["unknown"],
}
_MARGIN = 22


def show(out: Console, found: Diagnosis) -> None:
    """Print the answer, then each problem with what to do, then what was not checked."""
    out.print(Text(_answer(found), style=_STYLES[found.answer]), soft_wrap=True)
    if found.answer is Answer.NOT_INSTALLED:
        return
    out.print()
    for problem in found.problems:
        text = Text(printable(problem.message))
        if problem.fix:
            text.append(f". Fix: {printable(problem.fix)}")
        _print(out, problem.level, problem.check, text)
    for each in found.not_checked:
        _print(out, "not checked", each.check, Text(printable(each.reason)))
    if found.fine:
        _print(out, "fine", "", Text(", ".join(found.fine)))


def _print(out: Console, level: str, check: str, text: Text) -> None:
    label = f"{level:<7} {check}" if check else level
    if len(label) + 4 > _MARGIN:
        label = f"{level} {check}"
    style = _STYLES.get(level, "dim")
    lines = text.wrap(out, max(20, out.width - _MARGIN - 2))
    prefix = Text.assemble(("  ", ""), (label.ljust(_MARGIN), style))
    for line in lines:
        line.rstrip()
        out.print(prefix + line, soft_wrap=True)
        prefix = Text(" " * (_MARGIN + 2))


def _answer(found: Diagnosis) -> str:
    where = f"gpuhealth {found.version} in namespace {found.namespace}"
    match found.answer:
        case Answer.NOT_INSTALLED:
            return f"NOT INSTALLED: there is no gpuhealth in this cluster. To install it: {INSTALL}"
        case Answer.FINE:
            return f"FINE: {where}: {counted(len(found.fine), 'check')}, no problem"
        case Answer.INCOMPLETE:
            left = counted(sum(each.supported for each in found.not_checked), "check")
            return f"INCOMPLETE: {where}: no problem found, but {left} could not be made"
    levels = Counter(problem.level for problem in found.problems)
    counts = [counted(levels[level], level) for level in (Level.ERROR, Level.WARNING) if levels[level]]
    return f"{found.answer.upper()}: {where}: {', '.join(counts)}"
