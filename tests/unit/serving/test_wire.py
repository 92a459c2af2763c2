"""Who answers at an address is checked, and a peer that breaks the protocol is left, whatever it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from holdfast.actors import wire
from holdfast.actors.wire import Connection
from holdfast.core.errors import NoReplica
from holdfast.core.frames import (
    PROTOCOL_VERSION,
    Admitted,
    Frame,
    Hello,
    Refused,
    Start,
    Step,
    Stop,
    Welcome,
    decode_from_gateway,
    decode_from_replica,
    encode,
)
from tests.unit.support.history import INFO, application
from tests.unit.support.replicas import (
    CLUSTER,
    PATIENCE_S,
    Answer,
    LocalReplica,
    Site,
    answer_to,
    ask,
    engine_of,
    eventually,
    opened,
    replicas_ready,
)

NAME = "app.tiny.1"
HELLO = Hello(PROTOCOL_VERSION, CLUSTER, "g", NAME)


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application(replicas=1))
    return site


class Peer:
    """A gateway's end of a connection, played by the test."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.closed = asyncio.Event()

    async def dial(self, address: str) -> Peer:
        host, port = address.rsplit(":", 1)
        loop = asyncio.get_running_loop()
        _, self.connection = await loop.create_connection(
            lambda: Connection(self._on_body, lambda _connection: self.closed.set()), host, int(port)
        )
        return self

    def _on_body(self, connection: Connection, body: bytes) -> None:
        self.frames.append(decode_from_replica(body))

    def got(self, kind: type[Frame]) -> list[Frame]:
        return [frame for frame in self.frames if isinstance(frame, kind)]


async def local_replica() -> LocalReplica:
    replica = LocalReplica(NAME, engine_of())
    await replica.start()
    return replica


async def test_a_replica_welcomes_who_means_it() -> None:
    replica = await local_replica()
    peer = await Peer().dial(replica.address)
    peer.connection.send(HELLO)
    await eventually(lambda: bool(peer.got(Welcome)))
    assert peer.got(Welcome) == [Welcome(PROTOCOL_VERSION, NAME, replica.engine.info)]
    peer.connection.close()
    await replica.replica.abandoned()
    await replica.kill()


@pytest.mark.parametrize(
    "frames",
    [
        [Hello(PROTOCOL_VERSION + 1, CLUSTER, "g", NAME)],
        [Hello(PROTOCOL_VERSION, "other", "g", NAME)],
        [Hello(PROTOCOL_VERSION, CLUSTER, "g", "app.tiny.2")],
        [Start(1, ask())],
        [Stop(1)],
        [HELLO, HELLO],
        [HELLO, Welcome(1, NAME, INFO)],
    ],
    ids=["protocol", "cluster", "replica", "work first", "stop first", "twice", "a replica's frame"],
)
async def test_a_replica_cuts_who_means_another_or_breaks_the_protocol(frames: list[Frame]) -> None:
    replica = await local_replica()
    peer = await Peer().dial(replica.address)
    for frame in frames:
        peer.connection.send(frame)
    async with asyncio.timeout(PATIENCE_S):
        await peer.closed.wait()
    await replica.replica.abandoned()
    await replica.kill()


@pytest.mark.real_sockets
@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\x00\x00\x00\x02\xc1\xc1", b"GET / HTTP/1.1\r\n\r\n" * 9])
async def test_a_replica_cuts_who_speaks_another_language(garbage: bytes) -> None:
    replica = await local_replica()
    reader, writer = await asyncio.open_connection(*replica.address.rsplit(":", 1))
    writer.write(garbage)
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    await replica.kill()


async def test_a_stop_for_an_attempt_that_nobody_knows_is_no_harm() -> None:
    replica = await local_replica()
    peer = await Peer().dial(replica.address)
    for frame in (HELLO, Stop(77), Start(1, ask(tokens=3)), Stop(78)):
        peer.connection.send(frame)
    await eventually(lambda: any(isinstance(frame, Step) and frame.finished for frame in peer.frames))
    assert peer.got(Admitted) == [Admitted(1, 2)]
    peer.connection.send(Stop(1))
    peer.connection.send(Start(2, ask(tokens=3)))
    await eventually(lambda: len(peer.got(Admitted)) == 2)
    peer.connection.close()
    await replica.kill()


async def test_a_draining_replica_says_that_another_may_take_it() -> None:
    replica = await local_replica()
    peer = await Peer().dial(replica.address)
    peer.connection.send(HELLO)
    await eventually(lambda: bool(peer.got(Welcome)))
    await replica.replica.drain()
    peer.connection.send(Start(1, ask()))
    await eventually(lambda: bool(peer.got(Refused)))
    (refused,) = peer.got(Refused)
    assert isinstance(refused, Refused)
    assert (refused.attempt, refused.retry) == (1, True)
    peer.connection.close()
    await replica.kill()


# --- the gateway's side ---------------------------------------------------------------------------------


class FakeReplica:
    """A replica's end, played by the test: `react` says what it answers to each frame."""

    def __init__(self, react: Callable[[FakeReplica, Connection, Frame], None]) -> None:
        self.react = react
        self.dials = 0
        self.connections: list[Connection] = []

    async def __aenter__(self) -> FakeReplica:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._made, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for connection in self.connections:
            connection.abort()
        await asyncio.sleep(0)

    def _made(self) -> Connection:
        self.dials += 1
        connection = Connection(self._on_body, lambda _connection: None)
        self.connections.append(connection)
        return connection

    def _on_body(self, connection: Connection, body: bytes) -> None:
        self.react(self, connection, decode_from_gateway(body))


