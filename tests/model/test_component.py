"""Components: what a finding is about, and how people find it on the node."""

from __future__ import annotations

import msgspec
import pytest
from testing.findings import GPU, mig

from gpuhealth.model.component import NODE, Component, ComponentInfo, Kind, gpu
from gpuhealth.model.pci import PciAddress, PciSlot

ADDRESS = PciAddress("0000:3b:00.0")
PORT = Component(Kind.IB_PORT, "mlx5_0/1", parent="mlx5_0")


def test_what_belongs_to_a_gpu() -> None:
    """A GPU and its MIG devices do; a part of something else does not, whatever its parent is called."""
    assert (GPU.gpu, mig("MIG-a").gpu) == (GPU.id, GPU.id)
    assert mig("MIG-a", gpu("0000:3b:00.0")).gpu == "0000:3b:00.0"
    others = [NODE, PORT, Component(Kind.NVSWITCH, "0000:a9:00"), Component(Kind.MOUNT, "/data", parent=GPU.id)]
    assert {component.gpu for component in others} == {""}


def test_names() -> None:
    """Names contain kind and id, which separates a disk from a mount of equal id; the node is just the node."""
    assert [component.name for component in (NODE, GPU, PORT)] == ["node", "gpu GPU-1", "ib_port mlx5_0/1"]


def test_components_of_different_kinds_or_parents_are_different() -> None:
    """The id is unique within its kind only."""
    alike = [Component(kind, "node") for kind in Kind]
    assert len({*alike, mig("node"), mig("node", gpu("GPU-2"))}) == len(alike) + 2
    assert Component(Kind.NODE, "node") == NODE


@pytest.mark.parametrize("component", [NODE, GPU, PORT, mig("MIG-a")], ids=lambda each: each.kind)
def test_components_are_data(component: Component) -> None:
    """They survive JSON, in which a part of the node itself names no parent."""
    written = msgspec.json.encode(component)
    assert msgspec.json.decode(written, type=Component) == component
    assert (b"parent" in written) == bool(component.parent)


def test_components_have_an_order() -> None:
    """By kind, then id, then parent: a verdict lists them the same way every time."""
    listed = [PORT, mig("MIG-b"), mig("MIG-a", gpu("GPU-2")), mig("MIG-a"), gpu("GPU-2"), NODE, GPU]
    assert sorted(listed) == [
        GPU,
        gpu("GPU-2"),
        PORT,
        mig("MIG-a"),
        mig("MIG-a", gpu("GPU-2")),
        mig("MIG-b"),
        NODE,
    ]


def test_in_a_slot() -> None:
    """A GPU sits in a slot whatever its function is; one whose address is not known sits nowhere, and nothing is in no
    slot."""
    sound = ComponentInfo(component=GPU, pci=ADDRESS)
    assert sound.is_in(PciSlot("0000:3b:00"))
    assert ComponentInfo(component=GPU, pci=PciAddress("0000:3b:00.1")).is_in(PciSlot("0000:3b:00"))
    assert not sound.is_in(PciSlot("0000:3c:00"))
    assert not sound.is_in(PciSlot("0000:3b:01"))
    assert not sound.is_in(None)
    assert not ComponentInfo(component=GPU).is_in(PciSlot("0000:3b:00"))
    assert not ComponentInfo(component=GPU).is_in(None)


def test_labels() -> None:
    """A GPU is found by index and PCI address, as far as they are known; anything else by its id."""
    labels = {
        "GPU 3 (0000:3b:00.0)": ComponentInfo(component=GPU, index=3, pci=ADDRESS),
        "GPU 0 (GPU-1)": ComponentInfo(component=GPU, index=0),
        "GPU 0000:3b:00.0": ComponentInfo(component=GPU, pci=ADDRESS),
        "GPU GPU-1": ComponentInfo(component=GPU),
        "MIG-a": ComponentInfo(component=mig("MIG-a"), index=2),
        "mlx5_0/1": ComponentInfo(component=PORT, pci=ADDRESS),
    }
    assert [info.label for info in labels.values()] == list(labels)
