"""Findings over time: what is raised, what has cleared, and what follows for the node.

Pure: outcomes, the time and the boot id come in, changes and a verdict come out. A finding is raised when it has held
for its `raise_after`, and ends by its own rule only: read clean for a while, recovery action back to none, a new boot,
not repeated. A check that could not be made neither raises nor ends anything; an essential one makes unknown.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta

import msgspec

from gpuhealth import monitors as checks
from gpuhealth.model import causes
from gpuhealth.model.causes import Cause
from gpuhealth.model.code import Clears, Code, Rule
from gpuhealth.model.coverage import Key, Measured
from gpuhealth.model.finding import Clean, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.history import History
from gpuhealth.model.lost_memory import MEMORY_LOST
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.model.tracker_state import Ledger as Ledger
from gpuhealth.model.tracker_state import Tracked, is_remembered, note_end
from gpuhealth.model.verdict import GpuVerdict, MigVerdict, State, Verdict
from gpuhealth.monitors.burnin_results import checks as burnin
from gpuhealth.monitors.nvidia.catalog.xid import RECOVERY_ACTION
from gpuhealth.monitors.nvidia.checks.rule import known_gpus
from gpuhealth.monitors.nvidia.readings import GpuReadings, Release
from gpuhealth.monitors.readings import NodeReadings
from gpuhealth.runtime.settings import FindingPolicy, Settings

# A GPU that asked for recovery and no longer does has been reset: this ends what only a reset can end.
_DRIVERS_WORD = f"xid.{RECOVERY_ACTION}"
_RECOVERY_SIGNALS = ("gpu.recovery_action", "gpu.reset_required", _DRIVERS_WORD)

_REBOOT_ENDS = (Clears.RECOVERY, Clears.REBOOT, Clears.PROVEN)
_TEST_ENDS = (Clears.TESTED, Clears.PROVEN)
_READ_AGAIN = (Clears.REREAD, Clears.PASSED)
"""What is found anew in every round for as long as it is so."""


class ChangeKind(enum.StrEnum):
    """What happened to a finding."""

    RAISED = "raised"
    CHANGED = "changed"  # its severity
    CLEARED = "cleared"


class Change(msgspec.Struct, frozen=True):
    """A finding was raised, changed its severity or cleared; `reason` is the evidence for a clearing."""

    kind: ChangeKind
    finding: Finding
    time: datetime
    reason: str = ""


class Quarantine(msgspec.Struct, frozen=True):
    """Why the node should be out of service, worst first, and whether its pods should be moved."""

    findings: tuple[Finding, ...] = ()
    drain: bool = False
    causes: tuple[Cause, ...] = ()  # the same, as the Node's record says it


class Findings:
    """The findings of one node. `one_look`: nothing to wait for, every reading counts at once."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger | None = None,
        node_labels: dict[str, str] | None = None,
        one_look: bool = False,
    ) -> None:
        self.measured = Measured(ledger.measured if ledger else None)
        self._one_look = one_look
        self._tracked: dict[Key, Tracked] = {
            (tracked.finding.code, tracked.finding.component): tracked
            for tracked in (ledger.tracked if ledger else [])
            if checks.exists(tracked.finding.code)  # another version's may not
        }
        self._restored = ledger.restored if ledger else None
        self._ended = ledger.ended if ledger else []
        self._names: dict[str, str] = {}  # uuids by what a GPU was known by before it told its own
        self.configure(settings, node_labels or {})

    def configure(self, settings: Settings, node_labels: dict[str, str]) -> None:
        """Takes new settings or node labels; they hold from the next round on."""
        self._settings, self._node_labels = settings, node_labels
        self._policies: dict[str, FindingPolicy] = {}

    def ledger(self) -> Ledger:
        """What to remember."""
        return Ledger(list(self._tracked.values()), self._restored, self.measured.whole, self._ended)

    def shift(self, seconds: float) -> None:
        """The clock was set by so many seconds."""
        self.ledger().shift(seconds)
        self.measured.shift(timedelta(seconds=seconds))

    def attribute(self, names: dict[str, str]) -> None:
        """Names components anew: a GPU that was known by its address or index when a finding came has told its uuid."""
        self._names |= names
        for key, tracked in list(self._tracked.items()):
            if (uuid := names.get(key[1].removesuffix(".0"))) and uuid != key[1]:
                del self._tracked[key]
                tracked.finding = msgspec.structs.replace(tracked.finding, component=uuid, gpu=uuid)
                self._tracked.setdefault((key[0], uuid), tracked)

    def active(self) -> tuple[Finding, ...]:
        """The raised findings, worst and oldest first."""
        raised = (tracked.finding for tracked in self._tracked.values() if tracked.raised)
        return tuple(sorted(raised, key=lambda finding: (-finding.severity.rank, finding.first_seen, finding.code)))

    def take_round(self, outcomes: Iterable[Outcome], now: datetime, boot_id: str) -> list[Change]:
        """Takes the outcomes of a whole round: what it could not measure is no longer covered."""
        outcomes = list(outcomes)
        self.measured.begin_round(outcomes, now)
        return self.take(outcomes, now, boot_id)

    def take(self, outcomes: Iterable[Outcome], now: datetime, boot_id: str) -> list[Change]:
        """Takes outcomes of a part of the checks, such as those of kernel-log events."""
        out = self._out()
        changes: list[Change] = []
        for outcome in outcomes:
            key = (outcome.code, outcome.component)
            self.measured.take(outcome, now)
            if isinstance(outcome, NotChecked):
                if tracked := self._tracked.get(key):
                    tracked.clean_since = None  # not known to be clean any more
                    unseen = (now - tracked.finding.last_seen).total_seconds()
                    if not tracked.raised and unseen > self._rule(tracked.finding).raise_after:
                        del self._tracked[key]  # not known to have held: should it be seen again, it begins anew
            elif isinstance(outcome, Clean):
                changes += self._clean(key, now)
            elif not self._policy(outcome.code).ignore:
                changes += self._found(key, outcome, now, boot_id)
        changes += self._found_again(out, now)
        changes += self._expired(now, boot_id)
        return changes + self._require_tests(out, now, boot_id)

    def settle(self, readings: NodeReadings, history: History) -> list[Change]:
        """What ends by something else than its own check: its GPU is gone for good, or the burn-in asked for passed."""
        out, now = self._out(), readings.time
        gpus = {gpu.component for gpu in known_gpus(readings, history)}
        named = {
            tracked.finding.gpu
            for tracked in self._tracked.values()
            if tracked.finding.gpu.startswith("GPU-")
            or (tracked.finding.gpu and self._clears(tracked) is Clears.REREAD)
        }
        gone = named - gpus if _is_complete(readings) else set()
        changes = [
            self._cleared(key, now, "the GPU is no longer in the node")
            for key, tracked in list(self._tracked.items())
            if tracked.finding.gpu in gone
            # With the memory of a fault that of the node's GPUs may be lost, too: only a boot can have changed them.
            and not (tracked.recalled and tracked.boot_id == readings.boot_id)
        ]
        runs = () if isinstance(readings.burnin, Missing) else readings.burnin.runs
        for key, tracked in list(self._tracked.items()):
            since, gpu = tracked.finding.last_seen, tracked.finding.gpu
            wanted = {gpu} if gpu else gpus
            passed = {each for run in runs if run.started > since for each in wanted if run.passed_on(each)}
            if self._clears(tracked) in _TEST_ENDS and wanted == passed != set():
                changes.append(self._cleared(key, now, "a burn-in has passed"))
                out.pop(key, None)  # it asks for no other one
        return changes + self._require_tests(out, now, readings.boot_id, gone)

    def dismiss(self, code: str, now: datetime) -> list[Change]:
        """A person says that it is enough: ends the findings of a code."""
        return [self._cleared(key, now, "a person says so") for key in list(self._tracked) if key[0] == code]

    def _out(self) -> dict[Key, Finding]:
        """The findings for which the node should be out of service."""
        return {(each.code, each.component): each for each in self.active() if self._rule(each).quarantines(each)}

    def _require_tests(
        self, before: dict[Key, Finding], now: datetime, boot_id: str, gone: Collection[str] = ()
    ) -> list[Change]:
        """What takes the place of findings that no longer keep the node out of service, where the settings say so.

        A test that failed asks for one that passes by itself, unless its GPU was replaced: then all are to be tested.
        """
        changes, still = [], self._out()
        for key, ended in before.items():
            rule, replaced = self._rule(ended), ended.gpu in gone
            wanted = rule.policy.test_before_return
            wanted = self._settings.quarantine.test_before_return if wanted is None else wanted
            if key in still or not wanted or (rule.code.clears in (Clears.PASSED, Clears.TESTED) and not replaced):
                continue
            gpu = GpuReadings(-1, uuid=ended.gpu) if ended.gpu and not replaced else None
            message = f"{ended.code} has cleared; a burn-in that passes is awaited before the node returns"
            awaited = burnin.REQUIRED.found(gpu, message, now=now, source=ended.code, reading=ended.message)
            changes += self._found((awaited.code, awaited.component), awaited, now, boot_id)
        return changes

    def _policy(self, name: str) -> FindingPolicy:
        if name not in self._policies:
            self._policies[name] = self._settings.policy(name, self._node_labels)
        return self._policies[name]

    def _rule(self, finding: Finding) -> Rule:
        return Rule(checks.code_of(finding, self._settings), self._policy(finding.code))

    def _found(self, key: Key, finding: Finding, now: datetime, boot_id: str) -> list[Change]:
        policy = self._policy(finding.code)
        if policy.severity is not None:
            finding = msgspec.structs.replace(finding, severity=policy.severity)
        if policy.clear_after is not None:
            code = msgspec.structs.replace(self._rule(finding).code, clear_after=policy.clear_after)
            finding = msgspec.structs.replace(finding, clears_when=code.clears_when)
        tracked = self._tracked.get(key)
        if tracked is None:
            first = msgspec.structs.replace(finding, first_seen=now)
            tracked = self._tracked[key] = Tracked(first, raised=False, boot_id=boot_id)
        before = tracked.finding
        worst = max(before.severity, finding.severity, key=lambda each: each.rank)
        reread = self._rule(finding).code.clears is Clears.REREAD
        severity = finding.severity if reread else worst
        tracked.finding = msgspec.structs.replace(
            finding, severity=severity, first_seen=before.first_seen, last_seen=now
        )
        tracked.clean_since, tracked.boot_id = None, boot_id
        if finding.code in _RECOVERY_SIGNALS:
            for other in self._tracked.values():
                other.recovery_seen |= other.finding.gpu == finding.gpu
        if not tracked.raised:
            held = (now - before.first_seen).total_seconds()
            if not self._one_look and held < self._rule(tracked.finding).raise_after:
                return []
            tracked.raised = True
            return [Change(ChangeKind.RAISED, tracked.finding, now)]
        if severity is not before.severity:
            return [Change(ChangeKind.CHANGED, tracked.finding, now, f"was {before.severity}")]
        return []

    def _clean(self, key: Key, now: datetime) -> list[Change]:
        tracked = self._tracked.get(key)
        if tracked and key[0] == _DRIVERS_WORD:  # said once, when it is so
            return [self._cleared(key, now, "the driver asks for no recovery any more"), *self._recovered(key, now)]
        if tracked is None or self._clears(tracked) not in (*_READ_AGAIN, Clears.LOGGED):
            return []
        if not tracked.raised:
            del self._tracked[key]
            return []
        tracked.clean_since = tracked.clean_since or now
        if self._clears(tracked) is Clears.PASSED:
            return [self._cleared(key, now, "the test has passed")]
        if self._clears(tracked) is Clears.LOGGED:
            return [self._cleared(key, now, "the kernel log reports its end")]
        clear_after = self._rule(tracked.finding).clear_after
        if (now - tracked.clean_since).total_seconds() < clear_after and self._is_read(key, tracked):
            return []  # a word of the kernel on what no round reads will not be said twice
        changes = [self._cleared(key, now, f"read clean for {clear_after:g} s")]
        return changes + self._recovered(key, now) if key[0] in _RECOVERY_SIGNALS else changes

    def _recovered(self, signal: Key, now: datetime) -> list[Change]:
        """What only a reset could end, once the signal that it was asked for has cleared."""
        return [
            self._cleared(key, now, f"{signal[0]} of the GPU has cleared: it was reset")
            for key, latched in list(self._tracked.items())
            if latched.finding.gpu == signal[1] and latched.recovery_seen and self._clears(latched) is Clears.RECOVERY
        ]

    def _expired(self, now: datetime, boot_id: str) -> list[Change]:
        """What ends by a new boot or by not being repeated."""
        changes = []
        for key, tracked in list(self._tracked.items()):
            clears = self._clears(tracked)
            if clears in _REBOOT_ENDS and "" not in (boot_id, tracked.boot_id) and tracked.boot_id != boot_id:
                changes.append(self._cleared(key, now, "the node has rebooted"))
            elif clears in (Clears.EXPIRY, Clears.LOGGED):
                quiet = (now - tracked.finding.last_seen).total_seconds()
                clear_after = self._rule(tracked.finding).clear_after
                if quiet >= clear_after:
                    changes.append(self._cleared(key, now, f"not repeated for {clear_after:g} s"))
        return changes

    def restore(self, when: datetime, now: datetime) -> list[Change]:
        """A person declared the node well: what no round reads again and was last seen before that is over.

        Once for each `when`: a person's clock that is fast must not end what comes later.
        """
        if when == self._restored:
            return []
        self._restored = when
        return [
            self._cleared(key, now, f"a person has declared the node well ({when:%Y-%m-%d %H:%M:%SZ})")
            for key, tracked in list(self._tracked.items())
            if tracked.raised and tracked.finding.last_seen <= when and not self._is_read(key, tracked)
        ]

    def _is_read(self, key: Key, tracked: Tracked) -> bool:
        """Whether its end will be read: that of a failed test is, and of what the last round had an outcome for."""
        clears = self._clears(tracked)
        return clears is Clears.PASSED or (clears is Clears.REREAD and self.measured.is_looked_for(key))

    def _clears(self, tracked: Tracked) -> Clears:
        return self._rule(tracked.finding).code.clears

    def recall(
        self, record: Sequence[Cause], out_since: datetime, restored: datetime | None, now: datetime, boot_id: str
    ) -> list[Change]:
        """Takes up why the node is out by its own record, as far as nobody here remembers what became of that.

        `restored` is when a person last declared the node well, as the Node says now.
        """
        out = self._out()
        renamed = [
            msgspec.structs.replace(each, gpu=self._names.get(each.gpu.removesuffix(".0"), each.gpu)) for each in record
        ]
        known = self._tracked.values()
        lost = [cause for cause in renamed if not is_remembered(cause, known, out.values(), self._ended)]
        changes: list[Change] = []
        for gpu, tested in dict.fromkeys((cause.gpu, causes.needs_test(cause)) for cause in lost):
            alike = [cause for cause in lost if (cause.gpu, causes.needs_test(cause)) == (gpu, tested)]
            changes += self._recalled(burnin.REQUIRED if tested else MEMORY_LOST, alike, out_since, now, boot_id)
        if changes and self._restored is None and restored is not None and restored > now:
            self._restored = restored  # by a clock that is fast, and before or after the fault: that cannot be told
        before = out | self._out()
        return changes + self._expired(now, boot_id) + self._require_tests(before, now, boot_id)

    def _recalled(
        self, code: Code, alike: list[Cause], out_since: datetime, now: datetime, boot_id: str
    ) -> list[Change]:
        """One finding in the place of forgotten ones of the same GPU, or of the node."""
        gpu = GpuReadings(-1, uuid=alike[0].gpu) if alike[0].gpu else None
        since, codes = max(out_since, *(cause.since for cause in alike)), causes.joined(alike)
        boots = {cause.boot_id for cause in alike}
        boot = boots.pop() if len(boots) == 1 else ""  # of different ones, or of one that is not known: as if of this
        message = (
            f"out of service since {since:%Y-%m-%dT%H:%M:%SZ} for {codes}, by the Node's record;"
            " the agent does not remember that this has ended"
        )
        source = codes if code is burnin.REQUIRED else "the record on the Node"
        found = code.found(gpu, message, now=since, source=source, reading=codes)
        key = (found.code, found.component)
        if self._policy(code.name).ignore or key in self._tracked:
            return []
        self._tracked[key] = Tracked(found, raised=True, boot_id=boot or boot_id, recalled=True)
        return [Change(ChangeKind.RAISED, found, now)]

    def _found_again(self, out: dict[Key, Finding], now: datetime) -> list[Change]:
        """A forgotten fault that is found again is an ordinary finding again."""
        changes = []
        for key, tracked in list(self._tracked.items()):
            if key[0] != MEMORY_LOST.name:
                continue
            found, others = tracked.finding, [each for each in self._out().values() if each.code != key[0]]
            forgotten = causes.of(found, "")
            left = [cause for cause in forgotten if not any(causes.is_same(cause, each) for each in others)]
            if not left:
                changes.append(self._cleared(key, now, f"found again: {causes.joined(forgotten)}"))
                out.pop(key, None)  # what was found takes its place
        return changes

    def _cleared(self, key: Key, now: datetime, reason: str) -> Change:
        finding = self._tracked.pop(key).finding
        note_end(self._ended, finding, now)
        return Change(ChangeKind.CLEARED, finding, now, reason)

    def quarantine(self) -> Quarantine:
        """The findings for which the node should be out of service; none if it should not."""
        findings = self._out()
        boots = {key: self._tracked[key].boot_id for key in findings}
        record = [cause for key, finding in findings.items() for cause in causes.of(finding, boots[key])]
        return Quarantine(
            tuple(findings.values()),
            drain=any(self._rule(each).drains(each) or causes.drains(each) for each in findings.values()),
            causes=tuple(record[: causes.MOST]),
        )

    def verdict(self, readings: NodeReadings, history: History, now: datetime) -> Verdict:
        """The node's and every GPU's state; a GPU that is remembered and gone is among them."""
        findings = self.active()
        unknown = self._unknown(now, readings.release)
        gpus = [self._gpu_verdict(gpu, history, findings, unknown) for gpu in known_gpus(readings, history)]
        states = [gpu.verdict for gpu in gpus]
        named = {gpu.uuid for gpu in gpus}
        states += [_state_of(finding) for finding in findings if finding.gpu not in named]
        states += [State.UNKNOWN for component in unknown if component not in named]
        return Verdict(
            node=readings.node,
            time=now,
            verdict=State.combined(states),
            gpus=tuple(gpus),
            findings=findings,
            coverage=self.measured.coverage(),
        )

    def _unknown(self, now: datetime, release: Release | None) -> set[str]:
        """Components with an essential check that has not been measured for too long, or never.

        While the driver is released on request what was known holds, though not for ever.
        """
        patience = 0.0 if self._one_look else self._settings.unknown_after
        within = (
            release
            and release.known
            and (now - release.since).total_seconds() < self._settings.driver_release.max_duration
        )
        return self.measured.unknown(now, patience, excused=MissingReason.RELEASED if within else None)

    def _gpu_verdict(
        self, gpu: GpuReadings, history: History, findings: tuple[Finding, ...], unknown: set[str]
    ) -> GpuVerdict:
        own = [finding for finding in findings if finding.gpu == gpu.component]

        def state(concerned: list[Finding]) -> State:
            states = [_state_of(finding) for finding in concerned]
            return State.combined([State.UNKNOWN if gpu.component in unknown else State.HEALTHY, *states])

        return GpuVerdict(
            index=gpu.index,
            uuid=gpu.component,
            pci=gpu.pci if isinstance(gpu.pci, str) else "",
            model=gpu.name if isinstance(gpu.name, str) else history.baseline.models.get(gpu.component, ""),
            verdict=state(own),
            mig=tuple(
                MigVerdict(
                    mig.uuid,
                    mig.gpu_instance,
                    # What concerns the whole GPU concerns every instance on it.
                    state([finding for finding in own if finding.mig_instance in ("", mig.uuid)]),
                )
                for mig in gpu.mig_devices
            ),
        )


def _state_of(finding: Finding) -> State:
    return {
        Severity.INFO: State.HEALTHY,
        Severity.WARNING: State.DEGRADED,
        Severity.CRITICAL: State.UNHEALTHY,
    }[finding.severity]


def _is_complete(readings: NodeReadings) -> bool:
    """Whether NVML has told of every GPU which one it is."""
    nvml = readings.nvml
    if isinstance(nvml, Missing) or nvml.problem or not nvml.answered:
        return False
    return all(isinstance(gpu.uuid, str) for gpu in nvml.gpus)
