"""Findings over time: which are raised, which have cleared, and the resulting verdict.

Pure: the input is outcomes, facts about the node and the time; the output is changes and a verdict. A finding is raised
when it has held for its `raise_after`, and ends only by its own rule: read clean for a while, recovery action back to
none, a new boot, not repeated. A check that could not be made neither raises nor ends anything; if it is essential, the
component becomes unknown.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta

import msgspec

from gpuhealth.model import causes
from gpuhealth.model.burnin_run import BurninRun
from gpuhealth.model.causes import Cause
from gpuhealth.model.codes import CODES, Clears, Code, Rule
from gpuhealth.model.component import NODE, Component, ComponentInfo, Kind
from gpuhealth.model.coverage import CoverageTracker, Key
from gpuhealth.model.finding import Clean, Finding, NotChecked, Outcome, Severity
from gpuhealth.model.missing import MissingReason
from gpuhealth.model.out_of_service import BURNIN_REQUIRED, MEMORY_LOST
from gpuhealth.model.policy import FindingPolicy
from gpuhealth.model.tracker_state import TrackedFinding, TrackerState, add_ended, is_remembered
from gpuhealth.model.verdict import ComponentVerdict, GpuVerdict, MigVerdict, State, Verdict

_ENDED_BY_REBOOT = (Clears.RECOVERY, Clears.REBOOT, Clears.REBOOT_OR_BURNIN)
_ENDED_BY_BURNIN = (Clears.BURNIN_PASSED, Clears.REBOOT_OR_BURNIN)
_READ_AGAIN = (Clears.CLEAN_READING, Clears.TEST_PASSED)
"""Findings that are raised again in every round while the fault lasts."""


class ChangeKind(enum.StrEnum):
    """Kind of change of a finding."""

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
    """Why the node should be out of service, worst first, and whether its pods should be evicted."""

    findings: tuple[Finding, ...] = ()
    drain: bool = False
    causes: tuple[Cause, ...] = ()  # the entries of the record on the Node for these findings


class TrackerRules(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that apply to findings."""

    policy: Callable[[str], FindingPolicy] = lambda _: FindingPolicy()  # by finding code
    code_of: Callable[[Finding], Code] = CODES.of
    unknown_after: float = 120.0  # seconds without an essential check after which a component is unknown
    test_before_return: bool = False  # a burn-in must pass before the node returns to service


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a round that the tracker needs in addition to the outcomes."""

    node: str
    time: datetime
    boot_id: str
    components: tuple[ComponentInfo, ...] = ()  # present and remembered ones
    complete: frozenset[Kind] = frozenset()  # kinds whose components were all listed: an absent component is gone
    burnins: tuple[BurninRun, ...] = ()  # burn-in results stored on the node
    excused: MissingReason | None = None  # why essential checks may be missing without making anything unknown

    @property
    def gpus(self) -> tuple[ComponentInfo, ...]:
        """The GPUs among the components."""
        return tuple(info for info in self.components if info.component.kind is Kind.GPU)


class FindingTracker:
    """The findings of one node. With `one_look` every reading counts at once, without waiting."""

    def __init__(
        self, rules: TrackerRules | None = None, state: TrackerState | None = None, one_look: bool = False
    ) -> None:
        state = state or TrackerState()
        self.coverage = CoverageTracker(state.last_complete)
        self._one_look = one_look
        self._tracked: dict[Key, TrackedFinding] = {
            (tracked.finding.code, tracked.finding.component): tracked
            for tracked in state.tracked
            if CODES.exists(tracked.finding.code)  # a code of another version may not
        }
        self._restored = state.restored
        self._ended = state.ended
        self._aliases: dict[str, str] = {}
        self.configure(rules or TrackerRules())

    def configure(self, rules: TrackerRules) -> None:
        """Applies new rules from the next round on."""
        self._rules = rules
        self._policies: dict[str, FindingPolicy] = {}

    def state(self) -> TrackerState:
        """State to keep across a restart."""
        return TrackerState(list(self._tracked.values()), self._restored, self.coverage.last_complete, self._ended)

    def shift(self, seconds: float) -> None:
        """Shifts every time by the seconds by which the wall clock was set."""
        self.state().shift(seconds)
        self.coverage.shift(timedelta(seconds=seconds))

    def set_gpu_aliases(self, aliases: dict[str, str]) -> None:
        """Renames GPUs from their earlier names (PCI address, slot, index) to their uuids."""
        self._aliases |= aliases
        for key, tracked in list(self._tracked.items()):
            component = self._renamed(key[1])
            if component != key[1]:
                del self._tracked[key]
                tracked.finding = msgspec.structs.replace(tracked.finding, component=component)
                self._tracked.setdefault((key[0], component), tracked)

    def _renamed(self, component: Component) -> Component:
        if component.kind is Kind.GPU:
            return Component(Kind.GPU, self._aliases.get(component.id, component.id))
        if component.parent in self._aliases:
            return msgspec.structs.replace(component, parent=self._aliases[component.parent])
        return component

    def active(self) -> tuple[Finding, ...]:
        """The raised findings, worst and oldest first."""
        raised = (tracked.finding for tracked in self._tracked.values() if tracked.raised)
        return tuple(sorted(raised, key=lambda finding: (-finding.severity.rank, finding.first_seen, finding.code)))

    def apply_round(self, source: str, outcomes: Iterable[Outcome], facts: NodeFacts) -> list[Change]:
        """Applies the outcomes of one monitor's round, and ends findings that the facts of the round end."""
        outcomes = list(outcomes)
        self.coverage.begin_round(source, outcomes, facts.time)
        changes = self.apply(outcomes, facts.time, facts.boot_id)
        return changes + self.resolve(facts)

    def apply(self, outcomes: Iterable[Outcome], now: datetime, boot_id: str, *, dated: bool = False) -> list[Change]:
        """Applies outcomes of a part of the checks.

        `dated` findings count from their own time and not from now: those of kernel-log events, which are old where no
        agent ran when they were logged.
        """
        out = self._out()
        changes: list[Change] = []
        for outcome in outcomes:
            key = (outcome.code, outcome.component)
            self.coverage.add(outcome, now)
            if isinstance(outcome, NotChecked):
                self._not_checked(key, now)
            elif isinstance(outcome, Clean):
                changes += self._clean(key, now)
            elif not self._policy(outcome.code).ignore:
                changes += self._found(key, outcome, now, boot_id, seen=outcome.last_seen if dated else now)
        changes += self._found_again(out, now)
        changes += self._expired(now, boot_id)
        return changes + self._require_burnins(out, now, boot_id)

    def apply_earlier(self, outcomes: Iterable[Outcome], now: datetime, boot_id: str) -> list[Change]:
        """Applies findings of events from before the first round, each at the time of its event.

        Left out are those that an earlier agent tracks or has ended since.
        """
        changes: list[Change] = []
        known = set(self._tracked)
        for finding in outcomes:
            if not isinstance(finding, Finding):
                continue
            key, when = (finding.code, finding.component), min(finding.last_seen, now)
            ended = any((past.code, past.component) == key and past.time >= when for past in self._ended)
            if key not in known and not ended:
                changes += self.apply([finding], when, boot_id)
        return [msgspec.structs.replace(change, time=now) for change in changes]

    def resolve(self, facts: NodeFacts) -> list[Change]:
        """Ends findings for reasons other than their own check: the component is gone, or a burn-in has passed."""
        out, now = self._out(), facts.time
        changes = [self._cleared(key, now, _gone_reason(key[1])) for key in self._gone(facts)]
        gone = {change.finding.component for change in changes}
        gpus = {info.component.id for info in facts.gpus}
        for key, tracked in list(self._tracked.items()):
            since, gpu = tracked.finding.last_seen, key[1].gpu
            wanted = {gpu} if gpu else gpus
            later = [run for run in facts.burnins if run.started > since]
            passed = {uuid for uuid in wanted if any(run.passed_on(uuid) for run in later)}
            if passed and passed == wanted and self._clears(tracked) in _ENDED_BY_BURNIN:
                changes.append(self._cleared(key, now, "a burn-in has passed"))
                out.pop(key, None)  # it does not require another one
        return changes + self._require_burnins(out, now, facts.boot_id, gone)

    def _gone(self, facts: NodeFacts) -> list[Key]:
        """Findings on components that are no longer in the node."""
        present = {info.component for info in facts.components}
        gone = []
        for key, tracked in self._tracked.items():
            component = key[1]
            owner = Component(Kind.GPU, component.gpu) if component.gpu else component
            if owner.kind not in facts.complete or owner in present:
                continue
            # A GPU known only by its address may be one of the present ones. A finding that is re-read ends by itself
            # there, and a fault that only the kernel log reported once can be about no other component.
            unnamed = owner.kind is Kind.GPU and not owner.id.startswith("GPU-")
            if unnamed and self._clears(tracked) is not Clears.CLEAN_READING:
                continue
            # If the memory of a fault was lost, so may be that of components: only a reboot can have changed them.
            if not (tracked.recalled and tracked.boot_id == facts.boot_id):
                gone.append(key)
        return gone

    def dismiss(self, code: str, now: datetime) -> list[Change]:
        """Ends all findings of a code on a person's decision."""
        return [self._cleared(key, now, "dismissed by a person") for key in list(self._tracked) if key[0] == code]

    def _out(self) -> dict[Key, Finding]:
        """The findings for which the node should be out of service."""
        return {
            (finding.code, finding.component): finding
            for finding in self.active()
            if self._rule(finding).quarantines(finding)
        }

    def _require_burnins(
        self, before: dict[Key, Finding], now: datetime, boot_id: str, gone: Collection[Component] = ()
    ) -> list[Change]:
        """Raises burnin.required in place of findings that no longer quarantine, if the settings require a burn-in.

        A failed test clears only when it passes, unless its GPU was replaced: then all GPUs must be tested.
        """
        changes, still = [], self._out()
        for key, ended in before.items():
            rule, replaced = self._rule(ended), ended.component in gone
            wanted = rule.policy.test_before_return
            if wanted is None:
                wanted = self._rules.test_before_return
            needs_own_test = rule.code.clears in (Clears.TEST_PASSED, Clears.BURNIN_PASSED) and not replaced
            if key in still or not wanted or needs_own_test:
                continue
            component = NODE if replaced else _gpu_or_node(ended.component)
            message = f"{ended.code} has cleared; a burn-in that passes is awaited before the node returns"
            awaited = BURNIN_REQUIRED.found(
                component, message, now=now, source=ended.code, reading=ended.message, stands_for=(ended.code,)
            )
            changes += self._found((awaited.code, awaited.component), awaited, now, boot_id)
        return changes

    def _policy(self, name: str) -> FindingPolicy:
        if name not in self._policies:
            self._policies[name] = self._rules.policy(name)
        return self._policies[name]

    def _cordons(self, name: str) -> bool:
        return CODES.exists(name) and Rule(CODES.get(name), self._policy(name)).cordons

    def _rule(self, finding: Finding) -> Rule:
        return Rule(self._rules.code_of(finding), self._policy(finding.code))

    def _clears(self, tracked: TrackedFinding) -> Clears:
        return self._rules.code_of(tracked.finding).clears

    def _not_checked(self, key: Key, now: datetime) -> None:
        tracked = self._tracked.get(key)
        if tracked is None:
            return
        tracked.clean_since = None  # no longer known to be clean
        unseen = (now - tracked.finding.last_seen).total_seconds()
        if not tracked.raised and unseen > self._rule(tracked.finding).raise_after:
            del self._tracked[key]  # not known to have held: if seen again, its time starts over

    def _found(
        self, key: Key, finding: Finding, now: datetime, boot_id: str, seen: datetime | None = None
    ) -> list[Change]:
        """Tracks a finding that was seen now, or at an earlier time."""
        seen = min(seen or now, now)
        policy = self._policy(finding.code)
        if policy.severity is not None:
            finding = msgspec.structs.replace(finding, severity=policy.severity)
        code = self._rules.code_of(finding)
        if policy.clear_after is not None:
            code = msgspec.structs.replace(code, clear_after=policy.clear_after)
            finding = msgspec.structs.replace(finding, clears_when=code.clears_when)
        tracked = self._tracked.get(key)
        if tracked is None:
            first = msgspec.structs.replace(finding, first_seen=seen, last_seen=seen)
            tracked = self._tracked[key] = TrackedFinding(first, raised=False, boot_id=boot_id)
        before = tracked.finding
        worst = max(before.severity, finding.severity, key=lambda severity: severity.rank)
        severity = finding.severity if code.clears is Clears.CLEAN_READING else worst
        tracked.finding = msgspec.structs.replace(
            finding,
            severity=severity,
            first_seen=min(before.first_seen, seen),
            last_seen=max(before.last_seen, seen),
        )
        tracked.clean_since, tracked.boot_id = None, boot_id
        if code.asks_for_recovery:
            for other in self._tracked.values():
                other.recovery_seen |= other.finding.component.gpu == finding.component.gpu
        if not tracked.raised:
            held = (tracked.finding.last_seen - tracked.finding.first_seen).total_seconds()
            if not self._one_look and held < self._rule(tracked.finding).raise_after:
                return []
            tracked.raised = True
            return [Change(ChangeKind.RAISED, tracked.finding, now)]
        if severity is not before.severity:
            return [Change(ChangeKind.CHANGED, tracked.finding, now, f"was {before.severity}")]
        return []

    def _clean(self, key: Key, now: datetime) -> list[Change]:
        tracked = self._tracked.get(key)
        if tracked is None:
            return []
        rule = self._rule(tracked.finding)
        if rule.code.ends_by_log:
            return [self._cleared(key, now, "the driver no longer requests a recovery"), *self._recovered(key, now)]
        clears = rule.code.clears
        if clears not in (*_READ_AGAIN, Clears.LOGGED_END):
            return []
        if not tracked.raised:
            del self._tracked[key]
            return []
        tracked.clean_since = tracked.clean_since or now
        if clears is Clears.TEST_PASSED:
            return [self._cleared(key, now, "the test has passed")]
        if clears is Clears.LOGGED_END:
            return [self._cleared(key, now, "the kernel log reports its end")]
        # A fault that only the kernel log reported, and no round reads, cannot be read clean a second time.
        if self._will_be_read(key, tracked) and (now - tracked.clean_since).total_seconds() < rule.clear_after:
            return []
        changes = [self._cleared(key, now, f"read clean for {rule.clear_after:g} s")]
        return changes + self._recovered(key, now) if rule.code.asks_for_recovery else changes

    def _recovered(self, signal: Key, now: datetime) -> list[Change]:
        """Ends findings that only a reset can end, once the request for a reset has cleared."""
        return [
            self._cleared(key, now, f"{signal[0]} of the GPU has cleared: it was reset")
            for key, latched in list(self._tracked.items())
            if signal[1].gpu and key[1].gpu == signal[1].gpu
            if latched.recovery_seen and self._clears(latched) is Clears.RECOVERY
        ]

    def _expired(self, now: datetime, boot_id: str) -> list[Change]:
        """Ends findings that end with a new boot, and those not repeated for long enough."""
        changes = []
        for key, tracked in list(self._tracked.items()):
            clears = self._clears(tracked)
            if clears in _ENDED_BY_REBOOT and "" not in (boot_id, tracked.boot_id) and tracked.boot_id != boot_id:
                changes.append(self._cleared(key, now, "the node has rebooted"))
            elif clears in (Clears.QUIET_PERIOD, Clears.LOGGED_END):
                quiet = (now - tracked.finding.last_seen).total_seconds()
                clear_after = self._rule(tracked.finding).clear_after
                if quiet >= clear_after:
                    changes.append(self._cleared(key, now, f"not repeated for {clear_after:g} s"))
        return changes

    def restore(self, when: datetime, now: datetime) -> list[Change]:
        """Ends findings that no round re-reads and that were last seen before a person restored the node at `when`.

        Only once for each `when`: a person's fast clock must not end later findings.
        """
        if when == self._restored:
            return []
        self._restored = when
        return [
            self._cleared(key, now, f"a person has restored the node ({when:%Y-%m-%d %H:%M:%SZ})")
            for key, tracked in list(self._tracked.items())
            if tracked.raised and tracked.finding.last_seen <= when and not self._will_be_read(key, tracked)
        ]

    def _will_be_read(self, key: Key, tracked: TrackedFinding) -> bool:
        """Whether a reading will show the finding's end: for a failed test, and for keys covered by the last round."""
        clears = self._clears(tracked)
        return clears is Clears.TEST_PASSED or (clears is Clears.CLEAN_READING and self.coverage.is_looked_for(key))

    def recall(
        self, record: Sequence[Cause], out_since: datetime, restored: datetime | None, now: datetime, boot_id: str
    ) -> list[Change]:
        """Raises findings for causes in the Node's record whose outcome is not in the agent's memory.

        `restored` is when a person last restored the node, according to the Node.
        """
        out = self._out()
        renamed = [msgspec.structs.replace(cause, component=self._renamed(cause.component)) for cause in record]
        known = self._tracked.values()
        lost = [cause for cause in renamed if not is_remembered(cause, known, out.values(), self._ended)]
        changes: list[Change] = []
        for component, tested in dict.fromkeys((_gpu_or_node(c.component), causes.needs_burnin(c)) for c in lost):
            alike = [
                cause
                for cause in lost
                if (_gpu_or_node(cause.component), causes.needs_burnin(cause)) == (component, tested)
            ]
            code = BURNIN_REQUIRED if tested else MEMORY_LOST
            changes += self._recalled(code, component, alike, out_since, now, boot_id)
        if changes and self._restored is None and restored is not None and restored > now:
            self._restored = restored  # from a fast clock, so its order relative to the fault is unknown
        before = out | self._out()
        return changes + self._expired(now, boot_id) + self._require_burnins(before, now, boot_id)

    def _recalled(
        self, code: Code, component: Component, alike: list[Cause], out_since: datetime, now: datetime, boot_id: str
    ) -> list[Change]:
        """Raises one finding in place of forgotten ones of the same GPU, or of the node."""
        since, codes = max(out_since, *(cause.since for cause in alike)), causes.names(alike)
        boots = {cause.boot_id for cause in alike}
        boot = boots.pop() if len(boots) == 1 else ""  # several boots, or an unknown one: treated as this one
        listed = ", ".join(codes)
        message = (
            f"out of service since {since:%Y-%m-%dT%H:%M:%SZ} for {listed}, by the Node's record;"
            " the agent does not remember that this has ended"
        )
        source = listed if code is BURNIN_REQUIRED else "the record on the Node"
        found = code.found(component, message, now=since, source=source, reading=listed, stands_for=codes)
        key = (found.code, found.component)
        if self._policy(code.name).ignore or key in self._tracked:
            return []
        self._tracked[key] = TrackedFinding(found, raised=True, boot_id=boot or boot_id, recalled=True)
        return [Change(ChangeKind.RAISED, found, now)]

    def _found_again(self, out: dict[Key, Finding], now: datetime) -> list[Change]:
        """Ends the placeholder for forgotten faults once all of them are found again as ordinary findings."""
        changes = []
        for key, tracked in list(self._tracked.items()):
            if key[0] != MEMORY_LOST.name:
                continue
            others = [finding for finding in self._out().values() if finding.code != key[0]]
            forgotten = causes.causes_of(tracked.finding, "")
            left = [cause for cause in forgotten if not any(causes.is_same(cause, finding) for finding in others)]
            if not left:
                changes.append(self._cleared(key, now, f"found again: {', '.join(causes.names(forgotten))}"))
                out.pop(key, None)  # the found findings replace it
        return changes

    def _cleared(self, key: Key, now: datetime, reason: str) -> Change:
        finding = self._tracked.pop(key).finding
        add_ended(self._ended, finding, now)
        return Change(ChangeKind.CLEARED, finding, now, reason)

    def quarantine(self) -> Quarantine:
        """The findings for which the node should be out of service; none if it should not."""
        findings = self._out()
        boots = {key: self._tracked[key].boot_id for key in findings}
        record = [cause for key, finding in findings.items() for cause in causes.causes_of(finding, boots[key])]
        record.sort(key=lambda cause: not self._cordons(cause.code))  # these decide how the node is marked
        return Quarantine(
            tuple(findings.values()),
            drain=any(self._rule(finding).drains(finding) or causes.drains(finding) for finding in findings.values()),
            causes=tuple(record[: causes.MAX_CAUSES]),
        )

    def verdict(self, facts: NodeFacts) -> Verdict:
        """The state of the node and of every component, including remembered components that are gone."""
        findings = self.active()
        patience = 0.0 if self._one_look else self._rules.unknown_after
        unknown = self.coverage.unknown(facts.time, patience, facts.excused)
        states = _states(facts, findings, unknown, self.coverage.components())
        return Verdict(
            node=facts.node,
            time=facts.time,
            verdict=State.combined(states.values()),
            components=tuple(
                _component_verdict(component, states) for component in sorted(states) if component != NODE
            ),
            gpus=tuple(_gpu_verdict(info, facts, states) for info in facts.gpus),
            findings=findings,
            coverage=self.coverage.coverage(),
        )


