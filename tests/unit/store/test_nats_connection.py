"""Whoever is cancelled while nats-py works for them is cancelled, though nats-py forgets it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
import pytest

from holdfast.store import nats_connection
from holdfast.store.nats_connection import Connection
from holdfast.store.settings import JetStreamSettings

SETTINGS = JetStreamSettings(urls=("nats://a:1",))


class Forgetful:
    """nats-py's client whose first wait drops a cancellation: its answer came just then, or `error` did."""

    def __init__(self, error: Exception | None = None) -> None:
        self.is_connected = True
        self.waiting = asyncio.Event()
        self.closed = 0
        self.error = error

    def new_inbox(self) -> str:
        return "_INBOX.a"

    async def _wait(self, *_arguments: Any, **_options: Any) -> Any:
        if not self.waiting.is_set():
            self.waiting.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return self

    connect = publish = subscribe = unsubscribe = flush = _wait

    async def close(self) -> None:
        self.closed += 1


class Transport:
    def close(self) -> None: ...


Call = Callable[[Connection, Forgetful], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "publish": lambda connection, _client: connection.publish("a", b""),
    "request": lambda connection, _client: connection.request("a", b"", 5),
    "subscribe": lambda connection, _client: connection.subscribe("a", _unheard),
    "unsubscribe": lambda connection, client: connection.unsubscribe(client),  # type: ignore[arg-type]
    "probe": lambda connection, _client: connection.probe(5),
}


async def _unheard(_message: Any) -> None: ...


@pytest.mark.parametrize("error", [None, nats.errors.TimeoutError()], ids=["answered", "failed"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_who_is_cancelled_in_a_call_is_cancelled(call: Call, error: Exception | None) -> None:
    client = Forgetful(error)
    connection = Connection(client, Transport(), "nats://a:1")  # type: ignore[arg-type]
    rounds: list[None] = []

    async def for_ever() -> None:
        while len(rounds) < 3:
            rounds.append(None)
            await call(connection, client)

    calling = asyncio.create_task(for_ever())
    await client.waiting.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert len(rounds) == 1


async def test_a_request_whose_deadline_passes_as_it_is_sent_times_out() -> None:
    connection = Connection(Forgetful(), Transport(), "nats://a:1")  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        await connection.request("a", b"", 0.001)


async def test_a_connection_without_an_answer_to_the_ping_in_time_is_given_up() -> None:
    connection = Connection(Forgetful(), Transport(), "nats://a:1")  # type: ignore[arg-type]
    await connection.probe(0.001)
    assert connection.lost.is_set()


async def test_who_is_cancelled_while_closing_leaves_a_lost_connection() -> None:
    client = Forgetful()
    client.close = client._wait  # type: ignore[method-assign]
    connection = Connection(client, Transport(), "nats://a:1")  # type: ignore[arg-type]
    closing = asyncio.create_task(connection.close())
    await client.waiting.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert connection.lost.is_set()


async def test_who_is_cancelled_while_dialling_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Forgetful()
    monkeypatch.setattr(nats_connection, "Client", lambda: client)
    dialling = asyncio.create_task(Connection.dial(SETTINGS, "nats://a:1"))
    await client.waiting.wait()
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    assert client.closed == 1
