"""What the node had when it was last complete, so that a GPU that is gone is missed."""

from __future__ import annotations

import msgspec

from gpuhealth.model.pci import PciAddress


class Baseline(msgspec.Struct):
    """The GPUs of the node, and what they have shown to be able to."""

    gpus: dict[str, PciAddress] = {}  # by uuid
    counted: int = 0  # GPUs that NVML has listed at once, those among them that never reported a uuid
    active_links: dict[str, list[int]] = {}  # uuid -> NVLinks that have been active
    ecc: dict[str, bool] = {}  # uuid -> ECC was on
    models: dict[str, str] = {}  # uuid -> name
