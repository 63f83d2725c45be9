"""`gpuhealth explain`: explains an XID, an SXid, a finding code or a kernel-log line, and what to do about it."""

from __future__ import annotations

import json
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.output import CommandError, console, did_you_mean, print_labelled
from gpuhealth.runtime.text import printable

if TYPE_CHECKING:
    from gpuhealth.model.codes import Code
    from gpuhealth.model.kernel_event import KernelEvent
    from gpuhealth.model.policy import FindingPolicy
    from gpuhealth.monitors.nvidia.catalog.sxid import SxidFacts
    from gpuhealth.monitors.nvidia.catalog.xid import XidFacts

_NUMBER = re.compile(r"(s?xid)?[\s.:#=]*(\d{1,9})", re.ASCII | re.IGNORECASE)
_CAUSES = {
    "hw": "hardware",
    "app": "a program",
    "driver": "driver or firmware",
    "bus": "the PCIe bus",
    "sysmem": "the host's memory",
    "framebuffer": "the GPU's memory",
    "thermal": "heat",
    "link": "the NVLink",
}
_PRINTED = {
    "fatal": "fatal",
    "nonfatal": "non-fatal",
    "contained": "fatal once the error is contained, else non-fatal",
    "either": "fatal or non-fatal",
}
_FIRST_SXID = 10_000  # XIDs have up to three digits, SXids five
_MARGIN = 15


def command(
    subject: Annotated[
        list[str],
        typer.Argument(metavar="SUBJECT", help="Such as 79, sxid 12028, ecc.uncorrectable, 'ecc.*', or a log line."),
    ],
    config: options.Config = None,
) -> None:
    """Explain an XID, SXid, finding code or kernel-log line."""
    text = " ".join(subject).strip()
    if match := _NUMBER.fullmatch(text):
        number = int(match[2])
        kind = (match[1] or ("sxid" if number >= _FIRST_SXID else "xid")).lower()
        _Explainer(config).numbered(kind, number)
    elif codes := _codes(text):
        explainer = _Explainer(config)
        if codes == [text]:
            explainer.code(text)
        else:
            _listing(codes)
    elif event := _event(text):
        _Explainer(config).line(event)
    elif " " in text:
        raise CommandError("gpuhealth does not know this log line")
    else:
        from gpuhealth.monitors.registry import known_codes

        raise CommandError(
            f"{printable(text)!r} is not an XID, SXid or finding code{did_you_mean(text.lower(), known_codes())}"
        )


def _codes(text: str) -> list[str]:
    """The finding codes that the text selects: one code, those of a pattern, or those of a subject."""
    from gpuhealth.monitors.registry import known_codes

    known = known_codes()
    if text in known:
        return [text]
    return [code for code in known if fnmatchcase(code, text) or code.startswith(f"{text}.")]


def _event(text: str) -> KernelEvent | None:
    """The event of a log line, or the last event of several lines; None where there is none."""
    from gpuhealth.kernel_log.formats import KernelLogText
    from gpuhealth.monitors.registry import kernel_log_parser

    # Pasted through a shell or a chat, a line may have lost the format of a log; the message is still in it.
    message = re.search(r"NVRM: .*|nvidia-nvswitch\d+: .*|(?<=kernel: ).*", text)
    for lines in (text.splitlines(), [message[0]] if message else []):
        log = KernelLogText(kernel_log_parser())
        events = [found.event for found in log.events(lines)]
        if events:
            return events[-1]
        if log.of_users:
            return None  # the rest is a program's text, not a kernel message
    return None


def _listing(codes: list[str]) -> None:
    from rich.text import Text

    from gpuhealth.cli.output import align_columns
    from gpuhealth.cli.wording import STYLE
    from gpuhealth.monitors.registry import code_of

    out = console()
    known = [code_of(name) for name in codes]
    headings = align_columns([[Text(code.name, "bold"), Text(code.severity, STYLE[code.severity])] for code in known])
    for code, heading in zip(known, headings, strict=True):
        out.print(heading)
        print_labelled(out, "", code.meaning, margin=4)


