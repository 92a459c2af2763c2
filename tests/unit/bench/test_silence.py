"""A network that falls silent: nothing passes, nothing is refused, and afterwards everything goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from examples.bench.silence import BOTH, Address, Direction, SilentNetwork
from tests.unit.support.ports import free_port

PATIENCE_S = 60.0
LOOK_S = 0.1
"""How long nothing must come before it is called silence, in seconds."""

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Process:
    """What is behind the relay: keeps the connections that it is called by."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Pair] = asyncio.Queue()
        self.address: Address = ("", 0)


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    process = Process()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await process.calls.put((reader, writer))

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    process.address = server.sockets[0].getsockname()
    yield process
    server.close()


@pytest.fixture
async def network() -> AsyncIterator[SilentNetwork]:
    async with SilentNetwork() as network:
        yield network


async def call(address: Address) -> Pair:
    return await asyncio.wait_for(asyncio.open_connection(*address), PATIENCE_S)


async def passes(sender: Pair, receiver: Pair, text: bytes) -> None:
    sender[1].write(text)
    assert await asyncio.wait_for(receiver[0].readexactly(len(text)), PATIENCE_S) == text


async def silent(receiver: Pair) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(receiver[0].read(1), LOOK_S)


@contextlib.asynccontextmanager
async def connected(network: SilentNetwork, process: Process) -> AsyncIterator[tuple[Pair, Pair]]:
    """A caller, and the process's end of its connection."""
    caller = await call(network.relay(("127.0.0.2", 0), process.address, Direction.IN))
    called = await asyncio.wait_for(process.calls.get(), PATIENCE_S)
    try:
        yield caller, called
    finally:
        for _, writer in (caller, called):
            writer.transport.abort()


async def test_bytes_pass_in_both_directions(network: SilentNetwork, process: Process) -> None:
    async with connected(network, process) as (caller, called):
        await passes(caller, called, b"there")
        await passes(called, caller, b"and back")


async def test_nothing_passes_a_silent_network_and_nothing_is_lost(network: SilentNetwork, process: Process) -> None:
    async with connected(network, process) as (caller, called):
        network.silence(BOTH)
        caller[1].write(b"there")
        called[1].write(b"and back")
        await silent(caller)
        await silent(called)
        network.heal()
        assert await asyncio.wait_for(called[0].readexactly(5), PATIENCE_S) == b"there"
        assert await asyncio.wait_for(caller[0].readexactly(8), PATIENCE_S) == b"and back"


@pytest.mark.parametrize("direction", Direction)
async def test_one_direction_may_be_silent(network: SilentNetwork, process: Process, direction: Direction) -> None:
    async with connected(network, process) as (caller, called):
        network.silence(frozenset({direction}))
        heard, deaf = (caller, called) if direction is Direction.IN else (called, caller)
        await passes(deaf, heard, b"this way")
        heard[1].write(b"not that way")
        await silent(deaf)
        network.heal()
        assert await asyncio.wait_for(deaf[0].readexactly(12), PATIENCE_S) == b"not that way"


async def test_nobody_learns_that_the_other_end_closed(network: SilentNetwork, process: Process) -> None:
    async with connected(network, process) as (caller, called):
        network.silence(BOTH)
        caller[1].close()
        await silent(called)
        network.heal()
        assert await asyncio.wait_for(called[0].read(), PATIENCE_S) == b""


async def test_that_the_other_end_takes_nothing_more_is_learnt_afterwards(
    network: SilentNetwork, process: Process
) -> None:
    async with connected(network, process) as (caller, called):
        network.silence(frozenset({Direction.IN}))
        caller[1].transport.abort()
        called[1].write(b"x" * 1000)
        await silent(called)
        called[1].write(b"x" * 1000)
        await silent(called)
        network.heal()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(called[0].read(), PATIENCE_S) == b""


async def test_calls_are_taken_by_the_kernel_and_answered_afterwards(network: SilentNetwork, process: Process) -> None:
    address = network.relay(("127.0.0.2", 0), process.address, Direction.IN)
    network.silence(BOTH)
    caller = await call(address)
    caller[1].write(b"hello")
    await silent(caller)
    assert process.calls.empty()
    network.heal()
    called = await asyncio.wait_for(process.calls.get(), PATIENCE_S)
    assert await asyncio.wait_for(called[0].readexactly(5), PATIENCE_S) == b"hello"
    for _, writer in (caller, called):
        writer.transport.abort()


async def test_a_call_to_nobody_is_ended(network: SilentNetwork, process: Process) -> None:
    address = network.relay(("127.0.0.2", 0), ("127.0.0.1", 1), Direction.OUT)
    caller = await call(address)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(caller[0].read(), PATIENCE_S) == b""
    caller[1].transport.abort()


async def test_a_relay_is_made_once(network: SilentNetwork, process: Process) -> None:
    address = network.relay(("127.0.0.2", free_port()), process.address, Direction.IN)
    assert network.relay(address, process.address, Direction.IN) == address
