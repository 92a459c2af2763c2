"""The in-memory twins lose requests and answers as a wire does, and keep time by the loop."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from holdfast.core.errors import KeyTaken, LeaseGone, LeasesUnavailable, LogUnavailable, WrongLastSequence
from holdfast.core.ports import KeyChange
from holdfast.store.memory import MemoryLogServer
from holdfast.store.memory_leases import MemoryLeasesServer

T = TypeVar("T")

LATENCY_S = 1.0


class VirtualSelector(selectors.DefaultSelector):
    """Waits no real time: where it would, `now` moves on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        assert ready or timeout is not None, "nothing will ever happen"
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock is its selector's."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def virtually(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def slow() -> float:
    return LATENCY_S


def test_an_append_cut_before_it_arrives_is_sent_again() -> None:
    async def main() -> None:
        server = MemoryLogServer()
        log = server.client(latency=slow)
        appending = asyncio.create_task(log.append("a", b"", message_id="m", expected_last=0))
        await asyncio.sleep(LATENCY_S / 2)
        log.link.cut()
        await asyncio.sleep(LATENCY_S)
        assert server.last_sequence == 0
        log.link.heal()
        assert await appending == 1
        assert now() == pytest.approx(LATENCY_S * 3.5)

    virtually(main())


def test_an_append_whose_answer_is_cut_has_landed_once() -> None:
    async def main() -> None:
        server = MemoryLogServer()
        log = server.client(latency=slow)
        appending = asyncio.create_task(log.append("a", b"", message_id="m", expected_last=0))
        await asyncio.sleep(LATENCY_S * 1.5)
        assert server.last_sequence == 1
        log.link.cut()
        log.link.heal()
        assert await appending == 1
        assert server.last_sequence == 1

    virtually(main())


def test_a_refusal_may_be_lost_as_well() -> None:
    async def main() -> None:
        server = MemoryLogServer()
        await server.client().append("a", b"", message_id="other", expected_last=0)
        log = server.client(latency=slow)
        appending = asyncio.create_task(log.append("a", b"", message_id="m", expected_last=0))
        await asyncio.sleep(LATENCY_S * 1.5)
        log.link.cut()
        log.link.heal()
        with pytest.raises(WrongLastSequence):
            await appending

    virtually(main())


def test_an_append_gives_up_at_its_bound() -> None:
    async def main() -> None:
        server = MemoryLogServer()
        server.stop()
        log = server.client(append_timeout_s=7)
        with pytest.raises(LogUnavailable, match="7 s"):
            await log.append("a", b"", message_id="m", expected_last=0)
        assert now() == pytest.approx(7)
        assert log.down_since == 0
        assert not log.connected

    virtually(main())


def test_a_follower_that_is_cut_off_catches_up() -> None:
    async def main() -> None:
        server = MemoryLogServer()
        log, writer = server.client(), server.client()
        log.link.cut()
        await writer.append("a", b"", message_id="1", expected_last=0)
        following = asyncio.ensure_future(anext(log.follow()))
        await asyncio.sleep(10)
        assert not following.done()
        log.link.heal()
        assert (await following).sequence == 1

    virtually(main())


def test_a_lease_expires_on_time_to_the_instant() -> None:
    async def main() -> None:
        leases = MemoryLeasesServer().client()
        lease = await leases.grant(10)
        after = await leases.put("k", b"", lease.id)
        await asyncio.sleep(9)
        assert await leases.keep_alive(lease.id) == 10
        assert await anext(leases.watch("", after=after)) == [KeyChange(after + 1, "k", None)]
        assert now() == pytest.approx(19)
        with pytest.raises(LeaseGone):
            await leases.keep_alive(lease.id)

    virtually(main())


def test_a_server_that_comes_back_gives_every_lease_its_full_time() -> None:
    async def main() -> None:
        server = MemoryLeasesServer()
        leases = server.client()
        lease = await leases.grant(10)
        await asyncio.sleep(9)
        server.stop()
        await asyncio.sleep(100)
        server.start()
        info = await leases.inspect(lease.id)
        assert info is not None
        assert info.remaining_s == pytest.approx(10)

    virtually(main())


def test_a_create_whose_answer_is_cut_is_not_taken_for_anothers() -> None:
    async def main() -> None:
        server = MemoryLeasesServer()
        leases = server.client(latency=slow)
        lease = await leases.grant(60)
        creating = asyncio.create_task(leases.create("leader", b"me", lease.id))
        await asyncio.sleep(LATENCY_S * 1.5)
        leases.link.cut()
        leases.link.heal()
        assert await creating == 2
        with pytest.raises(KeyTaken):
            await leases.create("leader", b"me", lease.id)

    virtually(main())


def test_a_watch_cut_off_during_a_compaction_tells_the_difference() -> None:
    async def main() -> None:
        server = MemoryLeasesServer()
        leases, other = server.client(), server.client()
        known = await other.put("n/known", b"1", 0)
        after = await other.put("n/kept", b"1", 0)
        watch = leases.watch("n/", after=after)
        await other.put("n/told", b"1", 0)
        assert [change.key for change in await anext(watch)] == ["n/told"]
        leases.link.cut()
        await other.delete("n/known", create_revision=known)
        new = await other.put("n/new", b"1", 0)
        server.compact()
        leases.link.heal()
        assert await anext(watch) == [KeyChange(new, "n/new", b"1"), KeyChange(new, "n/known", None)]

    virtually(main())


def test_calls_are_bounded_while_the_server_is_away() -> None:
    async def main() -> None:
        server = MemoryLeasesServer()
        server.stop()
        with pytest.raises(LeasesUnavailable, match="3 s"):
            await server.client(request_timeout_s=3).list("")
        assert now() == pytest.approx(3)

    virtually(main())
