"""All settings, with their defaults and units; `config_file` says where their values come from.

Durations are written as Prometheus writes them (`10s`, `5m`, `1h30m`, `14d`) or as seconds, and held as seconds.
"""

from __future__ import annotations

import re
import reprlib
import socket
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpuhealth.api.names import CONTROLLER_LEASE, NAMESPACE, POOL_LABEL, PREFLIGHT_TAINT
from gpuhealth.model.finding import Severity

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> object:
    """Seconds from `90`, `90s`, `1m30s`, `14d`; anything else is left for pydantic to refuse."""
    if isinstance(value, str):
        if _DURATION.fullmatch(value):
            return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{reprlib.repr(value)} is no duration (write 30s, 10m, 24h or 14d)") from None
    return value


LONGEST_SECONDS = 3650 * 86400.0
"""What is longer is a mistake, and neither a date nor a Lease can hold it."""
_LARGEST = 1 << 53  # of a count: what JSON, SQLite and the metrics hold exactly

Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0, le=LONGEST_SECONDS)]
"""Seconds."""

Count = Annotated[int, Field(ge=0, le=_LARGEST)]

Amount = Annotated[Count | Annotated[str, Field(pattern=r"^\d{1,9}%$")], Field(union_mode="left_to_right")]
"""A count, or a percentage such as `10%`."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Roots(_Section):
    """Paths of the node's file trees, which a container may mount elsewhere."""

    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    kmsg: Path = Path("/dev/kmsg")


class Nvml(_Section):
    """The NVML child process and its deadlines, in seconds."""

    warn_after: Duration = 20.0
    critical_after: Duration = 60.0
    reinit_interval: Duration = 60.0  # between nvmlInit attempts while a GPU is lost or the driver is away
    max_extra_processes: Count = 1  # NVML processes started while one hangs
    errors_critical: int = Field(default=3, ge=1, le=_LARGEST)  # rounds with unexpected errors within error_window
    error_window: Duration = 600.0


class Kmsg(_Section):
    """Reading of the kernel log, /dev/kmsg."""

    lookback: Duration = 600.0  # at the agent's very first start: older records are not raised


class Ecc(_Section):
    """GPU memory errors that ECC counts."""

    recent_window: Duration = 86400.0  # an uncorrectable error is critical for this long after the count grew
    corrected_per_hour: Count = 10_000


class Xid(_Section):
    """How XIDs are grouped and counted, and when they expire. Durations in seconds."""

    coalesce: Duration = 5.0  # the same code on the same GPU within this time is one event
    secondary_window: Duration = 60.0  # 43 and 45 this soon after another XID on the GPU are its consequence
    repeat_window: Duration = 86400.0
    repeats_critical: int = Field(default=3, ge=2, le=_LARGEST)  # of a code that says "contact support"
    app_fault_threshold: int = Field(
        default=3, ge=2, le=_LARGEST
    )  # faults of different processes on one GPU within repeat_window
    expire_after: Duration = 600.0  # what leaves nothing to read again ends when it has not come back


class Thermal(_Section):
    """Distance to the GPU's own slowdown or maximum operating temperature, in degrees Celsius."""

    margin_warning_celsius: Count = 5
    critical_after: Duration = 30.0  # at the limit


class Clocks(_Section):
    """Clock throttling, and GPUs slower than their neighbours. Shares in percent."""

    window: Duration = 60.0
    throttled_percent: float = Field(default=50.0, gt=0, le=100)
    straggler_percent: float = Field(default=85.0, gt=0, le=100)  # of the median clock of the node's busy GPUs
    busy_percent: int = Field(default=50, ge=1, le=100)  # utilization from which a GPU counts as under load


class Pcie(_Section):
    """PCIe link errors: limits per minute, windows in seconds."""

    window: Duration = 60.0
    replays_per_minute: Count = 30
    correctable_per_minute: Count = 32
    uncorrectable_window: Duration = 3600.0  # after which a link without further uncorrectable errors is clean