class _Explainer:
    """Prints explanations, with changes by the settings."""

    def __init__(self, config: Path | None) -> None:
        self._out = console()
        self._config = config

    def numbered(self, kind: str, number: int) -> None:
        """Explain an XID or SXid by its number. Raises CommandError for one that is not in the catalogue."""
        from gpuhealth.monitors.nvidia.catalog import sxid, xid

        known = [*(xid.table() if kind == "xid" else sxid.table())]
        if number not in known:
            name = "XID" if kind == "xid" else "SXid"
            raise CommandError(
                f"{name} {number} is not in the catalogue{did_you_mean(str(number), [*map(str, known)])}"
            )
        self._facts(kind, number)

    def _facts(self, kind: str, number: int) -> None:
        from gpuhealth.monitors.nvidia.catalog import sxid, xid

        if kind == "xid":
            self._xid(xid.lookup(number))
        else:
            self._sxid(sxid.lookup(number))
        self._policy_rows(f"{kind}.{number}")

    def code(self, name: str) -> None:
        """Explain a finding code by its name."""
        from gpuhealth.monitors.registry import code_of

        if match := _NUMBER.fullmatch(name):
            self.numbered(match[1].lower(), int(match[2]))
            return
        code = code_of(name)
        self._title(name, "")
        self._row("meaning", code.meaning)
        self._row("action", f"{code.advice} [{code.action}]")
        self._policy_rows(name)

    def line(self, event: KernelEvent) -> None:
        """Explain a kernel-log line: first the line itself, then the XID, SXid or finding code behind it."""
        self._title(printable(event.line), "", "dim")
        self._row("meaning", printable(event.meaning))
        self._row("severity", f"{event.severity} [{event.action}]")
        self._row("device", f"PCI {printable(event.pci)}" if event.pci else "")
        process = " ".join([event.process or "", f"(pid {event.pid})" if event.pid else ""]).strip()
        self._row("process", printable(process))
        self._row(*_effect_of_line(event))
        self._out.print()
        if event.code is not None and event.kind in ("xid", "sxid"):
            self._facts(event.kind, event.code)  # also for one that is not in the catalogue
        else:
            self.code(event.finding)

    def _xid(self, facts: XidFacts) -> None:
        from gpuhealth.monitors.nvidia.catalog.xid import NVLINK

        self._title(f"XID {facts.code}", facts.mnemonic)
        self._row("meaning", f"{facts.meaning}.")
        self._row("cause", ", ".join(_CAUSES[cause] for cause in facts.causes if cause in _CAUSES))
        self._row("action", f"{facts.advice} [{facts.action}]")
        self._row("next step", f"{facts.next_step}, in NVIDIA's catalogue." if facts.next_step else "")
        if facts.code in NVLINK:
            self._row(
                "note",
                "The hex words in the log line decide the severity: explain the whole line. Where they cannot be read,"
                " it is a warning, and critical when it repeats on the same GPU.",
            )
        elif facts.program:
            self._row("note", "A program can cause it, so it never quarantines a node by itself.")
        elif facts.escalates and facts.policy.escalates:
            self._row("note", "A single one is a warning; it is critical when it repeats on the same GPU.")

    def _sxid(self, facts: SxidFacts) -> None:
        from gpuhealth.cli.wording import ACTIONS
        from gpuhealth.monitors.nvidia.catalog import sxid

        self._title(f"SXid {facts.code}", facts.mnemonic)
        self._row("meaning", f"{facts.meaning}.")
        if facts.printed in _PRINTED:
            self._row("note", f"The driver logs it as {_PRINTED[facts.printed]}; the logged word decides the severity.")
        _, action = sxid.assess(facts.code, facts.printed)
        advice = facts.advice if action is facts.action else f"{ACTIONS[action].capitalize()}."
        self._row("action", f"{advice} [{action}]")

    def _policy_rows(self, name: str) -> None:
        from gpuhealth.monitors.registry import code_of

        code, policy = code_of(name), self._policy(name)
        changed = _changes(policy)
        self._row("finding", f"{name}: {_effects(code)}{' (default)' if changed else ''}.")
        self._row("clears", f"when {code.clears_when}.")
        self._row("your policy", ", ".join(f"{key}: {json.dumps(value)}" for key, value in changed.items()))
        example = f"findings: {{{name}: {{quarantine: {json.dumps(not code.quarantine)}}}}}"
        self._row("change", f"{example}  in the settings file")
        self._row("", "(or severity, drain, cordon, ignore, raise_after, clear_after)")

    def _policy(self, name: str) -> FindingPolicy | None:
        """The policy in the settings; settings that cannot be read are reported, and do not prevent the explanation."""
        if self._config is None and "GPUHEALTH_CONFIG" not in os.environ:
            return None
        try:
            return options.load_settings(self._config).policy(name)
        except CommandError as error:
            typer.echo(f"gpuhealth: {error}", err=True)
            return None

    def _title(self, name: str, rest: str, style: str = "bold") -> None:
        from rich.text import Text

        self._out.print(Text.assemble((name, style), f"  {rest}" if rest else ""))

    def _row(self, label: str, text: str) -> None:
        if text:
            print_labelled(self._out, label, text, margin=_MARGIN)


def _effect_of_line(event: KernelEvent) -> tuple[str, str]:
    """Label and text of a row for a line that does not raise its finding as usual; an empty text for one that does."""
    from datetime import UTC, datetime

    from gpuhealth.model.finding import Clean, Finding
    from gpuhealth.monitors.judge import Judge
    from gpuhealth.monitors.registry import code_of
    from gpuhealth.monitors.settings import Settings

    now = datetime.now(UTC)
    outcomes = Judge(Settings(), time=now).judge_events([event], now)  # as the agent judges it
    raised = [outcome for outcome in outcomes if isinstance(outcome, Finding) and outcome.code == event.finding]
    if raised:
        severity = raised[0].severity
        usual = code_of(event.finding).severity
        return "finding", "" if severity is usual else f"this line raises {event.finding} as {severity}."
    if any(isinstance(outcome, Clean) for outcome in outcomes):
        return "finding", f"this line clears {event.finding} of this device, if it is active."
    if event.kind == "aer":
        return "seen in", f"/sys counters: these raise {event.finding}, this line does not."
    return "finding", "none from this line."


def _changes(policy: FindingPolicy | None) -> dict[str, object]:
    """Changes of a policy to the defaults, by the name of the setting."""
    import msgspec

    if policy is None:
        return {}
    default = type(policy)()
    return {name: value for name, value in msgspec.structs.asdict(policy).items() if value != getattr(default, name)}


def _effects(code: Code) -> str:
    """Default severity of a code, and its consequences."""
    severity = str(code.severity)
    if code.raise_after:
        severity += f" once it has lasted {code.raise_after:g} s"
    if not code.quarantine:
        return f"{severity}; the node stays in service"
    condition = "" if code.severity == "critical" else "once critical, "
    how = " by a cordon" if code.cordon else ""
    return f"{severity}; {condition}the node is quarantined{how}{' and drained' if code.drain else ''}"
