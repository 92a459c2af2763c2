"""The simulated HTTP door and the client's calls through it, before a backend without replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec
import pytest

from holdfast.core.errors import StreamLost
from holdfast.gateway.app import App, HttpSettings, create_app
from holdfast.gateway.machine import Machine
from holdfast.gateway.settings import GatewayProcessSettings
from holdfast.simulations.cluster.door import AnswerHead, BodyPart, RequestHead, SimDoor, cut_client
from holdfast.simulations.work.calls import Connection
from holdfast.simulations.world.process import SimClock, SimProcess
from holdfast.simulations.world.world import World
from tests.unit.gateway.fakes import FakeBackend, text_of

PORT = 8000
PATH = "/v1/completions"

SCRAPED_S = 30.0
"""By then (seconds) the clients whose requests are counted have come to their end."""


def completion(**fields: Any) -> RequestHead:
    """A request for five tokens, if nothing else is said."""
    body = {"model": "tiny", "prompt": "hold fast", "seed": 7, "max_tokens": 5, **fields}
    return RequestHead("POST", PATH, ((b"content-type", b"application/json"),), msgspec.json.encode(body))


class Street:
    """A world with one gateway, whose `backend` the test plays, and its `client`."""

    def __init__(self, **settings: Any) -> None:
        self.world = World("1")
        self.unhandled: list[str] = []
        self.world.on_unhandled = lambda process, text: self.unhandled.append(f"{process.name}: {text}")
        self.backend = FakeBackend(**settings.pop("backend", {}))
        self.settings = HttpSettings(**settings)
        self.stopping: asyncio.Task[None] | None = None
        self.gateway = self.world.spawn("g", "g", self._gateway)

    async def _gateway(self, process: SimProcess) -> None:
        machine = Machine(
            clock=SimClock(process),
            monotonic_s=process.loop.time,
            entropy=process.rng.randbytes,
            rng=process.rng,
            cut_client=cut_client,
        )
        self.app: App = create_app(self.backend, self.settings, "g", machine)
        door = SimDoor(process, self.app, GatewayProcessSettings(host="g", port=PORT))
        door.bind()
        self.serving = asyncio.create_task(door.run())
        await door.listening()
        await asyncio.wait([self.serving])

    def visit(self, *clients: Callable[[Connection], Coroutine[Any, Any, None]], until_s: float = 100.0) -> None:
        """Let clients do this, each on a connection of its own, once the gateway is there; all must come to an end."""
        visited: list[int] = []

        async def client(body: Callable[[Connection], Coroutine[Any, Any, None]], process: SimProcess) -> None:
            await asyncio.sleep(1.0)
            end = await self.world.network.connect(process, "g", PORT)
            await body(Connection(end, f"http://g:{PORT}"))
            visited.append(process.pid)

        for number, body in enumerate(clients):
            self.world.spawn(f"c{number}", f"c{number}", partial(client, body))
        self.run(until_s)
        assert self.unhandled == []
        assert len(visited) == len(clients), "somebody still waits"

    async def scrape(self, connection: Connection) -> None:
        """A client that asks the gateway what it has `counted`, once the others are done."""
        await asyncio.sleep(SCRAPED_S)
        connection.end.send(RequestHead("GET", "/metrics", ()))
        _head, self.counted = await whole(connection)

    def run(self, until_s: float) -> None:
        """Let time pass, and then end the world."""
        self.world.scheduler.run(until_s)
        self.gateway_lives = self.gateway.alive
        self.world.close()


async def end_of(connection: Connection) -> None:
    """Read until nothing more comes."""
    while True:
        await connection.next(50.0)


async def whole(connection: Connection) -> tuple[AnswerHead, bytes]:
    """An answer, read to its end."""
    head = await connection.next(20.0)
    assert isinstance(head, AnswerHead)
    body = b""
    while True:
        part = await connection.next(20.0)
        assert isinstance(part, BodyPart)
        body += part.data
        if not part.more:
            return head, body


def test_answers_come_one_after_the_other_on_one_connection() -> None:
    async def client(connection: Connection) -> None:
        for seed in (7, 8):
            connection.end.send(completion(seed=seed))
            head, body = await whole(connection)
            assert head.status == 200
            assert msgspec.json.decode(body)["choices"][0]["text"] == text_of(seed, 5)

    Street().visit(client)


def test_pages_are_served_too() -> None:
    async def client(connection: Connection) -> None:
        for path in ("/health", "/v1/models", "/metrics", "/openapi.json"):
            connection.end.send(RequestHead("GET", path, ()))
            head, body = await whole(connection)
            assert (head.status, bool(body)) == (200, True), path

    Street().visit(client)


def test_a_body_may_come_in_pieces_or_too_late() -> None:
    request = completion()

    async def patient(connection: Connection) -> None:
        connection.end.send(RequestHead("POST", PATH, request.headers, request.body[:10], True))
        await asyncio.sleep(2.0)
        connection.end.send(BodyPart(request.body[10:], False))
        head, _body = await whole(connection)
        assert head.status == 200

    async def late(connection: Connection) -> None:
        connection.end.send(RequestHead("POST", PATH, request.headers, request.body[:10], True))
        head, body = await whole(connection)
        assert (head.status, msgspec.json.decode(body)["error"]["code"]) == (408, "request_timeout")

    Street(body_timeout_s=5.0).visit(patient, late)


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_client_that_goes_ends_its_request(way: str) -> None:
    street = Street(backend={"gate": asyncio.Event()})

    async def client(connection: Connection) -> None:
        connection.end.send(completion(stream=True, max_tokens=20))
        await connection.next(5.0)
        assert street.backend.open_sessions == 1
        connection.leave(way)
        await asyncio.sleep(0.1)
        assert street.backend.open_sessions == 0

    street.visit(client, street.scrape)
    assert b'outcome="cancelled",resumed="false",route="/v1/completions"} 1' in street.counted


def test_one_that_vanished_is_noticed_when_something_is_sent_to_it() -> None:
    street = Street(backend={"gate": asyncio.Event()})

    async def client(connection: Connection) -> None:
        connection.end.send(completion(stream=True, max_tokens=20))
        await connection.next(5.0)
        connection.leave("vanish")
        await asyncio.sleep(30.0)
        assert street.backend.open_sessions == 1, "nobody has told the gateway"

    street.visit(client, until_s=40.0)


def test_a_client_that_takes_nothing_holds_up_its_answer_and_is_cut() -> None:
    street = Street(write_timeout_s=4.0, backend={"chunk": 20, "context_tokens_max": 100_000})

    async def client(connection: Connection) -> None:
        connection.end.send(completion(stream=True, max_tokens=10_000))
        await connection.next(5.0)
        connection.end.pause()
        await asyncio.sleep(3.0)
        assert street.backend.open_sessions == 1
        assert street.backend.chunks < 50, "the answer waits for who reads it"
        await asyncio.sleep(3.0)
        assert street.backend.open_sessions == 0
        connection.end.resume()
        with pytest.raises(ConnectionError):
            await end_of(connection)

    street.visit(client, street.scrape)
    assert b'outcome="slow_client",resumed="false",route="/v1/completions"} 1' in street.counted


def test_an_error_within_a_stream_is_its_last_event() -> None:
    street = Street(backend={"broken": StreamLost("gone"), "break_after": 4})

    async def client(connection: Connection) -> None:
        connection.end.send(completion(stream=True, max_tokens=20))
        head, body = await whole(connection)
        assert head.status == 200
        assert b'"code":"stream_lost"' in body.rsplit(b"data: ", 1)[1]

    street.visit(client)


def test_a_door_that_closes_lets_open_requests_end_and_cuts_the_others() -> None:
    gate = asyncio.Event()
    street = Street(backend={"gate": gate})
    ends: dict[str, float] = {}

    async def stays(connection: Connection) -> None:
        connection.end.send(completion(stream=True, max_tokens=20))
        with pytest.raises(ConnectionError):
            await end_of(connection)
        ends["stays"] = street.world.now_s

    async def idles(connection: Connection) -> None:
        connection.end.send(completion())
        await whole(connection)
        with pytest.raises(ConnectionError):
            await connection.next(50.0)
        ends["idles"] = street.world.now_s

    street.backend.chunk = 5
    street.world.scheduler.call_at(10.0, lambda: street.gateway.call(street.serving.cancel))
    street.visit(stays, idles)
    assert ends["idles"] == pytest.approx(10.0, abs=0.1)
    assert ends["stays"] == pytest.approx(12.0, abs=0.1)
    assert not street.gateway_lives, "the process went on to its end"


def test_two_gateways_of_one_host_can_not_have_one_port() -> None:
    street = Street()
    second = street.world.spawn("h", "g", street._gateway)
    street.world.scheduler.run(5.0)
    assert [street.gateway.alive, second.alive].count(False) == 1
    street.world.close()
    (told,) = street.unhandled
    assert "port 8000 of g is taken" in told