class Nvlink(_Section):
    """NVLink errors: a count within the window (seconds), and a bit error rate that is a finding at once."""

    window: Duration = 600.0
    errors: Count = 100
    effective_ber: float = Field(default=1e-12, gt=0)


class GpuMemory(_Section):
    """Limits for GPU memory: bytes in use without a process, and retired pages."""

    leaked_bytes: Count = 1 << 30  # in use on a GPU that no process uses
    retired_pages: Count = 60  # the table holds 63; then the GPU must be replaced


class Tls(_Section):
    """TLS files in PEM format. Renewed files are loaded while running."""

    cert: Path  # with the intermediates, if there are any
    key: Path
    client_ca: Path | None = None  # a client with a certificate of this CA may read the pages


class Http(_Section):
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


class Journal(_Section):
    """The node's journal of findings, and how much of it is kept."""

    path: Path = Path("/var/lib/gpuhealth/journal.sqlite")
    retention: Duration = 14 * 86400.0  # older entries are deleted
    max_entries: int = Field(default=100_000, ge=100, le=_LARGEST)


class BurninLimits(_Section):
    """Pass thresholds for active tests, in addition to the minimums of the GPU's model. A wrong bit always fails."""

    floor_percent: float = Field(default=100.0, ge=0)  # of the model's floors; 0 asks for none
    min_percent_of_best_peer: float = Field(default=90.0, ge=0, le=100)  # of the node's best GPU of the same model
    power_percent: float = Field(default=75.0, ge=0, le=100)  # of TDP or power limit, what a soak must draw at its peak
    pcie_replays_per_minute: Count = 30
    corrected_ecc_errors: Count = 0  # during one test; an uncorrectable one always fails
    nvlink_errors: Count = 100  # of one link during one test


class Burnin(_Section):
    """Active tests: target devices, thresholds, and the directory where the agent finds their results."""

    results_dir: Path = Path("/var/lib/gpuhealth/burnin")
    level: Literal["quick", "standard", "long"] = "standard"
    devices: str = "all"  # GPUs that CUDA shows; else as cuda:0,1 or, where processors stand in, cpu:0,1
    limits: BurninLimits = BurninLimits()
    faults: tuple[dict[str, Any], ...] = ()  # put in on purpose, to see them caught: burnin.jobs.Fault


class Preflight(_Section):
    """The tests that a new node must pass before it gets work."""

    taint: str = Field(default=PREFLIGHT_TAINT, min_length=1)  # key; with another, see daemonset/preflight.yaml
    level: Literal["quick", "standard", "long"] = "standard"
    tests: tuple[str, ...] = ()  # else those of the level
    duration: Duration | None = None  # of the tests' work in all; else the level's
    readiness_timeout: Duration = 600.0  # for all passive checks to pass on a new node: its driver is being installed
    deadline: Duration = Field(default=1800.0, gt=0)  # for the whole preflight; a long burn-in needs more
    retry: Duration = Field(default=10.0, gt=0)
    after_reboot: bool = False  # also for a node that was rebooted, once its agent has seen that


class Kubernetes(_Section):
    """The Kubernetes cluster that the node belongs to, if any."""

    enabled: bool = True
    kubeconfig: Path | None = None  # else the pod's service account
    context: str | None = None
    namespace: str = NAMESPACE


class Election(_Section):
    """Leader election: only the controller that holds the Lease acts. Durations in seconds."""

    enabled: bool = True
    lease: str = Field(default=CONTROLLER_LEASE, min_length=1)
    duration: Duration = Field(default=15.0, ge=1)  # after which the others may take it from one that is silent
    renew_within: Duration = Field(default=10.0, gt=0)  # or it stops acting, before the others begin
    retry: Duration = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.retry < self.renew_within < self.duration:
            raise ValueError("retry must be less than renew_within, and that less than duration")
        return self


