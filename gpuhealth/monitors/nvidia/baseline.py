"""The GPUs of the node when it was last complete, so that a missing GPU is noticed."""

from __future__ import annotations

import msgspec

from gpuhealth.model.pci import PciAddress


class Baseline(msgspec.Struct):
    """The GPUs of the node, and the capabilities they have shown."""

    gpus: dict[str, PciAddress] = {}  # by uuid
    counted: int = 0  # most GPUs that NVML has listed at once, including those that never reported a uuid
    active_links: dict[str, list[int]] = {}  # uuid -> NVLinks that have been active
    ecc: dict[str, bool] = {}  # uuid -> ECC was on
    models: dict[str, str] = {}  # uuid -> name
    boot_id: str = ""  # of the boot in which all GPUs were last present; empty if not recorded
