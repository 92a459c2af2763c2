"""The system port: its pages, ports that are taken, and clients that do not behave."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from holdfast.actors import system_port
from holdfast.actors.metrics import CONTENT_TYPE, Ledger, Section
from holdfast.actors.system_port import CONNECTIONS_MAX, SystemPort, system_pages
from tests.unit.support.ports import free_port
from tests.unit.support.replicas import PATIENCE_S, eventually

HOST = "127.0.0.1"


class Process:
    """What has a system port, and may be unwell."""

    def __init__(self) -> None:
        things = Section("Things")
        self.counter = things.counter("holdfast_things", "Things.")
        self.ledger = Ledger(things)
        self.reasons: list[str] = []
        self.system = SystemPort(system_pages(self.ledger, lambda: self.reasons))

    async def get(self, path: str, method: str = "GET") -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.request(method, f"http://{HOST}:{self.system.port}{path}")


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    process = Process()
    await process.system.open(HOST, free_port())
    yield process
    process.system.close()
    await asyncio.sleep(0)


async def raw(port: int, data: bytes) -> bytes:
    """What comes back until the port closes the connection, or resets it."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(data)
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_health_is_200_while_nothing_is_wrong_and_503_with_the_reasons_otherwise(process: Process) -> None:
    well = await process.get("/health")
    assert (well.status_code, well.json()) == (200, {"status": "healthy", "reasons": []})
    process.reasons = ["the engine is being loaded"]
    unwell = await process.get("/health")
    assert (unwell.status_code, unwell.json()["reasons"]) == (503, ["the engine is being loaded"])
    assert (await process.get("/live")).status_code == 200


async def test_metrics_are_in_the_text_format_and_made_anew_when_they_are_old(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_port, "METRICS_KEPT_S", float("inf"))
    process.ledger.add(process.counter)
    first = await process.get("/metrics")
    assert first.headers["content-type"] == CONTENT_TYPE
    assert "holdfast_things_total 1.0" in first.text
    process.ledger.add(process.counter)
    assert (await process.get("/metrics")).text == first.text
    monkeypatch.setattr(system_port, "METRICS_KEPT_S", 0.0)
    assert "holdfast_things_total 2.0" in (await process.get("/metrics")).text


async def test_other_paths_and_methods_are_refused(process: Process) -> None:
    assert (await process.get("/nothing")).status_code == 404
    refused = await process.get("/health", "POST")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    head = await process.get("/health", "HEAD")
    assert (head.status_code, head.content) == (200, b"")


async def test_several_requests_on_one_connection_are_answered_in_order(process: Process) -> None:
    request = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await raw(process.system.port, request * 2 + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"404"]


@pytest.mark.parametrize("data", [b"\x16\x03\x01 nonsense\r\n\r\n", b"GET /live HTTP/1.1\r\n" + b"x" * 100_000])
async def test_what_is_not_http_is_answered_with_an_error_and_closed(process: Process, data: bytes) -> None:
    answer = await raw(process.system.port, data)
    assert answer.startswith(b"HTTP/1.1 4")
    assert (await process.get("/live")).status_code == 200


async def test_a_client_that_says_nothing_is_left_in_time(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_port, "REQUEST_TIMEOUT_S", 0.05)
    assert await raw(process.system.port, b"GET /li") == b""


async def test_a_client_that_sends_many_requests_at_once_is_left(process: Process) -> None:
    answer = await raw(process.system.port, b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n" * 1_000)
    assert answer.count(b"HTTP/1.1 200") <= system_port.PIPELINED_MAX
    assert (await process.get("/live")).status_code == 200


async def test_a_client_that_asks_on_and_takes_no_answer_is_left_with_what_waits_for_it() -> None:
    port = SystemPort({"/large": lambda: (200, "text/plain", b"x" * 4_000_000)})
    await port.open(HOST, free_port())
    _reader, writer = await asyncio.open_connection(HOST, port.port, limit=1_024)
    writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
    await eventually(lambda: any(one._transport.get_write_buffer_size() for one in port._connections if one._transport))
    writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
    await eventually(lambda: not port._connections)
    writer.close()
    port.close()


async def test_no_more_connections_than_the_limit_are_kept(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_port, "REQUEST_TIMEOUT_S", PATIENCE_S)
    held = [await asyncio.open_connection(HOST, process.system.port) for _ in range(CONNECTIONS_MAX)]
    assert await raw(process.system.port, b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n") == b""
    for _reader, writer in held:
        writer.close()
        await writer.wait_closed()
    await eventually(lambda: not process.system._connections)
    assert (await process.get("/live")).status_code == 200


async def test_a_port_that_is_taken_is_passed_over() -> None:
    process = Process()
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        first = int(taken.getsockname()[1])
        await process.system.open(HOST, first)
        assert first < process.system.port < first + system_port.PORT_TRIES
        assert (await process.get("/live")).status_code == 200
    process.system.close()


async def test_without_any_free_port_there_is_a_warning_and_no_port(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(system_port, "PORT_TRIES", 1)
    process = Process()
    with socket.socket() as taken, caplog.at_level(logging.WARNING):
        taken.bind((HOST, 0))
        taken.listen()
        await process.system.open(HOST, int(taken.getsockname()[1]))
    assert process.system.port == 0
    assert "no system port" in caplog.text


async def test_a_host_that_is_none_is_looked_up_once(
    process: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    async def unknown(_protocol: object, host: str, port: int) -> None:
        asked.append((host, port))
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_server", unknown)
    system = SystemPort(system_pages(process.ledger, list))
    await system.open("nowhere.invalid", 9_090)
    assert (asked, system.port) == ([("nowhere.invalid", 9_090)], 0)
    assert "Name or service not known" in caplog.text


async def test_port_0_means_none(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    await process.system.open(HOST, 0)
    assert process.system.port == 0
    assert not caplog.records
