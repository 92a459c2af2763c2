"""Node and gateway processes' wiring against real servers that are away when they start."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.errors import IncompatibleServer, LogUnavailable
from holdfast.gateway.cli.reading import read_leases, read_log
from holdfast.gateway.cli.running import first_known
from holdfast.gateway.processes import run_gateway, run_node
from holdfast.gateway.settings import Settings, load_settings
from holdfast.store.embedded import etcd_server, free_port, nats_server

SOON_S = 60.0


def settings_for(nats: int, etcd: int, **nats_more: Any) -> Settings:
    """A cluster's settings, quick to try again."""
    return load_settings(
        nats={"urls": [f"nats://127.0.0.1:{nats}"], **nats_more},
        etcd={"endpoints": [f"http://127.0.0.1:{etcd}"], "request_timeout_s": 1},
        gateway={"port": free_port(), "drain_timeout_s": 0},
    )


@asynccontextmanager
async def members(settings: Settings, folder: Path) -> AsyncIterator[asyncio.Future[tuple[None, None]]]:
    """A node and a gateway; told to stop at the end."""
    stop = asyncio.Event()
    running = asyncio.ensure_future(
        asyncio.gather(run_node(settings, "n", folder, stop), run_gateway(settings, "g", stop))
    )
    try:
        yield running
    finally:
        stop.set()
        await running
        gc.unfreeze()


async def until_joined(settings: Settings) -> None:
    """Wait until the log has both."""
    async with asyncio.timeout(SOON_S):
        while True:
            with suppress(LogUnavailable):  # nobody has made the stream yet
                state = (await read_log(settings)).state
                if state.nodes and state.gateways:
                    return
            await asyncio.sleep(0.1)


async def test_members_start_while_the_lease_servers_are_away_and_take_leases_when_they_come(
    nats_url: str, tmp_path: Path
) -> None:
    etcd = etcd_server(tmp_path / "etcd")
    settings = settings_for(int(nats_url.rpartition(":")[2]), int(etcd.url.rpartition(":")[2]))
    settings = settings.model_copy(update={"cluster": "away"})
    async with members(settings, tmp_path):
        await until_joined(settings)
        assert gc.get_freeze_count() > 0, "what they loaded is not looked through for garbage"
        async with etcd, asyncio.timeout(SOON_S):
            while True:
                keys = {item.key.split("/")[0] for item in (await read_leases(settings)).keys}
                if keys == {"nodes", "gateways", "leader"}:
                    break
                await asyncio.sleep(0.1)


async def test_members_wait_for_a_log_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nats = nats_server(tmp_path / "nats")
    settings = settings_for(int(nats.url.rpartition(":")[2]), free_port(), open_timeout_s=0.5)
    with caplog.at_level(logging.WARNING):
        async with members(settings, tmp_path) as running:
            async with asyncio.timeout(SOON_S):
                while caplog.text.count("waiting for the log, without which nothing can start") < 4:
                    assert not running.done()
                    await asyncio.sleep(0.02)
            assert not running.done()
        assert running.done(), "told to stop while waiting"
        await nats.start()
        async with members(settings, tmp_path):
            await until_joined(settings)
        await nats.stop()


async def test_a_lease_server_that_is_too_old_ends_a_member_with_one_line(nats_url: str, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"etcdserver": "3.3.0"}'
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        settings = settings_for(int(nats_url.rpartition(":")[2]), listener.sockets[0].getsockname()[1])
        settings = settings.model_copy(update={"cluster": "old"})
        with pytest.raises(BaseExceptionGroup) as caught:
            async with asyncio.timeout(SOON_S):
                await run_node(settings, "n", tmp_path, asyncio.Event())
    assert isinstance(first_known(caught.value), IncompatibleServer)