def _states(
    facts: NodeFacts, findings: tuple[Finding, ...], unknown: set[Component], seen: set[Component]
) -> dict[Component, State]:
    """The state of every component. A finding on a GPU also applies to every MIG device on it."""
    known = {info.component for info in facts.components}
    found = {finding.component for finding in findings}
    parts: dict[Component, list[State]] = {component: [] for component in (*known, *found, *unknown, *seen)}
    for component, states in parts.items():
        states.append(State.UNKNOWN if component in unknown else State.HEALTHY)
    for finding in findings:
        parts[finding.component].append(_state_of(finding))
    whole = {component: State.combined(states) for component, states in parts.items()}
    for component, state in list(whole.items()):
        owner = _gpu_or_node(component)
        if component.kind is Kind.MIG and owner in whole:
            whole[component] = State.combined([state, whole[owner]])
            parts[owner].append(state)
    return whole | {component: State.combined(parts[component]) for component in whole if component.kind is Kind.GPU}


def _gone_reason(component: Component) -> str:
    name = "GPU" if component.kind is Kind.GPU else component.kind.replace("_", " ")
    return f"the {name} is no longer in the node"


def _component_verdict(component: Component, states: dict[Component, State]) -> ComponentVerdict:
    return ComponentVerdict(kind=component.kind, id=component.id, parent=component.parent, verdict=states[component])


def _gpu_verdict(info: ComponentInfo, facts: NodeFacts, states: dict[Component, State]) -> GpuVerdict:
    own = [
        part
        for part in facts.components
        if part.component.kind is Kind.MIG and part.component.parent == info.component.id
    ]
    return GpuVerdict(
        index=info.index,
        uuid=info.component.id,
        pci=info.pci or "",
        model=info.model,
        verdict=states[info.component],
        mig=tuple(MigVerdict(part.component.id, part.index, states[part.component]) for part in own),
    )


def _gpu_or_node(component: Component) -> Component:
    """The GPU that a component is or belongs to, else the node: the target of a burn-in."""
    return Component(Kind.GPU, component.gpu) if component.gpu else NODE


def _state_of(finding: Finding) -> State:
    return {
        Severity.INFO: State.HEALTHY,
        Severity.WARNING: State.DEGRADED,
        Severity.CRITICAL: State.UNHEALTHY,
    }[finding.severity]
