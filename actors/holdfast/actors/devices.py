"""What devices say of themselves: XID errors, which NVIDIA's driver reports when a GPU fails under an engine.

An engine notices that late or never: its next call may hang. A replica whose device fails ends at once with the reason.
CUDA errors and a lack of memory come as exceptions out of the engine's steps, and end the replica by themselves.

They are heard from NVML where the engine is on a GPU, from the engine itself if it has a way of its own, and, to try
out what follows, from a file that a setting names: that works for every engine, and on machines without a GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
from typing import Any, Final, NamedTuple, Protocol

from holdfast.actors.engines.base import Engine
from holdfast.actors.threads import in_thread
from holdfast.core.errors import HoldfastError

FATAL_XIDS: Final = {
    43: "the GPU stopped processing",
    46: "the GPU stopped processing",
    48: "double bit ECC error",
    62: "the internal micro-controller halted",
    64: "a row remapping or page retirement failed",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    109: "context switch timeout",
    119: "GSP RPC timeout",
    120: "GSP error",
    136: "link error",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
}
"""XIDs after which work on the GPU is lost, by NVIDIA's catalogue ("XID Errors", docs.nvidia.com/deploy/xid-errors).

Others are noted in the log only. Those that a program brings on itself (13, 31, 45) are not for everybody who uses the
GPU, and NVML doesn't tell whose they were: the program itself gets a CUDA error."""

WAIT_MS: Final = 5_000
"""NVML is asked for the next event for so long at a time, in a thread (milliseconds)."""

INJECTED_MAX: Final = 64
"""So many injected errors wait to be heard."""

OPEN_TIMEOUT_S: Final = 30.0
"""NVML is waited for so long when it is first asked (seconds): a driver that hangs does so for ever."""

LOOK_S: Final = WAIT_MS / 1000
"""The file of injected errors is looked at as often (seconds)."""

FILE_BYTES_MAX: Final = 256
"""No more of it is read than that."""

RETRY_S: Final = 5.0
"""After an error of NVML's it is asked again so much later (seconds)."""

logger = logging.getLogger(__name__)


class DeviceFailed(HoldfastError):
    """A device that the engine works on has failed: only a new process helps, and perhaps another device."""


class DeviceEvent(NamedTuple):
    """A device reported an error."""

    device: str
    xid: int


class DeviceEvents(Protocol):
    """Where devices' errors are heard."""

    async def next(self) -> DeviceEvent:
        """Wait for the next error of any of the devices."""
        ...


class InjectedEvents:
    """As `DeviceEvents`, for tests: what is injected happens."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[DeviceEvent] = asyncio.Queue(INJECTED_MAX)

    def inject(self, xid: int) -> None:
        """Let a device report this. What nobody waits for any more is dropped."""
        with contextlib.suppress(asyncio.QueueFull):
            self._events.put_nowait(DeviceEvent("device 0", xid))

    async def next(self) -> DeviceEvent:
        """As `DeviceEvents.next`."""
        return await self._events.get()


class FileEvents:
    """As `DeviceEvents`: the error whose number is written into a file, once each time it is written.

    Behind the number may stand a replica's name, which is then the only one whose device fails. What was in the file
    before this was made is none, so that a replica's replacement does not fail too. Made in a thread, as it reads;
    raises `OSError` where it can't.
    """

    def __init__(self, path: str, replica: str) -> None:
        self._path = path
        self._replica = replica
        self._seen = self._read()

    async def next(self) -> DeviceEvent:
        """As `DeviceEvents.next`. Raises `OSError` where the file can't be read."""
        while True:
            event = await in_thread(self._look)
            if event is not None:
                return event
            await asyncio.sleep(LOOK_S)

    def _read(self) -> tuple[int, bytes]:
        """When the file was written (nanoseconds), and what; 0 and nothing while there is none."""
        try:
            with open(self._path, "rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns, file.read(FILE_BYTES_MAX)
        except FileNotFoundError:
            return 0, b""

    def _look(self) -> DeviceEvent | None:
        """In a thread: the error that was written since the last look."""
        seen, self._seen = self._seen, self._read()
        words = self._seen[1].decode(errors="replace").split()
        if self._seen == seen or not words:
            return None
        if len(words) > 2:
            logger.warning("%s has more than one XID and one replica's name: it counts for nothing", self._path)
        if words[1:] not in ([], [self._replica]):
            return None
        if not (words[0].isascii() and words[0].isdecimal()):
            logger.warning("%s has no XID: %.20r", self._path, words[0])
            return None
        return DeviceEvent(f"device 0 (injected by {self._path})", int(words[0]))


class NvmlEvents:
    """As `DeviceEvents`, by NVML. `devices` are UUIDs, or indices among all GPUs; none for all of them.

    Made in a thread, for the driver may take long to answer, or never do. Raises NVML's errors where it can't be had,
    and `OSError` where there is no driver.
    """

    def __init__(self, nvml: Any, devices: list[str]) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._set = nvml.nvmlEventSetCreate()
        for device in devices or [str(index) for index in range(nvml.nvmlDeviceGetCount())]:
            by_index = device.isdecimal()
            handle = (
                nvml.nvmlDeviceGetHandleByIndex(int(device)) if by_index else nvml.nvmlDeviceGetHandleByUUID(device)
            )
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._set)

    async def next(self) -> DeviceEvent:
        """As `DeviceEvents.next`."""
        while True:
            event = await in_thread(self._wait)
            if event is not None:
                return event

    def _wait(self) -> DeviceEvent | None:
        """In a thread: the next event, None if there was none for a while."""
        nvml = self._nvml
        try:
            data = nvml.nvmlEventSetWait_v2(self._set, WAIT_MS)
        except nvml.NVMLError_Timeout:
            return None
        uuid = nvml.nvmlDeviceGetUUID(data.device)
        return DeviceEvent(uuid.decode() if isinstance(uuid, bytes) else str(uuid), int(data.eventData))


