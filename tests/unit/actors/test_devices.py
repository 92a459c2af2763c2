"""GPUs' errors by NVML, through a stand-in for its Python binding: no GPU is needed, nor the binding."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from holdfast.actors import devices
from holdfast.actors.devices import DeviceFailed, NvmlEvents, events_for, visible, watch_devices
from holdfast.actors.engines.base import Engine
from holdfast.core.requests import EngineInfo
from tests.unit.support.replicas import eventually

ENGINE = cast(Engine, SimpleNamespace(info=EngineInfo("m", 8, 8, 8, True, "cuda:1")))


class Nvml:
    """As much of NVML's Python binding as is used: one event on the second GPU, then none."""

    nvmlEventTypeXidCriticalError = 8

    class NVMLError_Timeout(Exception):
        pass

    def __init__(self) -> None:
        self.registered: list[str] = []
        self.events = [SimpleNamespace(device="GPU-b", eventData=95)]

    def nvmlInit(self) -> None: ...

    def nvmlEventSetCreate(self) -> str:
        return "set"

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU-{'ab'[index]}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceRegisterEvents(self, handle: str, kind: int, _events: str) -> None:
        assert kind == self.nvmlEventTypeXidCriticalError
        self.registered.append(handle)

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlEventSetWait_v2(self, _events: str, _timeout_ms: int) -> object:
        if not self.events:
            raise self.NVMLError_Timeout
        return self.events.pop()


@pytest.mark.parametrize(
    ("devices", "registered"), [([], ["GPU-a", "GPU-b"]), (["1"], ["GPU-b"]), (["GPU-x"], ["GPU-x"])]
)
async def test_nvml_tells_of_the_gpus_that_the_engine_uses(devices: list[str], registered: list[str]) -> None:
    nvml = Nvml()
    events = NvmlEvents(nvml, devices)
    assert nvml.registered == registered
    assert await events.next() == ("GPU-b", 95)


@pytest.mark.parametrize(
    ("device", "shown", "means"),
    [("cuda", "", []), ("cuda:1", "", ["1"]), ("cuda:1", "4,7", ["7"]), ("cuda", "GPU-a,GPU-b", ["GPU-a", "GPU-b"])],
)
def test_an_engines_device_is_found_among_those_that_it_may_see(device: str, shown: str, means: list[str]) -> None:
    assert visible(device, {"CUDA_VISIBLE_DEVICES": shown}) == means


class HangingNvml(Nvml):
    """As `Nvml`, on a driver that does not answer until the test is over."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.over = threading.Event()

    def nvmlInit(self) -> None:
        self.asked.set()
        assert threading.current_thread() is not threading.main_thread()
        self.over.wait()


class BrokenNvml(Nvml):
    """As `Nvml`, without a driver."""

    def nvmlInit(self) -> None:
        raise OSError("no driver")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingNvml]:
    nvml = HangingNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield nvml
    nvml.over.set()


async def test_a_driver_that_hangs_holds_up_nobody(hanging: HangingNvml) -> None:
    watching = asyncio.create_task(watch_devices(ENGINE))
    await eventually(hanging.asked.is_set)
    for _turn in range(1_000):
        await asyncio.sleep(0)
    assert not watching.done()
    hanging.over.set()
    with pytest.raises(DeviceFailed, match="XID 95 on GPU-b: uncontained memory error"):
        await asyncio.wait_for(watching, 10)
    assert hanging.registered == ["GPU-b"]


async def test_it_is_waited_for_within_bounds_and_the_log_says_so(
    hanging: HangingNvml, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "OPEN_TIMEOUT_S", 0.01)
    with caplog.at_level(logging.WARNING, devices.__name__):
        await asyncio.wait_for(watch_devices(ENGINE), 10)
    assert not hanging.over.is_set()
    assert caplog.messages == ["XID errors are not watched for: NVML did not answer within 0.01 s"]


async def test_a_driver_that_is_not_there_is_no_reason_not_to_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", BrokenNvml())
    with caplog.at_level(logging.WARNING, devices.__name__):
        assert await events_for(ENGINE) is None
    assert caplog.messages == ["XID errors are not watched for: OSError: no driver"]


async def test_without_the_binding_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level(logging.WARNING, devices.__name__):
        assert await events_for(ENGINE) is None
    assert caplog.messages == ["XID errors are not watched for: pip install 'holdfast[gpu]' for that"]