class Periodic(_Section):
    """Periodic burn-in of nodes that are in service and idle."""

    enabled: bool = False  # it makes idle GPUs draw their full power
    every: Duration = 7 * 86400.0  # a node is tested again after this
    level: Literal["quick", "standard", "long"] = "standard"
    max_per_pool: Amount = 1  # at once; a count, or a percentage of the pool
    pending_timeout: Duration = 120.0  # a burn-in pod that is not scheduled within this time is deleted


class Controller(_Section):
    """The cluster's controller: drain, burn-in schedule, budget slots."""

    http: Http = Http(port=9476)
    election: Election = Election()
    agent_silent_after: Duration = (
        300.0  # before a node without a ready agent is marked Unknown; longer than an update of the agents takes
    )
    orphaned_slot_timeout: Duration = 900.0  # before a budget slot is freed whose node is in service and has no agent
    drain_deadline: Duration = 168 * 3600.0  # after which pods are deleted, whatever their disruption budgets say
    drain_retry: Duration = Field(default=10.0, gt=0)  # between tries of an eviction that was refused
    evictions_per_second: float = Field(default=10.0, gt=0)  # over the whole fleet
    eviction_burst: int = Field(default=20, ge=1, le=_LARGEST)
    periodic: Periodic = Periodic()
    pool_labels: tuple[str, ...] = (  # a node's pool is the value of the first of these that it has
        POOL_LABEL,
        "eks.amazonaws.com/nodegroup",
        "cloud.google.com/gke-nodepool",
        "kubernetes.azure.com/agentpool",
        "karpenter.sh/nodepool",
        "node.kubernetes.io/instance-type",
    )


class DriverRelease(_Section):
    """Closing the driver on request, for a GPU reset or a driver upgrade. Durations in seconds."""

    max_duration: Duration = 7200.0  # a node whose driver is released longer than this is unknown
    reacquire_grace: Duration = 120.0  # for the driver to be back after the last request ended


class Quarantine(_Section):
    """Taking nodes out of service."""

    test_before_return: bool = False  # once the finding has cleared, a burn-in must pass before the node returns


class FindingPolicy(_Section):
    """What a deployment changes of a finding's defaults; None keeps the default. Durations in seconds."""

    severity: Severity | None = None
    quarantine: bool | None = None
    drain: bool | None = None
    raise_after: Duration | None = None
    clear_after: Duration | None = None
    test_before_return: bool | None = None  # None: as quarantine.test_before_return says
    ignore: bool = False


class PoolPolicy(_Section):
    """Finding policies for the nodes that carry all of these labels."""

    node_labels: dict[str, str] = Field(min_length=1)
    findings: dict[str, FindingPolicy]


class Settings(_Section):
    """All settings and their defaults."""

    node_name: str = Field(default_factory=socket.gethostname, min_length=1)
    mode: Literal["observe", "taint", "cordon"] = "taint"
    interval: Duration = Field(default=10.0, gt=0)
    unknown_after: Duration = 120.0
    driver_release: DriverRelease = DriverRelease()
    expected_gpus: Count | None = None  # wins over the number of GPUs seen before
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    roots: Roots = Roots()
    nvml: Nvml = Nvml()
    kmsg: Kmsg = Kmsg()
    ecc: Ecc = Ecc()
    xid: Xid = Xid()
    thermal: Thermal = Thermal()
    clocks: Clocks = Clocks()
    pcie: Pcie = Pcie()
    nvlink: Nvlink = Nvlink()
    gpu_memory: GpuMemory = GpuMemory()
    http: Http = Http()
    journal: Journal = Journal()
    burnin: Burnin = Burnin()
    preflight: Preflight = Preflight()
    kubernetes: Kubernetes = Kubernetes()
    controller: Controller = Controller()
    quarantine: Quarantine = Quarantine()
    findings: dict[str, FindingPolicy] = {}  # by code or pattern: "xid.94", "nvlink.*"
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