async def events_for(engine: Engine, xid_file: str = "", replica: str = "") -> list[DeviceEvents]:
    """Where the errors of an engine's devices are heard; nowhere if it has none, or nobody tells in time.

    An engine may bring its own (`device_events`), and `xid_file` is where the replica's are injected, unless it is
    empty.
    """
    own: DeviceEvents | None = getattr(engine, "device_events", None)
    found = [] if own is None else [own]
    if xid_file:
        try:
            found.append(await in_thread(lambda: FileEvents(xid_file, replica)))
        except OSError as error:  # what is there to try out failures must not be one
            logger.warning("no XID errors can be injected: %s", error)
    if engine.info.device.startswith("cuda"):
        found += await _nvml(visible(engine.info.device, os.environ))
    return found


async def _nvml(devices: list[str]) -> list[DeviceEvents]:
    """NVML, if it can be had in time."""
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            return [await in_thread(lambda: NvmlEvents(importlib.import_module("pynvml"), devices))]
    except TimeoutError:
        logger.warning("XID errors are not watched for: NVML did not answer within %g s", OPEN_TIMEOUT_S)
    except ImportError:
        logger.warning("XID errors are not watched for: pip install 'holdfast[gpu]' for that")
    except Exception as error:  # whatever NVML has against it: it is no reason not to serve
        logger.warning("XID errors are not watched for: %s: %s", type(error).__name__, error)
    return []


def visible(device: str, environment: Any) -> list[str]:
    """The GPUs that `device` (`cuda`, or `cuda:1`) can mean in this environment: as in `NvmlEvents`."""
    shown = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    _, _, index = device.partition(":")
    if not index.isdecimal():
        return shown
    return shown[int(index) : int(index) + 1] if shown else [index]


async def watch_devices(engine: Engine, xid_file: str = "", replica: str = "") -> None:
    """Raise `DeviceFailed` when a device of the engine's fails, as `events_for` hears it; return where nobody tells."""
    sources = await events_for(engine, xid_file, replica)
    try:
        async with asyncio.TaskGroup() as group:
            for events in sources[1:]:
                group.create_task(_watch(events))
            if sources:
                await _watch(sources[0])
    except BaseExceptionGroup as failures:
        # Whichever was heard first is the reason; the replica tells one.
        raise failures.exceptions[0] from None


async def _watch(events: DeviceEvents) -> None:
    """Raise `DeviceFailed` when this source tells that a device failed."""
    while True:
        try:
            event = await events.next()
        except Exception as error:
            logger.warning("waiting for XID errors: %s: %s", type(error).__name__, error)
            await asyncio.sleep(RETRY_S)
            continue
        what = FATAL_XIDS.get(event.xid)
        if what is not None:
            raise DeviceFailed(f"XID {event.xid} on {event.device}: {what}")
        logger.warning("XID %d on %s: the engine goes on", event.xid, event.device)
