"""`tools/demo` sets up a node, runs the demonstration, prints a summary and cleans up."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from kube import MissingBinariesError
from testing.plane_with_node import NODE, plane_with_node
from testing.simnode import SimulatedNode

from demonstration.marks import Applied, Marks, Printed
from demonstration.screen import Screen
from demonstration.story import SETTINGS, Seen, Story, UnexpectedError, span

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TAIL = 5  # lines of the agent's log that are shown where something did not come as expected


class InterruptedDemo(BaseException):
    """Somebody has ended the demo; like KeyboardInterrupt, nothing on the way takes it for an error."""


def main() -> int:
    """0 when everything came as expected, 1 when not, 128 and the signal's number when it was ended."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="a real kubelet instead: install, faults, removal; root")
    options = parser.parse_args()
    for number in _ENDING:
        signal.signal(number, _interrupt)
    screen = Screen()
    try:
        if options.cluster:
            from demonstration.cluster import demonstrate

            return demonstrate(screen)
        began, seen = _demonstrate(screen)
    except InterruptedDemo as interrupted:
        screen.say("Ended; the node, the agent and the control plane are gone.")
        return 128 + int(interrupted.args[0])
    except (RuntimeError, OSError) as error:  # TimeoutError is one
        screen.say(f"NOT AS EXPECTED: {error}")
        return 1
    screen.heading("What was seen")
    rows = [["FAULT", "FINDING", "MARKED AFTER", "CLEARED AFTER"]]
    rows += [[each.fault, each.code, span(each.marked), span(each.cleared)] for each in seen]
    screen.lines(screen.table(rows))
    screen.say(
        "Marked: from the fault to taint or cordon. Cleared: from the repair to their end, and that of the finding."
    )
    screen.say(f"Everything came as expected, in {time.monotonic() - began:.0f} s. Nothing of it is left behind.")
    return 0


def _demonstrate(screen: Screen) -> tuple[float, list[Seen]]:
    """When it began after the set-up, and what was seen."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpuhealth-demo-")))
        screen.say("Setting up: the simulated driver, a control plane, the agent …")
        try:
            plane, kubeconfig = stack.enter_context(plane_with_node(max_unavailable=1))
        except MissingBinariesError as missing:
            plane, kubeconfig = None, None
            screen.say(f"No control plane ({missing}). The node's marks are printed instead of applied.")
        node = SimulatedNode(folder, NODE, kubeconfig=kubeconfig, settings=SETTINGS, environment=screen.environment)
        stack.enter_context(node)
        marks: Marks = stack.enter_context(Applied(plane, NODE)) if plane else Printed(node)
        began = time.monotonic()
        try:
            return began, Story(screen, node, marks).tell()
        except (TimeoutError, UnexpectedError) as error:
            tail = "\n".join(node.log_file.read_text().splitlines()[-_TAIL:])
            raise UnexpectedError(f"{error}\n\nThe end of the agent's log:\n{tail}") from error


def _interrupt(number: int, _: FrameType | None) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # what is cleaned up now is not interrupted
    raise InterruptedDemo(number)


if __name__ == "__main__":
    sys.exit(main())
