"""Settings that belong to no monitor, with defaults and units; `settings_file` reads them.

Durations are written in Prometheus syntax (`10s`, `5m`, `1h30m`, `14d`) or as seconds, and stored as seconds.
"""

from __future__ import annotations

import re
import reprlib
import socket
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from gpuhealth.api.names import CONDITION, CONTROLLER_LEASE, NAMESPACE, PEOPLE, POOL_LABEL, PREFLIGHT_TAINT
from gpuhealth.model.finding import Severity
from gpuhealth.model.policy import FindingPolicy

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> object:
    """Seconds from `90`, `90s`, `1m30s`, `14d`; other values are returned unchanged for pydantic to reject."""
    if isinstance(value, str):
        if _DURATION.fullmatch(value):
            return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{reprlib.repr(value)} is no duration (write 30s, 10m, 24h or 14d)") from None
    return value


LONGEST_SECONDS = 3650 * 86400.0
"""Maximum of a duration: longer ones are mistakes, and do not fit a date or a Lease."""
LARGEST = 1 << 53  # maximum of a count: JSON, SQLite and the metrics hold it exactly

Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0, le=LONGEST_SECONDS)]
"""A duration in seconds."""

PositiveDuration = Annotated[Duration, Field(gt=0)]
"""A duration in seconds, greater than zero."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]

Amount = Annotated[Count | Annotated[str, Field(pattern=r"^\d{1,9}%$")], Field(union_mode="left_to_right")]
"""A count, or a percentage such as `10%`."""


class Section(BaseModel):
    """Base of all sections of the settings: unknown names and infinite numbers are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def longest_window(self) -> float:
        """The longest of all settings named `window` or `…_window`, in this section and below; 0 if there are none."""
        longest = 0.0
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Section):
                longest = max(longest, value.longest_window())
            elif name.rpartition("_")[2] == "window":
                longest = max(longest, value)
        return longest


class Roots(Section):
    """Paths of the node's file trees, which a container may mount elsewhere."""

    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    kmsg: Path = Path("/dev/kmsg")


class HostRoot(Section):
    """Where the files of the host are, for a process that may run in a container."""

    root: Path = Path("/")  # where the host's root filesystem is mounted, with all mounts below it


class Tls(Section):
    """TLS files in PEM format. Renewed files are loaded while running."""

    cert: Path  # with intermediate certificates, if any
    key: Path
    client_ca: Path | None = None  # a client with a certificate of this CA may read the pages


class Http(Section):
    """Where /metrics, /healthz and /readyz are served, and to whom."""

    host: str = "0.0.0.0"
    port: int = Field(default=9475, ge=0, le=65535)
    tls: Tls | None = None
    authorization: Literal["none", "kubernetes"] = "none"  # kubernetes: TokenReview and SubjectAccessReview

    @model_validator(mode="after")
    def _no_token_in_the_clear(self) -> Self:
        if self.authorization == "kubernetes" and self.tls is None:
            raise ValueError("authorization kubernetes needs tls, or tokens would travel in the clear")
        return self


class Journal(Section):
    """The node's journal of findings, and how much of it is kept."""

    path: Path = Path("/var/lib/gpuhealth/journal.sqlite")
    retention: Duration = 14 * 86400.0  # older entries are deleted
    max_entries: int = Field(default=100_000, ge=100, le=LARGEST)


class BurninLimits(Section):
    """Pass thresholds for active tests, in addition to the minimums of the GPU's model. A wrong bit always fails."""

    floor_percent: float = Field(default=100.0, ge=0)  # of the model's floors; 0 disables them
    min_percent_of_best_peer: float = Field(default=90.0, ge=0, le=100)  # of the node's best GPU of the same model
    power_percent: float = Field(default=75.0, ge=0, le=100)  # of TDP or power limit, minimum peak power during a soak
    pcie_replays_per_minute: Count = 30
    corrected_ecc_errors: Count = 0  # during one test; an uncorrectable one always fails
    nvlink_errors: Count = 100  # of one link during one test