def welcome(connection: Connection, name: str = NAME) -> None:
    connection.send(Welcome(PROTOCOL_VERSION, name, INFO))


async def test_another_replica_at_an_address_is_not_used(site: Site) -> None:
    """The port was used again: the log says app.tiny.9, app.tiny.1 answers."""
    async with site:
        replica = await site.replica()
        site.announce("app.tiny.9", replica.address)
        gateway = await site.gateway(ready=1)
        for _ in range(5):
            (await answer_to(gateway, ask())).check(ask())
        await replica.kill()
        site.exits(replica.name)
        await eventually(lambda: replicas_ready(gateway) == 0)


async def test_a_welcome_by_another_replica_is_not_believed(site: Site) -> None:
    async with (
        FakeReplica(lambda _fake, connection, _frame: welcome(connection, "app.tiny.7")) as fake,
        site,
    ):
        site.announce(NAME, fake.address)
        gateway = await site.gateway(ready=0, replica_wait_s=0.2)
        with pytest.raises(NoReplica):
            await answer_to(gateway, ask())
        assert fake.dials >= 2, "it is tried again"


async def test_a_replica_that_goes_silent_is_left_and_its_stream_migrates(site: Site) -> None:
    def silent(_fake: FakeReplica, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Hello):
            welcome(connection)

    async with FakeReplica(silent) as fake, site:
        site.announce(NAME, fake.address)
        gateway = await site.gateway(ready=1, heartbeat_timeout_s=0.2)
        async with opened(gateway, ask()) as session:
            reading = asyncio.create_task(Answer().read(session))
            await asyncio.sleep(0)
            await site.replica(name="app.tiny.2")
            (await reading).check(ask())
        assert gateway.migrations.total() == 1


@pytest.mark.parametrize(
    "step",
    [
        Step([1], [5], [0], ["x"], None, []),
        Step([1], [0], [], ["x"], None, []),
    ],
    ids=["a token from the future", "lists of unequal length"],
)
async def test_a_replica_that_breaks_the_protocol_is_left_and_its_stream_migrates(site: Site, step: Step) -> None:
    def broken(_fake: FakeReplica, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Hello):
            welcome(connection)
        elif isinstance(frame, Start):
            connection.send(step)

    async with FakeReplica(broken) as fake, site:
        site.announce(NAME, fake.address)
        gateway = await site.gateway(ready=1, migration_limit=100)
        async with opened(gateway, ask()) as session:
            reading = asyncio.create_task(Answer().read(session))
            await eventually(lambda: gateway.migrations.total() > 0)
            site.exits(NAME)
            await site.replica(name="app.tiny.2")
            (await reading).check(ask())


async def test_tokens_of_an_attempt_that_was_stopped_are_dropped(site: Site) -> None:
    """The replica answers the second stream, and only then the first, which is long gone."""
    starts: list[Start] = []

    def late(_fake: FakeReplica, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Hello):
            welcome(connection)
        elif isinstance(frame, Start):
            starts.append(frame)
            for start in reversed(starts if len(starts) == 2 else []):
                connection.send(Admitted(start.attempt, 1))
                connection.send(Step([start.attempt], [0], [9], ["x"], None, [(start.attempt, "stop")]))

    async with FakeReplica(late) as fake, site:
        site.announce(NAME, fake.address)
        gateway = await site.gateway(ready=1)
        async with opened(gateway, ask("first")):
            await eventually(lambda: len(starts) == 1)
        answer = await answer_to(gateway, ask("second"))
        assert answer.texts == {0: "x"}
        assert starts[0].attempt != starts[1].attempt


@pytest.mark.real_sockets
async def test_frames_arrive_whole_through_a_connection_that_trickles(site: Site) -> None:
    replica = await local_replica()
    reader, writer = await asyncio.open_connection(*replica.address.rsplit(":", 1))
    for byte in encode(HELLO) + encode(Start(1, ask(tokens=2))):
        writer.write(bytes([byte]))
        await writer.drain()
    async with asyncio.timeout(PATIENCE_S):
        seen = b""
        while b"Admitted" not in seen:
            seen += await reader.read(4096)
    writer.close()
    await replica.kill()


@pytest.mark.real_sockets
async def test_a_peer_that_does_not_read_is_cut_when_too_much_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WRITE_BUFFER_MAX_BYTES", 1 << 20)
    made: list[Connection] = []

    def connection() -> Connection:
        made.append(Connection(lambda _connection, _body: None, lambda _connection: None))
        return made[0]

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    _reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], limit=1024)
    await eventually(lambda: bool(made))
    for _ in range(200):
        made[0].send(Refused(1, "", "x" * (1 << 17), None, True))
        await asyncio.sleep(0)
        if made[0].congested:
            break
    assert made[0].open, "to be behind is no reason yet"
    for _ in range(200):
        made[0].send(Refused(1, "", "x" * (1 << 17), None, True))
    await eventually(lambda: not made[0].open)
    await made[0].drained()
    writer.transport.abort()
    server.close()


@pytest.mark.real_sockets
async def test_a_peer_that_reads_again_is_no_longer_congested() -> None:
    made: list[Connection] = []

    def connection() -> Connection:
        made.append(Connection(lambda _connection, _body: None, lambda _connection: None))
        return made[0]

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], limit=1024)
    await eventually(lambda: bool(made))
    while not made[0].congested:
        made[0].send(Refused(1, "", "x" * (1 << 17), None, True))
        await asyncio.sleep(0)
    draining = asyncio.create_task(made[0].drained())
    while not draining.done():
        await reader.read(1 << 20)
    assert made[0].open
    writer.transport.abort()
    server.close()
