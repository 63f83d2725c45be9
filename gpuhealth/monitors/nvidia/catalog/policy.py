"""Maps a resolution bucket to severity, action, and whether the node is taken out of service.

NVIDIA sorts its error codes into buckets by their remedy. This is the only place where a bucket becomes our severity
and action:

- nothing to do: info;
- the program ends, the GPU is fine: warning, restart the workload;
- a reset, a reboot, or work on the hardware or its software: critical, and the node is taken out of service, unless a
  program can cause the code: such a code never takes a node out of service by itself;
- "ask the vendor": a warning, critical when it repeats (`escalates`);
- codes that are not in use, have no bucket, or are unknown: a warning that stays one.
"""

from __future__ import annotations

import msgspec

from gpuhealth.model.finding import Action, Severity


class Policy(msgspec.Struct, frozen=True):
    """Our assessment of a bucket."""

    severity: Severity
    action: Action
    advice: str
    escalates: bool = False  # a warning that is critical when it repeats


IGNORE = Policy(Severity.INFO, Action.NONE, "No action needed.")
RESTART = Policy(Severity.WARNING, Action.RESTART_WORKLOAD, "Restart the program; the GPU can continue.")
RESET = Policy(Severity.CRITICAL, Action.RESET_GPU, "Stop all processes that use the GPU and reset it.")
REBOOT = Policy(Severity.CRITICAL, Action.REBOOT_NODE, "Drain the node and reboot it.")
INSPECT = Policy(Severity.CRITICAL, Action.INSPECT_HARDWARE, "Take the node out of service and look at its hardware.")
UPDATE = Policy(Severity.CRITICAL, Action.UPDATE_SOFTWARE, "Bring driver, firmware and services to matching versions.")
REPORT = Policy(
    Severity.WARNING, Action.CONTACT_SUPPORT, "Collect nvidia-bug-report.sh and ask the vendor.", escalates=True
)
UNCLEAR = Policy(
    Severity.WARNING, Action.CONTACT_SUPPORT, "No remedy is published for this code; watch the GPU and ask the vendor."
)
SIGNAL = Policy(
    Severity.WARNING, Action.INSPECT_HARDWARE, "Check cables and seating when it comes back.", escalates=True
)
BY_ACTION = Policy(Severity.WARNING, Action.NONE, "Do what the GPU's recovery action says.")

BUCKETS = {
    "IGNORE": IGNORE,
    "RESTART_APP": RESTART,
    "WORKFLOW_XID_45": RESTART,
    "CHECK_UVM": RESTART,  # a reset if unified memory or vGPU is in use, else nothing; the log does not show which
    "XID_154_EVAL": RESTART,  # until a 154 requires more
    "RESET_GPU": RESET,
    "WORKFLOW_XID_48": RESET,
    "RESET_FABRIC": RESET,
    "WORKFLOW_NVLINK_POTENTIALLY_FATAL_ERR": RESET,
    "RESTART_BM": REBOOT,
    "RESTART_VM": REBOOT,
    "CHECK_MECHANICALS": INSPECT,
    "CHECK_LINK_MECHANICAL_CONNECTIONS": INSPECT,
    "CHECK_THERMALS": INSPECT,
    "RUN_FIELDDIAG": INSPECT,
    "INVESTIGATE_LINK_SI": INSPECT,
    "UPDATE_SWFW": UPDATE,
    "CHECK_FM_CONFIG": UPDATE,
    "CONTACT_SUPPORT": REPORT,
    "REPORT_ISSUE": REPORT,
    "UNEXPECTED_ERR_REPORT_ISSUE": REPORT,
    "WORKFLOW_NVLINK_ERR": REPORT,  # 74 whose registers cannot be read, as from an NVML event
    "WORKFLOW_NVLINK5_ERR": REPORT,  # 144-150 whose status words cannot be read
    "XID_154": BY_ACTION,
    "NONE": UNCLEAR,
}


def of_bucket(bucket: str, *, used: bool = True) -> Policy:
    """The policy of a bucket; `used` is false for a code that is not raised according to the catalogue."""
    return BUCKETS.get(bucket, UNCLEAR) if used else UNCLEAR
