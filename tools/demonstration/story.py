"""The three acts: each injects a fault, shows what the operator sees, takes it back, and sees the node return."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from testing.simnode import SimulatedNode
from testing.waiting import wait_for

from demonstration.marks import Applied, Marks, described, out_for
from demonstration.screen import Screen
from gpuhealth.kube.kinds import LEASES, REPORTS
from gpuhealth.quarantine import marks as marking

SETTINGS = {
    "interval": "1s",
    "nvml": {"warn_after": "2s", "critical_after": "4s"},
    "findings": {"*": {"clear_after": "2s"}},
}
"""Shorter than the defaults, so that nobody has to wait for minutes."""

_XID_GPU, _LINK_GPU, _LINK = 3, 5, 7
_XID = "Uncontained: LTC TAG (0x2, 0x1)."
_SCRAPE_SECONDS = 0.1
_SCRAPE_TIMEOUT_SECONDS = 10.0  # as long as Prometheus waits
_UNHEALTHY = 2  # exit code of `gpuhealth check`


class Seen(NamedTuple):
    """One act in figures: seconds until the mark was there, and from the repair until it was gone."""

    fault: str
    code: str
    marked: float
    cleared: float


class UnexpectedError(RuntimeError):
    """Something did not come as it should; the text says what."""


class Story:
    """Runs the story on one node; raises UnexpectedError, or TimeoutError for what did not happen."""

    def __init__(self, screen: Screen, node: SimulatedNode, marks: Marks) -> None:
        self._screen = screen
        self._node = node
        self._marks = marks

    def tell(self) -> list[Seen]:
        """Runs the whole story, one fault after another."""
        self._screen.heading("A healthy node")
        self._screen.say(
            f"{self._node.name}: 8 x H100, simulated below the real NVML bindings; a real agent watches over it, with"
            " a round every second (default: 10 s). Shorter than by default, too: a hang is critical after 4 s (60 s),"
            " and 2 s of clean readings end a finding (30 s and more)."
        )
        self._screen.say(
            "Of what kubectl shows, here are the lines that matter; it need not be installed. Uuids are cut short."
        )
        self._healthy()
        self._show_marks()
        return [self._kernel_line(), self._link_down(), self._driver_hangs()]

    # -- the acts ------------------------------------------------------------------------------------------------------

    def _kernel_line(self) -> Seen:
        gpu = _XID_GPU
        self._screen.heading("Fault 1: XID 95 in the kernel log")
        self._screen.say(f"GPU {gpu} has a memory error that it could not contain. The driver prints:")
        line = f"NVRM: Xid (PCI:{self._node.pci(gpu)}): 95, pid=7194, name=python, {_XID}"
        began = time.monotonic()
        self._node.kernel_says(line)
        marked = self._marked("xid.95", began)
        self._screen.command("dmesg | tail -1", [line])
        self._screen.say(f"From the line to the taint: {span(marked)}. Kernel lines are acted on when they come.")
        self._show_log("xid.95")
        self._show_marks()
        if isinstance(self._marks, Applied):
            places = self._marks.table(LEASES, "gpuhealth")
            self._screen.say("The node holds the one slot that the QuarantineBudget (maxUnavailable: 1) has:")
            self._screen.command("kubectl get lease -n gpuhealth", self._screen.table(places))
        self._screen.say("The driver asks for a reset of the GPU, as it does after this XID:")
        self._node.driver.inject("recovery_action", gpu=gpu, value=1)
        wait_for("gpu.recovery_action", lambda: "gpu.recovery_action" in self._node.findings())
        self._show_check("check", "gpu.recovery_action", "xid.95")
        self._show_metrics("node_healthy", "finding{", "xid_errors_total")
        repaired = self._repair(
            f"The operator resets GPU {gpu}: its recovery action is back to none, and that is the evidence that ends"
            " the finding. Silence would not.",
            lambda: self._node.driver.clear("recovery_action", gpu=gpu),
        )
        return Seen("XID 95 in the kernel log", "xid.95", marked, self._returned("xid.95", repaired))

    def _link_down(self) -> Seen:
        gpu, code = _LINK_GPU, "nvlink.down"
        uuid = self._node.driver.text(f"gpu{gpu}.uuid")
        self._screen.heading(f"Fault 2: NVLink {_LINK} of GPU {gpu} goes down")
        self._screen.say("Nothing is logged. Only NVML reports it, in the next round.")
        began = time.monotonic()
        self._node.driver.inject("nvlink_down", gpu=gpu, link=_LINK)
        marked = self._marked(code, began)
        self._screen.say(f"From the fault to the taint: {span(marked)}.")
        self._show_log(code)
        self._show_marks()
        self._show_check("check --since 1s   # of the kernel log: the XID of before is over", code)
        self._show_metrics("node_healthy", "finding{", f'nvlink_up{{gpu="{uuid}",link="{_LINK}"}}')
        repaired = self._repair(
            "The link is trained again, and is read clean.",
            lambda: self._node.driver.clear("nvlink_down", gpu=gpu),
        )
        return Seen(f"NVLink {_LINK} of GPU {gpu} down", code, marked, self._returned(code, repaired))

    def _driver_hangs(self) -> Seen:
        code = "driver.unresponsive"
        self._screen.heading("Fault 3: the driver hangs")
        self._screen.say("From now on no NVML call returns, whoever makes it. The agent does not hang with it.")
        with _Scrapes(self._node) as scrapes:
            began = time.monotonic()
            self._node.driver.inject("hang")
            marked = self._marked(code, began)
            self._screen.say(f"From the hang to the cordon: {span(marked)}, of which 4 s are the limit.")
            self._show_log(code)
            self._show_marks()
            self._show_metrics("node_healthy", "finding{", "agent_nvml_seconds", "agent_nvml_process")
        if scrapes.failed or not scrapes.seconds:
            raise UnexpectedError(f"{scrapes.failed} of {len(scrapes.seconds)} scrapes failed during the hang")
        self._screen.say(
            f"Meanwhile /metrics was scraped {len(scrapes.seconds)} times: all answered, the slowest within"
            f" {span(max(scrapes.seconds))}."
        )
        repaired = self._repair("The driver comes back, and every call returns.", self._node.driver.release)
        return Seen("The driver hangs", code, marked, self._returned(code, repaired))

    # -- what is waited for --------------------------------------------------------------------------------------------

    def _marked(self, code: str, began: float) -> float:
        """Waits for the taint or cordon and the False condition of a finding: seconds until the taint or cordon."""
        out = self._marks.wait(f"the node out for {code}", lambda node: out_for(node) == code)
        self._marks.wait("condition GPUHealthy=False", lambda node: _condition(node) == "False")
        if isinstance(marks := self._marks, Applied):
            wait_for("the report", lambda: marks.report().get("quarantine", {}).get("code") == code)
        return out - began

    def _repair(self, text: str, repair: Callable[[], None]) -> float:
        self._screen.say(text)
        repair()
        return time.monotonic()

    def _returned(self, code: str, repaired: float) -> float:
        """Waits until nothing is left of a finding: seconds until then."""
        cleared = self._healthy() - repaired
        self._show_log(code, "finding cleared")
        self._show_marks()
        self._screen.say(f"Back in service {span(cleared)} after the repair.")
        return cleared

    def _healthy(self) -> float:
        """Waits until the node is healthy and unmarked, and returns when that was."""
        try:
            wait_for("health", lambda: not self._node.findings() and self._node.metric("gpuhealth_node_healthy") == 1)
        except TimeoutError:
            found = ", ".join(sorted(self._node.findings())) or "nothing"
            raise UnexpectedError(f"the node is not healthy again; the agent still finds: {found}") from None
        self._marks.wait("the node back in service", lambda node: out_for(node) is None)
        at = self._marks.wait("condition GPUHealthy=True", lambda node: _condition(node) == "True")
        if isinstance(marks := self._marks, Applied):
            wait_for("a healthy report", lambda: marks.report().get("verdict") == "healthy")
        return at

    # -- what is shown -------------------------------------------------------------------------------------------------

    def _show_marks(self) -> None:
        self._screen.command(
            f"kubectl describe node {self._node.name}   # {self._marks.where}", described(self._marks.node)
        )
        if isinstance(self._marks, Applied):
            self._screen.command("kubectl get ghr", self._screen.table(self._marks.table(REPORTS)))

    def _show_check(self, words: str, *codes: str) -> None:
        """What `gpuhealth check` finds, which must be these codes among others."""
        command, _, _ = words.partition("#")
        done = self._node.command(*command.split())
        if done.returncode != _UNHEALTHY or any(code not in done.stdout for code in codes):
            raise UnexpectedError(
                f"gpuhealth {command} ended with {done.returncode}; it should have named {' and '.join(codes)}"
                f" and ended with {_UNHEALTHY}:\n{done.stdout}{done.stderr}"
            )
        self._screen.command(f"gpuhealth {words}", done.stdout)

    def _show_metrics(self, *beginnings: str) -> None:
        wanted = tuple(f"gpuhealth_{beginning}" for beginning in beginnings)
        samples = [line for line in self._node.get("/metrics")[1].splitlines() if line.startswith(wanted)]
        self._screen.command("curl -s $NODE:9475/metrics", samples)

    def _show_log(self, code: str, *events: str) -> None:
        """The agent's last word on a finding."""
        wanted = events or ("finding raised", "finding changed")

        def logged() -> str | None:
            lines = [line for line in self._node.log() if line.get("code") == code and line["event"] in wanted]
            return json.dumps(lines[-1]) if lines else None

        self._screen.command("kubectl logs -n gpuhealth $AGENT", [wait_for(f"{code} in the agent's log", logged)])


class _Scrapes:
    """Scrapes the agent as Prometheus does, only more often."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._scrape, daemon=True)
        self.seconds: list[float] = []
        self.failed = 0

    def __enter__(self) -> _Scrapes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _scrape(self) -> None:
        while not self._stop.wait(_SCRAPE_SECONDS):
            began = time.monotonic()
            self.failed += self._node.get("/metrics", seconds=_SCRAPE_TIMEOUT_SECONDS)[0] != 200
            self.seconds.append(time.monotonic() - began)


def _condition(node: marking.Object) -> str | None:
    return (marking.condition(node) or {}).get("status")


def span(seconds: float) -> str:
    """A time for people."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
