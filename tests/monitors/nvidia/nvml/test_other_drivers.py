"""Answers as other libraries give them: NVIDIA's mock of NVML, and drivers before R535.

The mock (github.com/NVIDIA/k8s-test-infra, pkg/gpu/mocknvml) answers the bit error rates of NVLink 5 as doubles, lets
an NVLink to a switch end at FFFFFFFF:FF:FF.0, and gives the GPUs of one board the same serial number.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testing.lying_node import GPUS, LyingNode, lying_node
from testing.nvml_lies import Answer, add, end

from gpuhealth.model.finding import Finding
from gpuhealth.model.missing import NOT_SUPPORTED, Missing

FIELDS = "nvmlDeviceGetFieldValues"
REMOTE = "nvmlDeviceGetNvLinkRemotePciInfo"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingNode]:
    """A node of two B200."""
    with lying_node(tmp_path_factory.mktemp("mock"), model="b200") as made:
        yield made


@pytest.fixture(autouse=True)
def _truth() -> Iterator[None]:
    yield
    end()


def found(node: LyingNode) -> set[str]:
    """The codes that are found after three such rounds, and not without."""
    said = node.outcomes_after(node.read())
    before = {(each.code, each.component) for each in node.clean if isinstance(each, Finding)}
    return {each.code for each in said if isinstance(each, Finding) and (each.code, each.component) not in before}


@pytest.mark.parametrize(("rate", "code"), [(0.0, None), (1.5e-13, None), (5e-6, "nvlink.ber")])
def test_bit_error_rates_as_doubles(node: LyingNode, rate: float, code: str | None) -> None:
    """A rate that is a double counts as it is."""
    for field in (220, 222):
        add(FIELDS, field=field, value=float(rate))
    for gpu in node.read().gpus:
        assert not isinstance(gpu.nvlinks, Missing)
        assert {(link.effective_ber, link.symbol_ber) for link in gpu.nvlinks} == {(rate, rate)}
        assert gpu.failed_calls == {}
    assert found(node) == ({code} if code else set())


def test_bit_error_rates_as_mantissa_and_exponent(node: LyingNode) -> None:
    """A rate that is a whole number has its mantissa in bits 8 to 11, and its negative exponent below."""
    add(FIELDS, field=220, type=3, value=5 << 8 | 6)
    for gpu in node.read().gpus:
        assert not isinstance(gpu.nvlinks, Missing)
        assert [link.effective_ber for link in gpu.nvlinks] == pytest.approx([5e-6] * 18)
    assert found(node) == {"nvlink.ber"}


def test_links_to_a_switch_that_is_not_on_pci(node: LyingNode) -> None:
    """The far end FFFFFFFF:FF:FF.0 is unknown, and no odd answer."""
    lies: list[Answer] = [{"member": member, "value": bits} for member, bits in enumerate((0xFFFFFFFF, 0xFF, 0xFF))]
    for lie in lies:
        add(REMOTE, gpu=None, **lie)
    for gpu in node.read().gpus:
        assert not isinstance(gpu.nvlinks, Missing)
        assert {link.remote_pci for link in gpu.nvlinks} == {NOT_SUPPORTED}
        assert gpu.failed_calls == {}
    assert found(node) == set()


def test_gpus_of_one_board_share_its_serial_number(node: LyingNode) -> None:
    """One serial number of two GPUs is no odd answer: only uuid and address are a GPU's own."""
    add("nvmlDeviceGetSerial", text="1562849103700")
    told = node.read()
    assert [gpu.serial for gpu in told.gpus] == ["1562849103700"] * GPUS
    assert found(node) == set()


def test_a_library_without_newer_functions(node: LyingNode) -> None:
    """Functions and structures that drivers of the last years lack are not supported; reasons for reduced clocks have
    an older name."""
    for name in (
        "nvmlDeviceGetMarginTemperature",
        "nvmlDeviceGetSramEccErrorStatus",
        "nvmlDeviceGetRepairStatus",
        "nvmlDeviceGetUnrepairableMemoryFlag",
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetMemoryBusWidth",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ):
        add(name, code=13)
    for gpu, honest in zip(node.read().gpus, node.honest.gpus, strict=True):
        assert gpu.failed_calls == {}
        assert gpu.clocks_event_reasons == honest.clocks_event_reasons
        assert gpu.memory_total_bytes == honest.memory_total_bytes
        assert gpu.temperature_margin_celsius == gpu.fabric == gpu.memory_bus_bits == NOT_SUPPORTED
    assert "agent.unexpected_reading" not in found(node)


def test_a_library_without_what_every_driver_has(node: LyingNode) -> None:
    """A function that every driver has and this library lacks is no reading that the GPU does not support."""
    add("nvmlDeviceGetTotalEccErrors", code=13)
    assert found(node) == {"agent.unexpected_reading"}
