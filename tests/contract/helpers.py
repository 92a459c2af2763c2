"""Waiting for what is observed, reading a bounded part of what never ends, and certificates for one test."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""Only ends what hangs (seconds)."""

POLL_S = 0.01


async def eventually(observe: Callable[[], Any], *, timeout_s: float = PATIENCE_S) -> Any:
    """Poll until `observe` (a function or a coroutine function) gives something true; what it gave."""
    async with asyncio.timeout(timeout_s):
        while True:
            seen = observe()
            result = await seen if isinstance(seen, Awaitable) else seen
            if result:
                return result
            await asyncio.sleep(POLL_S)


class Reading(Generic[T]):
    """A task that reads an endless iterator into `items`; for use with `async with`."""

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self.items: list[T] = []
        self._source = source
        self._task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()

    async def __aenter__(self) -> Reading[T]:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def until(self, enough: Callable[[list[T]], bool], *, timeout_s: float = PATIENCE_S) -> list[T]:
        """Wait until the items satisfy `enough`; raises what the iterator raised."""
        assert self._task is not None
        async with asyncio.timeout(timeout_s):
            while not enough(self.items):
                if self._task.done():
                    await self._task
                self._more.clear()
                await self._more.wait()
        return self.items

    async def count(self, number: int, *, timeout_s: float = PATIENCE_S) -> list[T]:
        return await self.until(lambda items: len(items) >= number, timeout_s=timeout_s)

    async def _read(self) -> None:
        try:
            async for item in self._source:
                self.items.append(item)
                self._more.set()
        finally:
            self._more.set()
            await self._source.aclose()


class Certificates:
    """An authority and one certificate signed by it, good for servers and clients on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.certificate, self.key = folder / "ca.pem", folder / "peer.pem", folder / "peer.key"
        ca_key, request, extensions = folder / "ca.key", folder / "peer.csr", folder / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=test authority", "-keyout", str(ca_key), "-out", str(self.ca),
        )  # fmt: skip
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", "/CN=holdfast", "-keyout", str(self.key), "-out", str(request),
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(ca_key), "-CAcreateserial",
            "-days", "2", "-extfile", str(extensions), "-out", str(self.certificate),
        )  # fmt: skip

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