class Burnin(Section):
    """Active tests: target devices, thresholds, and the directory where the agent finds their results."""

    results_dir: Path = Path("/var/lib/gpuhealth/burnin")
    level: Literal["quick", "standard", "long"] = "standard"
    devices: str = "all"  # GPUs visible to CUDA; else cuda:0,1, or cpu:0,1 for a run without GPU
    limits: BurninLimits = BurninLimits()
    faults: tuple[dict[str, Any], ...] = ()  # injected faults, to test their detection: burnin.protocol.Fault


class Preflight(Section):
    """The tests that a new node must pass before it gets work."""

    taint: str = Field(default=PREFLIGHT_TAINT, min_length=1)  # key; with another, see daemonset/preflight.yaml
    level: Literal["quick", "standard", "long"] = "standard"
    tests: tuple[str, ...] = ()  # else those of the level
    duration: Duration | None = None  # total of the tests; else the level's
    readiness_timeout: Duration = 600.0  # for all passive checks to pass on a new node: its driver is being installed
    deadline: Duration = Field(default=1800.0, gt=0)  # for the whole preflight; a long burn-in needs more
    retry: Duration = Field(default=10.0, gt=0)
    after_reboot: bool = False  # also for a node that was rebooted, once its agent has detected that


class Kubernetes(Section):
    """The Kubernetes cluster of the node, if any."""

    enabled: bool = True
    kubeconfig: Path | None = None  # else the pod's service account
    context: str | None = None
    namespace: str = NAMESPACE


class Election(Section):
    """Leader election: only the controller that holds the Lease acts. Durations in seconds."""

    enabled: bool = True
    lease: str = Field(default=CONTROLLER_LEASE, min_length=1)
    duration: Duration = Field(default=15.0, ge=1)  # after which another candidate may take the Lease
    renew_within: Duration = Field(default=10.0, gt=0)  # or it stops acting, before another candidate begins
    retry: Duration = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.retry < self.renew_within < self.duration:
            raise ValueError("retry must be less than renew_within, and that less than duration")
        return self


class Periodic(Section):
    """Periodic burn-in of nodes that are in service and idle."""

    enabled: bool = False  # idle GPUs then draw their full power
    every: Duration = 7 * 86400.0  # a node is tested again after this
    level: Literal["quick", "standard", "long"] = "standard"
    max_per_pool: Amount = 1  # at once; a count, or a percentage of the pool
    pending_timeout: Duration = 120.0  # a burn-in pod that is not scheduled within this time is deleted


class Controller(Section):
    """The cluster's controller: drain, burn-in schedule, budget slots."""

    http: Http = Http(port=9476)
    election: Election = Election()
    agent_silent_after: Duration = (
        300.0  # before a node without a ready agent is marked Unknown; longer than an update of the agents takes
    )
    orphaned_slot_timeout: Duration = 900.0  # before a budget slot is freed whose node is in service and has no agent
    drain_deadline: Duration = 168 * 3600.0  # after which pods are deleted, regardless of their disruption budgets
    drain_retry: Duration = Field(default=10.0, gt=0)  # between attempts of a refused eviction
    drain_exempt_owners: tuple[str, ...] = ()  # kinds whose pods are not evicted, such as NodeSet.slinky.slurm.net
    evictions_per_second: float = Field(default=10.0, gt=0)  # over the whole fleet
    eviction_burst: int = Field(default=20, ge=1, le=LARGEST)
    periodic: Periodic = Periodic()
    pool_labels: tuple[str, ...] = (  # a node's pool is the value of the first of these labels that it has
        POOL_LABEL,
        "eks.amazonaws.com/nodegroup",
        "cloud.google.com/gke-nodepool",
        "kubernetes.azure.com/agentpool",
        "karpenter.sh/nodepool",
        "node.kubernetes.io/instance-type",
    )


_ANNOTATION = r"^$|^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"


class Quarantine(Section):
    """Taking nodes out of service."""

    test_before_return: bool = False  # once the finding has cleared, a burn-in must pass before the node returns
    people: tuple[str, ...] = PEOPLE  # patterns of field managers; "" is a client that left no trace on the Node
    put_back_after: Duration = 30.0  # before a mark is put back that a program has removed; seconds
    put_back_per_hour: int = Field(default=6, ge=1, le=LARGEST)  # how often at most; then it stays off for a while
    # Annotation that gets `gpuhealth: CODE` together with our cordon, such as that of slurm-operator; empty: none.
    cordon_reason: str = Field(default="", pattern=_ANNOTATION)


