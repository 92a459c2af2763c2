"""GPUs' errors by NVML, through a stand-in for its Python binding (no GPU is needed, nor the binding), and injected."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import holdfast.actors
from holdfast.actors import devices
from holdfast.actors.devices import (
    DeviceFailed,
    FileEvents,
    InjectedEvents,
    NvmlEvents,
    events_for,
    visible,
    watch_devices,
)
from holdfast.actors.engines.base import Engine
from holdfast.actors.engines.user_class import load_class
from holdfast.actors.replica import Replica
from holdfast.actors.specification import ReplicaSpecification
from holdfast.core.config import EngineConfig
from holdfast.core.requests import EngineInfo
from tests.unit.support.replicas import PATIENCE_S, eventually

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
        await asyncio.wait_for(watching, PATIENCE_S)
    assert hanging.registered == ["GPU-b"]


async def test_it_is_waited_for_within_bounds_and_the_log_says_so(
    hanging: HangingNvml, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "OPEN_TIMEOUT_S", 0.01)
    with caplog.at_level(logging.WARNING, devices.__name__):
        await asyncio.wait_for(watch_devices(ENGINE), PATIENCE_S)
    assert not hanging.over.is_set()
    assert caplog.messages == ["XID errors are not watched for: NVML did not answer within 0.01 s"]


async def test_a_driver_that_is_not_there_is_no_reason_not_to_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", BrokenNvml())
    with caplog.at_level(logging.WARNING, devices.__name__):
        assert await events_for(ENGINE) == []
    assert caplog.messages == ["XID errors are not watched for: OSError: no driver"]


async def test_without_the_binding_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level(logging.WARNING, devices.__name__):
        assert await events_for(ENGINE) == []
    assert caplog.messages == ["XID errors are not watched for: pip install 'holdfast[gpu]' for that"]


class QuietNvml(Nvml):
    """As `Nvml`, without an error until the test is over."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def nvmlEventSetWait_v2(self, _events: str, _timeout_ms: int) -> object:
        self.over.wait()
        raise self.NVMLError_Timeout


async def test_an_engines_own_way_to_tell_is_heard_beside_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cast(Engine, SimpleNamespace(info=ENGINE.info, device_events=InjectedEvents()))
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    with pytest.raises(DeviceFailed, match="XID 95 on GPU-b"):
        await watch_devices(engine)
    monkeypatch.setitem(sys.modules, "pynvml", quiet := QuietNvml())
    watching = asyncio.create_task(watch_devices(engine))
    engine.device_events.inject(48)  # type: ignore[attr-defined]
    with pytest.raises(DeviceFailed, match="XID 48 on device 0: double bit ECC error"):
        await watching
    quiet.over.set()


# --- injected ---------------------------------------------------------------------------------------------------

REPLICA = "default.tiny.1"
MODEL = Path(holdfast.actors.__file__).parent / "models" / "tiny"


async def torch_engine() -> Engine:
    from holdfast.actors.engines.torch.engine import load_engine
    from holdfast.actors.engines.torch.settings import TorchSettings

    return await load_engine(TorchSettings(str(MODEL)))


async def class_engine() -> Engine:
    return await load_class({"import_path": "examples.engine_class:Echo"})


def written(file: Path, text: str, at_ns: int) -> None:
    """Written at this time: the file system's clock is too coarse for two writes at once."""
    file.write_text(text)
    os.utime(file, ns=(at_ns, at_ns))


def test_a_file_tells_of_what_is_written_into_it_once_and_of_nothing_from_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "xid"
    assert FileEvents(str(file), REPLICA)._look() is None
    written(file, "79", 1)
    events = FileEvents(str(file), REPLICA)
    assert events._look() is None
    for at_ns, said, heard in [
        (2, "79", 79),
        (3, "79\n", 79),
        (4, "", None),
        (5, "31 ", 31),
        (6, f"79 {REPLICA}", 79),
        (7, f"79 {REPLICA}0", None),
        (8, f"79 {REPLICA} 80", None),
        (9, "x" * 1_000, None),
        (10, "\u0667\u0669", None),
    ]:
        written(file, said, at_ns)
        event = events._look()
        assert (event and event.xid) == heard
        assert events._look() is None
    assert len(caplog.messages) == 3
    file.unlink()
    assert events._look() is None


@pytest.mark.parametrize("make", [torch_engine, class_engine])
async def test_an_error_that_is_injected_ends_a_replica_with_any_engine(
    make: Callable[[], Awaitable[Engine]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "LOOK_S", 0.001)
    file, engine = tmp_path / "xid", await make()
    assert not engine.info.device.startswith("cuda")
    written(file, "79", 1)
    specification = ReplicaSpecification(
        "test", REPLICA, "tiny", "127.0.0.1", EngineConfig("mock"), 5.0, xid_file=str(file)
    )
    running = asyncio.create_task(Replica(specification, engine).run())
    stamps = itertools.count(2)

    def injected() -> bool:
        written(file, "79", next(stamps))
        return running.done()

    await eventually(injected)
    with pytest.raises(ExceptionGroup) as failure:
        await running
    (reason,) = failure.value.exceptions
    assert isinstance(reason, DeviceFailed)
    assert str(reason) == f"XID 79 on device 0 (injected by {file}): the GPU has fallen off the bus"
    await engine.close()


async def test_a_replica_runs_where_the_file_to_inject_errors_by_can_not_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await class_engine()
    assert await events_for(engine, str(tmp_path), REPLICA) == []
    assert caplog.messages == [f"no XID errors can be injected: [Errno 21] Is a directory: {str(tmp_path)!r}"]


async def test_nothing_is_injected_where_no_file_is_named() -> None:
    engine = await class_engine()
    assert await events_for(engine) == []
    await asyncio.wait_for(watch_devices(engine), PATIENCE_S)
