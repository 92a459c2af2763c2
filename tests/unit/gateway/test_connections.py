"""What only a real server and a real socket show: clients that go, send too much, or do not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from holdfast.gateway.app import App, HttpSettings, create_app
from tests.unit.gateway.client import CHAT, chat, connected
from tests.unit.gateway.fakes import FakeBackend
from tests.unit.gateway.server import serving

SOON_S = 60.0
WRITE_TIMEOUT_S = 1.0


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def app(backend: FakeBackend) -> App:
    return create_app(backend, HttpSettings(body_bytes_max=100_000))


@pytest.fixture
async def port(app: App) -> AsyncIterator[int]:
    others = asyncio.all_tasks()
    async with serving(app) as port:
        yield port
    assert asyncio.all_tasks() - {asyncio.current_task()} <= others, "a task was left behind"


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until the condition holds: what it waits for is told to nobody."""
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def outcomes(app: App) -> str:
    """The metrics, once no request is in flight any more."""
    await until(lambda: app.metrics.in_flight == 0)
    return app.metrics.text().decode()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_frees_the_engine_at_once(
    app: App, backend: FakeBackend, port: int, stream: bool
) -> None:
    backend.gate = asyncio.Event()
    async with connected(port) as connection:
        await connection.post(CHAT, chat(stream=stream))
        if stream:
            await connection.reader.readuntil(b"\n\n")
        await until(lambda: backend.open_sessions)
    await asyncio.wait_for(backend.left.wait(), SOON_S)
    assert backend.open_sessions == 0
    assert 'outcome="cancelled"' in await outcomes(app)


async def test_a_client_that_does_not_read_holds_the_engine_back_and_may_go(
    app: App, backend: FakeBackend, port: int
) -> None:
    backend.chunk = 64
    async with connected(port) as connection:
        await connection.post(CHAT, chat(stream=True, ignore_eos=True, max_tokens=10_000_000))
        still = 0
        async with asyncio.timeout(SOON_S):
            while still < 20_000:
                before = backend.chunks
                await asyncio.sleep(0)
                still = still + 1 if backend.chunks == before and before else 0
        assert backend.open_sessions == 1
        assert backend.chunks < 2_000, "some 30 MB are in buffers that should have been held back"
        connection.writer.transport.abort()
    await asyncio.wait_for(backend.left.wait(), SOON_S)
    assert 'outcome="cancelled"' in await outcomes(app)


def server_ends(port: int) -> list[Any]:
    """This process's sockets that the server on the port has accepted and not closed."""
    here = psutil.Process().net_connections("tcp")
    return [end for end in here if end.laddr.port == port and end.status != psutil.CONN_LISTEN]


async def test_a_client_that_reads_nothing_for_too_long_is_cut_and_its_engine_freed(backend: FakeBackend) -> None:
    app = create_app(backend, HttpSettings(write_timeout_s=WRITE_TIMEOUT_S))
    backend.chunk = 1_000
    async with serving(app) as port, connected(port) as connection:
        await connection.post(CHAT, chat(stream=True, ignore_eos=True, max_tokens=10_000_000))
        await asyncio.wait_for(backend.left.wait(), SOON_S)
        assert 'outcome="slow_client"' in await outcomes(app)
        await until(lambda: not server_ends(port))
        with pytest.raises(ConnectionResetError):
            await connection.reader.read(-1)


async def test_a_client_that_reads_slowly_is_left_alone(backend: FakeBackend) -> None:
    app = create_app(backend, HttpSettings(write_timeout_s=WRITE_TIMEOUT_S))
    backend.chunk = 1_000
    async with serving(app) as port, connected(port) as connection:
        await connection.post(CHAT, chat(stream=True, ignore_eos=True, max_tokens=30_000))
        read = b""
        while b"[DONE]" not in read:
            read = read[-20:] + await connection.reader.read(1 << 20)
            await asyncio.sleep(WRITE_TIMEOUT_S / 40)
        assert 'outcome="ok"' in await outcomes(app)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_far_over_the_limit_gets_its_413_and_the_connection_lives(port: int, chunked: bool) -> None:
    part = b" " * 65_536
    async with connected(port) as connection:
        connection.head(CHAT, "transfer-encoding: chunked" if chunked else f"content-length: {200 * len(part)}")
        for _ in range(200):
            connection.writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            await connection.writer.drain()
        connection.writer.write(b"0\r\n\r\n" if chunked else b"")
        assert b" 413 " in await connection.reader.readuntil(b"\r\n\r\n")
        assert b"request_too_large" in await connection.reader.readuntil(b"}}")
        await connection.post(CHAT, chat(max_tokens=1))
        assert b" 200 " in await connection.reader.readuntil(b"\r\n\r\n")


async def test_a_body_that_does_not_come_is_408(backend: FakeBackend) -> None:
    app = create_app(backend, HttpSettings(body_timeout_s=0.05))
    async with serving(app) as port, connected(port) as connection:
        connection.head(CHAT, "content-length: 100")
        connection.writer.write(b"{")
        assert b" 408 " in await connection.reader.readuntil(b"\r\n\r\n")
    assert 'outcome="slow_client"' in await outcomes(app)


async def test_thresholds_that_do_not_come_are_408(backend: FakeBackend) -> None:
    app = create_app(backend, HttpSettings(body_timeout_s=0.05))
    async with serving(app) as port, connected(port) as connection:
        connection.head("/busy_threshold", "content-length: 100")
        connection.writer.write(b"{")
        assert b" 408 " in await connection.reader.readuntil(b"\r\n\r\n")
        assert b"request_timeout" in await connection.reader.readuntil(b"}}")


async def test_a_client_that_goes_while_sending_is_not_an_error(
    app: App, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(port) as connection:
        connection.head(CHAT, "content-length: 100")
        connection.writer.write(b"{")
        await connection.writer.drain()
        await until(lambda: app.metrics.in_flight)
    assert 'outcome="cancelled"' in await outcomes(app)
    assert "error" not in caplog.text.lower()


async def test_an_answer_of_one_token_comes_in_one_piece(port: int) -> None:
    async with connected(port) as connection:
        await connection.post(CHAT, chat(stream=True, max_tokens=1))
        head = await connection.reader.readuntil(b"\r\n\r\n")
        assert b"content-length" in head


async def test_cancelling_from_outside_is_not_taken_for_a_client_that_went() -> None:
    """A server that ends cancels its requests: that must get through."""
    backend = FakeBackend(gate=asyncio.Event())
    app = create_app(backend)
    body: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if body:
            return {**body.pop(), "body": json.dumps(chat(stream=True)).encode()}
        await asyncio.Event().wait()

    sent = asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.set()

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    request = asyncio.create_task(app(scope, receive, send))
    await sent.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert backend.open_sessions == 0
