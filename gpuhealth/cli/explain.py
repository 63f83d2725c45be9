"""`gpuhealth explain`: what an XID, an SXid, a finding code or a line of the kernel log means, and what to do."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhealth.cli import options
from gpuhealth.cli.output import CommandError, console, labelled, near, printable

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


def command(
    what: Annotated[
        list[str], typer.Argument(metavar="WHAT", help="79, sxid 12028, ecc.uncorrectable, 'ecc.*', or a log line.")
    ],
    config: options.Config = None,
) -> None:
    """Explain an XID, an SXid, a finding code or a pasted log line."""
    text = " ".join(what).strip()
    if match := _NUMBER.fullmatch(text):
        number = int(match[2])
        kind = (match[1] or ("sxid" if number >= _FIRST_SXID else "xid")).lower()
        _Explained(config).numbered(kind, number)
    elif codes := _codes(text):
        explained = _Explained(config)
        if codes == [text]:
            explained.code(text)
        else:
            _listing(codes)
    elif event := _event(text):
        _Explained(config).line(event)
    elif " " in text:
        raise CommandError("this line means nothing that gpuhealth knows of")
    else:
        from gpuhealth.monitors.registry import known_codes

        raise CommandError(f"{printable(text)!r} is no XID, SXid or finding code{near(text.lower(), known_codes())}")


def _codes(text: str) -> list[str]:
    """The finding codes that the text names: one, a pattern's, or a subject's."""
    from gpuhealth.monitors.registry import known_codes

    known = known_codes()
    if text in known:
        return [text]
    return [code for code in known if fnmatchcase(code, text) or code.startswith(f"{text}.")]


def _event(text: str) -> KernelEvent | None:
    """What the line (or the lines, pasted together) says; the last that says anything."""
    from gpuhealth.kernel_log import formats as logtext
    from gpuhealth.kernel_log import user_text
    from gpuhealth.monitors.registry import kernel_log_parser

    # A line that a shell or a chat has squeezed no longer has the form of a log; what the kernel said is still in it.
    said = re.search(r"NVRM: .*|nvidia-nvswitch\d+: .*|(?<=kernel: ).*", text)
    for lines in (text.splitlines(), [said[0]] if said else []):
        log, records = kernel_log_parser(), list(logtext.records(lines))
        events = [event for record in records if (event := log.feed(record))]
        if events:
            return events[-1]
        if any(user_text.recognise(record.text) for record in records):
            return None  # the rest is text of a program, not a message of the kernel
    return None


def _listing(codes: list[str]) -> None:
    from rich.text import Text

    from gpuhealth.cli.output import columns
    from gpuhealth.cli.wording import STYLE
    from gpuhealth.monitors.registry import code_of

    out = console()
    known = [code_of(name) for name in codes]
    heads = columns([[Text(code.name, "bold"), Text(code.severity, STYLE[code.severity])] for code in known])
    for code, head in zip(known, heads, strict=True):
        out.print(head)
        labelled(out, "", code.meaning, margin=4)


class _Explained:
    """Prints explanations; knows what the configuration changes."""

    def __init__(self, config: Path | None) -> None:
        self._out = console()
        self._config = config

    def numbered(self, kind: str, number: int) -> None:
        """An XID or SXid by its number; raises CommandError for one that nobody has written down."""
        from gpuhealth.monitors.nvidia.catalog import sxid, xid

        known = [*(xid.table() if kind == "xid" else sxid.table())]
        if number not in known:
            name = "XID" if kind == "xid" else "SXid"
            raise CommandError(f"{name} {number} is not in the catalogue{near(str(number), [*map(str, known)])}")
        self._facts(kind, number)

    def _facts(self, kind: str, number: int) -> None:
        from gpuhealth.monitors.nvidia.catalog import sxid, xid

        if kind == "xid":
            self._xid(xid.lookup(number))
        else:
            self._sxid(sxid.lookup(number))
        self._what_we_do(f"{kind}.{number}")

    def code(self, name: str) -> None:
        """A finding code."""
        from gpuhealth.monitors.registry import code_of

        if match := _NUMBER.fullmatch(name):
            self.numbered(match[1].lower(), int(match[2]))
            return
        code = code_of(name)
        self._title(name, "")
        self._row("means", code.meaning)
        self._row("do", f"{code.advice} [{code.action}]")
        self._what_we_do(name)

    def line(self, event: KernelEvent) -> None:
        """A line of the kernel log: what it says by itself, then what stands behind it."""
        self._title(printable(event.line), "", "dim")
        self._row("says", f"{event.severity}: {printable(event.meaning)} [{event.action}]")
        self._row("device", f"PCI {printable(event.pci)}" if event.pci else "")
        process = " ".join([event.process or "", f"(pid {event.pid})" if event.pid else ""]).strip()
        self._row("process", printable(process))
        self._row("we", _by_itself(event))
        self._out.print()
        if event.code is not None and event.kind in ("xid", "sxid"):
            self._facts(event.kind, event.code)  # of one that is not in the catalogue too: its line was seen
        else:
            self.code(event.finding)

    def _xid(self, facts: XidFacts) -> None:
        from gpuhealth.monitors.nvidia.catalog.xid import NVLINK

        self._title(f"XID {facts.code}", facts.mnemonic)
        self._row("means", f"{facts.meaning}.")
        self._row("cause", ", ".join(_CAUSES[cause] for cause in facts.causes if cause in _CAUSES))
        self._row("do", f"{facts.advice} [{facts.action}]")
        self._row("then", f"NVIDIA's next step is {facts.next_step}." if facts.next_step else "")
        if facts.code in NVLINK:
            self._row(
                "note",
                "The hex words of its line decide how bad it is: explain the whole line. Where they cannot be read it"
                " is a warning, and critical when it repeats on the same GPU.",
            )
        elif facts.program:
            self._row("note", "A program can cause it: by itself it takes no node out of service.")
        elif facts.escalates and facts.policy.escalates:
            self._row("note", "Once it is a warning; it is critical when it repeats on the same GPU.")

    def _sxid(self, facts: SxidFacts) -> None:
        from gpuhealth.cli.wording import DO
        from gpuhealth.monitors.nvidia.catalog import sxid

        self._title(f"SXid {facts.code}", facts.mnemonic)
        self._row("means", f"{facts.meaning}.")
        if facts.printed in _PRINTED:
            self._row("driver", f"prints it as {_PRINTED[facts.printed]}; the printed word decides how bad it is.")
        _, action = sxid.assess(facts.code, facts.printed)
        advice = facts.advice if action is facts.action else f"{DO[action].capitalize()}."
        self._row("do", f"{advice} [{action}]")

    def _what_we_do(self, name: str) -> None:
        from gpuhealth.monitors.registry import code_of

        code, policy = code_of(name), self._policy(name)
        self._row("we", f"raise {name} as {_acts(code)}.")
        self._row("clears", f"when {code.clears_when}.")
        changed = _changes(policy)
        if changed:
            self._row("yours", f"Your settings say: {', '.join(f'{key}: {value}' for key, value in changed.items())}.")
        self._row(
            "change", f"findings: {{{name}: {{quarantine: {str(not code.quarantine).lower()}}}}}  in the settings file"
        )
        self._row("", "(or severity, drain, ignore, raise_after, clear_after)")

    def _policy(self, name: str) -> FindingPolicy | None:
        """What the settings change of it; settings that cannot be read must not keep anybody from an explanation."""
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
            labelled(self._out, label, text)


def _by_itself(event: KernelEvent) -> str:
    """What this line does, where that is another thing than to raise its finding; as the agent judges it."""
    from datetime import UTC, datetime

    from gpuhealth.model.finding import Clean, Finding
    from gpuhealth.monitors.judge import Judge
    from gpuhealth.monitors.registry import code_of
    from gpuhealth.monitors.settings import Settings

    now = datetime.now(UTC)
    outcomes = Judge(Settings(), time=now).judge_events([event], now)
    raised = [each for each in outcomes if isinstance(each, Finding) and each.code == event.finding]
    if raised:
        severity = raised[0].severity
        usual = code_of(event.finding).severity
        return "" if severity is usual else f"raise {event.finding} as {severity} for this line."
    if any(isinstance(each, Clean) for each in outcomes):
        return f"end {event.finding} of this device, if it was raised."
    if event.kind == "aer":
        return f"raise nothing for this line: {event.finding} comes from the counters that the kernel keeps in /sys."
    return "raise nothing for this line."


def _changes(policy: FindingPolicy | None) -> dict[str, object]:
    """What a policy changes of the defaults, by the name of the setting."""
    import msgspec

    if policy is None:
        return {}
    default = type(policy)()
    return {name: value for name, value in msgspec.structs.asdict(policy).items() if value != getattr(default, name)}


def _acts(code: Code) -> str:
    """What follows from a finding of this code, by default."""
    acts = str(code.severity)
    if code.raise_after:
        acts += f" when it has held for {code.raise_after:g} s"
    if not code.quarantine:
        return f"{acts}; the node stays in service"
    when = "" if code.severity == "critical" else " once it is critical"
    return f"{acts}; take the node out of service{when}{' and move its pods elsewhere' if code.drain else ''}"
