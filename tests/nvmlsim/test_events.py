"""Event sets."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pynvml
import pytest
from nvmlsim.simulator import Simulator

XID = pynvml.nvmlEventTypeXidCriticalError
LONG_MS = 60_000


@pytest.fixture
def event_set(node: Simulator) -> Iterator[Any]:
    """A set that listens for XIDs of both GPUs."""
    made = pynvml.nvmlEventSetCreate()
    for index in (0, 1):
        pynvml.nvmlDeviceRegisterEvents(pynvml.nvmlDeviceGetHandleByIndex(index), XID, made)
    yield made
    pynvml.nvmlEventSetFree(made)


def test_an_xid_reaches_a_set(node: Simulator, event_set: Any) -> None:
    """An XID comes with its code and the handle of its GPU, once, and in order."""
    node.inject("xid", gpu=1, code=48)
    node.inject("xid", gpu=0, code=63)
    for index, number in ((1, 48), (0, 63)):
        data = pynvml.nvmlEventSetWait_v2(event_set, LONG_MS)
        assert (data.eventType, data.eventData) == (XID, number)
        assert pynvml.nvmlDeviceGetIndex(data.device) == index
        assert data.gpuInstanceId == data.computeInstanceId == 0xFFFFFFFF
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait(event_set, 0)


def test_a_wait_ends_with_an_event(node: Simulator, event_set: Any) -> None:
    """A wait that is under way returns when another process injects an XID."""
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(pynvml.nvmlEventSetWait(event_set, LONG_MS).eventData))
    thread.start()
    node.inject("xid", gpu=0, code=79)
    thread.join()
    assert seen == [79]


def test_every_set_hears_and_none_the_past(node: Simulator, event_set: Any) -> None:
    """All sets that listen get an event; a set made later does not."""
    second = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(pynvml.nvmlDeviceGetHandleByIndex(0), XID, second)
    node.inject("xid", gpu=0, code=94)
    third = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(pynvml.nvmlDeviceGetHandleByIndex(0), XID, third)
    assert pynvml.nvmlEventSetWait(event_set, LONG_MS).eventData == 94
    assert pynvml.nvmlEventSetWait(second, LONG_MS).eventData == 94
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait(third, 0)
    pynvml.nvmlEventSetFree(second)
    pynvml.nvmlEventSetFree(third)


def test_only_registered_gpus_are_heard(node: Simulator) -> None:
    """Events of other GPUs do not come."""
    made = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(pynvml.nvmlDeviceGetHandleByIndex(1), XID, made)
    node.inject("xid", gpu=0, code=31)
    node.inject("xid", gpu=1, code=43)
    assert pynvml.nvmlEventSetWait(made, LONG_MS).eventData == 43
    pynvml.nvmlEventSetFree(made)


def test_a_lost_gpu_ends_every_wait(node: Simulator, event_set: Any) -> None:
    """Losing a GPU gives no event of itself; the events before it are delivered, then waits return at once."""
    node.inject("xid", gpu=0, code=79)
    node.inject("lost", gpu=0)
    assert pynvml.nvmlEventSetWait(event_set, LONG_MS).eventData == 79
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlEventSetWait(event_set, LONG_MS)


def test_events_queue_up(node: Simulator, event_set: Any) -> None:
    """Events that nobody waits for yet are kept in order."""
    for code in range(200):
        node.run("inject", "xid", "gpu=*", f"code={code}")
    codes = [pynvml.nvmlEventSetWait(event_set, LONG_MS).eventData for _ in range(400)]
    assert codes == [code for code in range(200) for _ in range(2)]


def test_wrong_use(node: Simulator, gpu: Any, code: Callable[..., int]) -> None:
    """Event types that no GPU has are NOT_SUPPORTED, null sets are INVALID_ARGUMENT."""
    made = pynvml.nvmlEventSetCreate()
    assert pynvml.nvmlDeviceGetSupportedEventTypes(gpu) & XID
    assert code(pynvml.nvmlDeviceRegisterEvents, gpu, 1 << 40, made) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceRegisterEvents, gpu, XID, None) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code(pynvml.nvmlEventSetWait, None, 0) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    pynvml.nvmlEventSetFree(made)
