"""Lines of logs through `gpuhealth classify` and the reader of log files."""

from __future__ import annotations

import contextlib
import io
import random

from fuzzing import log_lines
from fuzzing.target import documents, encoded, require, require_sentence
from gpuhealth.cli import classify as command
from gpuhealth.cli.output import CommandError
from gpuhealth.kernel_log import formats
from gpuhealth.model.codes import CODES
from gpuhealth.model.finding import Action, Severity
from gpuhealth.monitors.registry import kernel_log_parser

_LINES = 128
_CANARY = b"3,999999,12345678,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=x, GPU has fallen off the bus."
_USER = b"3,999998,12345677,-;"
_SEVERITIES, _ACTIONS = set(Severity), set(Action)


class Target:
    """A case is a log of some lines, one of which is a real fault and one written by a user."""

    def make(self, chance: random.Random) -> bytes:
        """Lines in all formats."""
        lines = [log_lines.line(chance) for _ in range(_LINES)]
        lines[chance.randrange(_LINES)] = _CANARY
        lines[chance.randrange(_LINES)] = _USER + log_lines.by_user(chance)
        return b"\n".join(lines)

    def check(self, case: bytes) -> int:
        """What is printed is one JSON object a line; a fault is found among any others, and a user forges none."""
        lines = case.split(b"\n")
        text = formats.KernelLogText(kernel_log_parser())
        found = [event.described() for event in text.events(lines)]
        for item in found:
            self._check_item(item, lines)
        require(0 <= text.unread <= len(lines), "more lines were not understood than there are")
        by_number = {item["number"]: item for item in found}
        for number, line in enumerate(lines, 1):
            match = by_number.get(number)
            if line == _CANARY:
                require(match and match["finding"] == "xid.79" and match["pci"] == "0000:3b:00", "a fault is not found")
            elif line.startswith(_USER) and match is not None:
                require(match["kind"] in log_lines.FORGED_KINDS, f"a user has forged {match['finding']}")
        if len(case) % 8 == 0:
            self._check_command(case)
        return len(lines)

    def _check_item(self, item: dict[str, object], lines: list[bytes]) -> None:
        size = len(lines[int(str(item["number"])) - 1])
        encoded(item, 8 * size + 2000)
        require(CODES.exists(str(item["finding"])), f"{item['finding']} is no finding code")
        require(item["severity"] in _SEVERITIES and item["action"] in _ACTIONS, "severity or action is unknown")
        require(item["pid"] is None or isinstance(item["pid"], int), "a pid is no number")
        require(item["code"] is None or isinstance(item["code"], int), "a code is no number")

    def _check_command(self, case: bytes) -> None:
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with contextlib.redirect_stdout(output):
            try:
                command._classify(io.BufferedReader(io.BytesIO(case)), "log")
            except CommandError as error:
                require_sentence(error, "the error")
            output.flush()
        documents(output.buffer.getvalue())

    def close(self) -> None:
        """Does nothing: this target holds no file and no process."""
