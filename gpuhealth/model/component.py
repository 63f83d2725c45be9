"""Components: the parts of a node that readings, findings and verdicts are about."""

from __future__ import annotations

import enum

import msgspec

from gpuhealth.model.pci import PciAddress, PciSlot, slot_of


class Kind(enum.StrEnum):
    """What sort of part a component is."""

    NODE = "node"
    GPU = "gpu"
    MIG = "mig"
    NVSWITCH = "nvswitch"
    PCI_DEVICE = "pci_device"  # only its PCI address is known
    NIC = "nic"
    IB_PORT = "ib_port"
    DISK = "disk"
    MOUNT = "mount"
    SERVICE = "service"
    MONITOR = "monitor"  # of the agent itself


class Component(msgspec.Struct, frozen=True, omit_defaults=True, order=True):
    """One part of a node, or the node itself."""

    kind: Kind
    id: str  # unique among the node's components of this kind
    parent: str = ""  # id of the component that contains this one; empty if that is the node

    @property
    def gpu(self) -> str:
        """The id of the GPU that this component is or belongs to; empty if none."""
        if self.kind is Kind.GPU:
            return self.id
        return self.parent if self.kind is Kind.MIG else ""

    @property
    def name(self) -> str:
        """Kind and id as text, such as `gpu GPU-5f3c…`; `node` for the node."""
        return self.id if self.kind is Kind.NODE else f"{self.kind} {self.id}"


NODE = Component(Kind.NODE, "node")
"""The component of a finding that concerns the node as a whole."""


def gpu(identifier: str) -> Component:
    """The GPU with this uuid, or with this PCI address while its uuid cannot be read."""
    return Component(Kind.GPU, identifier)


class ComponentInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a monitor has recorded about one component of the node, present or remembered."""

    component: Component
    index: int = -1  # NVML index of a GPU; instance id of a MIG device; -1 if none
    pci: PciAddress | None = None
    model: str = ""
    serial: str = ""

    def is_in(self, place: PciSlot | None) -> bool:
        """Whether the component sits in this PCI slot."""
        return place is not None and self.pci is not None and slot_of(self.pci) == place

    @property
    def label(self) -> str:
        """The component as an operator on the node finds it: `GPU 3 (0000:3b:00.0)`."""
        if self.component.kind is not Kind.GPU:
            return self.component.id
        place = self.pci or self.component.id
        return f"GPU {self.index} ({place})" if self.index >= 0 else f"GPU {place}"
