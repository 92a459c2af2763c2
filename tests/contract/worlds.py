"""The same small world over the in-memory twins and over the real servers, for one suite."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

from holdfast.core.ports import Leases, Log
from holdfast.store.embedded import ChildProcess, etcd_server, nats_server
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import EtcdGateway
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.memory import MemoryLogServer
from holdfast.store.memory_leases import MemoryLeasesServer
from holdfast.store.settings import EtcdSettings, JetStreamSettings

_numbers = itertools.count(1)

CALL_TIMEOUT_S = 60.0
"""Only ends what hangs (seconds). Tests of calls that fail set less."""

# Short waits before the next try, so that failures pass quickly.
JETSTREAM_FAST: dict[str, Any] = {
    # JetStream reserves a stream's limit on disk, and here are many streams.
    "max_bytes": 1 << 24,
    "publish_timeout_s": 0.5,
    "append_timeout_s": CALL_TIMEOUT_S,
    "read_timeout_s": CALL_TIMEOUT_S,
    "open_timeout_s": CALL_TIMEOUT_S,
    "ping_interval_s": 0.2,
    "reconnect_wait_min_s": 0.01,
    "reconnect_wait_max_s": 0.1,
    "follow_heartbeat_s": 0.5,
}
ETCD_FAST: dict[str, Any] = {
    "request_timeout_s": CALL_TIMEOUT_S,
    "try_timeout_s": 0.5,
    "retry_wait_min_s": 0.01,
    "retry_wait_max_s": 0.1,
    "watch_silence_s": 0.5,
}


def jetstream_settings(*urls: str, name: str | None = None, **changes: Any) -> JetStreamSettings:
    """Settings for a stream of its own (or the one named)."""
    name = name or f"test-{next(_numbers)}"
    return JetStreamSettings(urls=urls, stream=name, subject_prefix=name, **{**JETSTREAM_FAST, **changes})


def etcd_settings(*urls: str, prefix: str | None = None, **changes: Any) -> EtcdSettings:
    """Settings for a prefix of its own (or the one named)."""
    prefix = prefix or f"/test-{next(_numbers)}/"
    return EtcdSettings(endpoints=urls, prefix=prefix, **{**ETCD_FAST, **changes})


class LogWorld(Protocol):
    """A log's server and clients of it."""

    async def client(self) -> Log: ...

    async def limited(self, max_bytes: int) -> Log:
        """A client of another, small log."""
        ...

    async def crash(self) -> None: ...

    async def recover(self) -> None: ...

    async def trim(self, below: int) -> None: ...


class MemoryLogWorld:
    def __init__(self) -> None:
        self._server = MemoryLogServer()

    async def client(self) -> Log:
        return self._server.client()

    async def limited(self, max_bytes: int) -> Log:
        return MemoryLogServer(max_bytes=max_bytes).client()

    async def crash(self) -> None:
        self._server.stop()

    async def recover(self) -> None:
        self._server.start()

    async def trim(self, below: int) -> None:
        self._server.trim(below)


class JetStreamWorld:
    """Over a shared server by its URL, or over one of its own, which can crash."""

    def __init__(self, stack: AsyncExitStack, url: str, server: ChildProcess | None = None) -> None:
        self._stack = stack
        self._url = url
        self._server = server
        self._settings = jetstream_settings(url)

    @classmethod
    async def with_own_server(cls, stack: AsyncExitStack, folder: Path) -> JetStreamWorld:
        server = await stack.enter_async_context(nats_server(folder))
        return cls(stack, server.url, server)

    async def client(self) -> JetStreamLog:
        return await self._open(self._settings)

    async def limited(self, max_bytes: int) -> Log:
        return await self._open(jetstream_settings(self._url, max_bytes=max_bytes))

    async def crash(self) -> None:
        assert self._server is not None
        await self._server.kill()

    async def recover(self) -> None:
        assert self._server is not None
        await self._server.start()

    async def trim(self, below: int) -> None:
        log = await self.client()
        await log._api.call(f"STREAM.PURGE.{self._settings.stream}", {"seq": below}, timeout_s=CALL_TIMEOUT_S)

    async def _open(self, settings: JetStreamSettings) -> JetStreamLog:
        log = await JetStreamLog.open(settings)
        self._stack.push_async_callback(log.close)
        return log


class HealthyLeases(Leases, Protocol):
    """Leases that tell their health, as both adapters do."""

    @property
    def connected(self) -> bool: ...

    @property
    def down_since(self) -> float | None: ...


class LeasesWorld(Protocol):
    """A lease server and clients of it."""

    async def client(self, *, request_timeout_s: float = CALL_TIMEOUT_S) -> HealthyLeases: ...

    async def crash(self) -> None: ...

    async def recover(self) -> None: ...

    async def compact(self) -> None:
        """Forget all changes up to now."""
        ...


class MemoryLeasesWorld:
    def __init__(self) -> None:
        self._server = MemoryLeasesServer()

    async def client(self, *, request_timeout_s: float = CALL_TIMEOUT_S) -> HealthyLeases:
        return self._server.client(request_timeout_s=request_timeout_s)

    async def crash(self) -> None:
        self._server.stop()

    async def recover(self) -> None:
        self._server.start()

    async def compact(self) -> None:
        self._server.compact()


class EtcdWorld:
    """Over a shared server by its URL, or over one of its own, which can crash."""

    def __init__(self, stack: AsyncExitStack, url: str, server: ChildProcess | None = None) -> None:
        self._stack = stack
        self._server = server
        self._settings = etcd_settings(url)

    @classmethod
    async def with_own_server(cls, stack: AsyncExitStack, folder: Path) -> EtcdWorld:
        server = await stack.enter_async_context(etcd_server(folder))
        return cls(stack, server.url, server)

    async def client(self, *, request_timeout_s: float = CALL_TIMEOUT_S) -> EtcdLeases:
        settings = self._settings.model_copy(update={"request_timeout_s": request_timeout_s})
        leases = await EtcdLeases.open(settings)
        self._stack.push_async_callback(leases.close)
        return leases

    async def crash(self) -> None:
        assert self._server is not None
        await self._server.kill()

    async def recover(self) -> None:
        assert self._server is not None
        await self._server.start()

    async def compact(self) -> None:
        await compact(EtcdGateway(self._settings))


async def compact(gateway: EtcdGateway) -> None:
    """Make etcd forget all changes up to now, and close this client of it."""
    try:
        revision = (await gateway.call("kv/range", {"key": "AA==", "count_only": True})).revision
        await gateway.call("kv/compaction", {"revision": str(revision), "physical": True})
    finally:
        await gateway.close()