_OF_KUBELET = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
_CONDITION_TYPE = r"^([A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
_CONDITION_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,1022}[A-Za-z0-9_])?")


class MirrorCondition(Section):
    """A Node condition of another type, for a platform that repairs or drains nodes by it."""

    type: str = Field(pattern=_CONDITION_TYPE)  # one that no other program writes; add it to the admission policies
    status_when_unhealthy: Literal["True", "False"] = "False"  # while gpuhealth has taken the node out of service
    reason_map: dict[str, str] = {}  # its reason by finding code or pattern; for others the code in CamelCase

    @field_validator("status_when_unhealthy", mode="before")
    @classmethod
    def _unquoted(cls, value: object) -> object:
        return str(value) if isinstance(value, bool) else value  # True without quotes is no text in YAML

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        if self.type in (CONDITION, *_OF_KUBELET):
            raise ValueError(f"gpuhealth or the kubelet writes the condition {self.type} with a meaning of its own")
        if wrong := [reason for reason in self.reason_map.values() if not _CONDITION_REASON.fullmatch(reason)]:
            raise ValueError(f"{reprlib.repr(wrong[0])} is no reason of a condition, which is one word in CamelCase")
        return self


class FindingSettings(Section):
    """Changes to a finding's defaults; unset fields keep the default. Durations in seconds."""

    severity: Severity | None = None
    quarantine: bool | None = None
    drain: bool | None = None
    cordon: bool | None = (
        None  # in mode taint: cordon the node and set no taint, so that pods of DaemonSets still start
    )
    raise_after: Duration | None = None
    clear_after: Duration | None = None
    test_before_return: bool | None = None  # None: value of quarantine.test_before_return
    ignore: bool = False


class Schedule(Section):
    """Interval and deadline of one monitor. Durations in seconds."""

    enabled: bool = True
    interval: PositiveDuration | None = None  # between two rounds; None: the setting interval
    deadline: PositiveDuration | None = None  # for one round; None: the monitor's own


class PoolPolicy(Section):
    """Finding policies for the nodes that have all of these labels."""

    node_labels: dict[str, str] = Field(min_length=1)
    findings: dict[str, FindingSettings]


class CoreSettings(Section):
    """Settings that belong to no monitor, and their defaults."""

    node_name: str = Field(default_factory=socket.gethostname, min_length=1)
    mode: Literal["observe", "taint", "cordon"] = "taint"
    interval: Duration = Field(default=10.0, gt=0)
    unknown_after: Duration = 120.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    roots: Roots = Roots()
    host: HostRoot = HostRoot()  # the monitor of the host adds limits
    monitors: dict[str, Schedule] = {}  # by the name of the monitor
    http: Http = Http()
    journal: Journal = Journal()
    burnin: Burnin = Burnin()
    preflight: Preflight = Preflight()
    kubernetes: Kubernetes = Kubernetes()
    controller: Controller = Controller()
    quarantine: Quarantine = Quarantine()
    conditions: tuple[MirrorCondition, ...] = Field(default=(), max_length=8)  # mirrors of GPUHealthy
    findings: dict[str, FindingSettings] = {}  # by code or pattern: "xid.94", "nvlink.*"
    pools: tuple[PoolPolicy, ...] = ()

    def policy(self, code: str, node_labels: dict[str, str] | None = None) -> FindingPolicy:
        """The policy for a finding code: pools win over the general policy, the exact code over patterns."""
        chosen: dict[str, Any] = {}
        labels = node_labels or {}
        pools = [p.findings for p in self.pools if p.node_labels.items() <= labels.items()]
        for findings in [self.findings, *pools]:
            patterns = [key for key in findings if key != code and fnmatchcase(code, key)]
            for key in sorted(patterns, key=len):
                chosen |= findings[key].model_dump(exclude_unset=True)
            if code in findings:
                chosen |= findings[code].model_dump(exclude_unset=True)
        return FindingPolicy(**chosen)

    def schedule(self, monitor: str) -> Schedule:
        """Interval and deadline of a monitor, if the settings change them."""
        return self.monitors.get(monitor) or Schedule()
