"""Faults reported only by the driver's own kernel-log lines, other than XIDs and SXids."""

from __future__ import annotations

from gpuhealth.model.codes import Clears, define
from gpuhealth.model.finding import Action, Severity

INIT_FAILED = define(
    "driver.init_failed",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="The driver could not initialise a GPU.",
    advice="If the line names versions, firmware files or unsupported GPUs, install a driver that fits. Else reboot the"
    " node; if it comes back, look at power and seating of the GPU, then replace it.",
    quarantine=True,
    cordon=True,
    clears=Clears.QUIET_PERIOD,  # the driver retries and logs it whenever the GPU is opened, also by us
    clear_after=600.0,
)
NEEDS_REBOOT = define(
    "driver.needs_reboot",
    Severity.CRITICAL,
    Action.REBOOT_NODE,
    meaning="Unified memory had an error after which the driver works only after a reboot of the node.",
    advice="Drain the node and reboot it.",
    quarantine=True,
    cordon=True,
    drain=True,
    clears=Clears.REBOOT,
)
CLIENT_MISMATCH = define(
    "driver.client_mismatch",
    Severity.WARNING,
    Action.UPDATE_SOFTWARE,
    meaning="A program, or fabric manager, came with a driver library of another version than the kernel module: it"
    " cannot use the GPUs.",
    advice="Rebuild the program's image without driver libraries, or restart it after a driver upgrade. Fabric manager"
    " must have exactly the driver's version.",
    clears=Clears.QUIET_PERIOD,
    clear_after=600.0,
    cordon=True,
)
ERRORS = define(
    "driver.errors",
    Severity.WARNING,
    Action.CONTACT_SUPPORT,
    meaning="The driver reports failing calls to a GPU, its firmware or its NVLinks.",
    advice="Look for XIDs at the same time; without any, collect nvidia-bug-report.sh.",
    clears=Clears.QUIET_PERIOD,
    clear_after=600.0,
    cordon=True,
)

PORT_ERROR = define(
    "pcie.port_error",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The PCI Express port above a GPU has cut it off, lost its link, or had an error that was not corrected.",
    advice="Look for XID 79 at the same time. Reboot the node; if it repeats, reseat the GPU, its riser or cable.",
    quarantine=True,
    clears=Clears.QUIET_PERIOD,
    clear_after=3600.0,
)

CODES = (INIT_FAILED, NEEDS_REBOOT, CLIENT_MISMATCH, ERRORS, PORT_ERROR)
