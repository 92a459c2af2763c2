"""The simulated world itself: time, turns, processes, connections."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import pkgutil
import signal
import warnings
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import msgspec
import pytest

from holdfast import simulations
from holdfast.simulations.nats.server import Proposal
from holdfast.simulations.nats.store import Stream
from holdfast.simulations.world.network import GIVE_UP_S, WINDOW_BYTES, End
from holdfast.simulations.world.process import SimClock, SimProcess
from holdfast.simulations.world.world import World

Body = Callable[[SimProcess], Coroutine[Any, Any, int | None]]


def run(*bodies: Body, seed: str = "1", until_s: float = 100.0, hosts: str = "abcdef") -> World:
    """A world in which these run, each as a process on a host of its own."""
    world = World(seed)
    world.on_unhandled = lambda process, text: pytest.fail(f"{process.name}: {text}")
    for host, body in zip(hosts, bodies, strict=False):
        world.spawn(f"p{host}", host, body)
    world.scheduler.run(until_s)
    return world


def test_time_jumps_and_each_process_has_its_own_clock() -> None:
    seen: list[tuple[float, float]] = []

    async def sleeper(process: SimProcess) -> None:
        before_s = process.loop.time()
        await asyncio.sleep(50)
        seen.append((before_s, process.loop.time() - before_s))

    run(sleeper, sleeper)
    (one_s, slept_one_s), (two_s, slept_two_s) = seen
    assert slept_one_s == pytest.approx(50)
    assert slept_two_s == pytest.approx(50)
    assert abs(one_s - two_s) > 1


def order_of_turns(seed: str) -> list[str]:
    order: list[str] = []

    def body(name: str) -> Body:
        async def main(_process: SimProcess) -> None:
            for number in range(5):
                order.append(f"{name}{number}")
                await asyncio.sleep(0)

        return main

    run(body("a"), body("b"), body("c"), seed=seed)
    return order


@pytest.mark.parametrize("limit_s", [0.1 + number / 7 for number in range(20)])
def test_who_sleeps_for_the_rest_of_a_time_finds_it_over(limit_s: float) -> None:
    world = World("1")
    sleeps = 0

    async def main(process: SimProcess) -> int:
        nonlocal sleeps
        began_s = process.loop.time()
        while (left_s := limit_s - (process.loop.time() - began_s)) > 0:
            sleeps += 1
            await asyncio.sleep(left_s)
        return 0

    for number in range(5):
        world.spawn(f"p{number}", "a", main)
    world.scheduler.run(5.0)
    world.close()
    assert sleeps == 5


def test_order_between_processes_is_drawn_and_within_one_kept() -> None:
    orders = [order_of_turns(str(seed)) for seed in range(10)]
    assert len({tuple(order) for order in orders}) > 5
    assert order_of_turns("3") == orders[3]
    for order in orders:
        assert [turn for turn in order if turn[0] == "a"] == [f"a{number}" for number in range(5)]


def test_killed_process_runs_nothing_more_and_frozen_one_goes_on() -> None:
    ran: list[str] = []

    async def main(process: SimProcess) -> None:
        try:
            await asyncio.sleep(10)
            ran.append(process.name)
        finally:
            ran.append(f"finally {process.name}")

    world = World("1")
    killed, frozen = world.spawn("killed", "a", main), world.spawn("frozen", "b", main)
    statuses: list[int] = []
    killed.on_exit(statuses.append)
    world.scheduler.run(5)
    killed.kill()
    frozen.freeze()
    world.scheduler.run(20)
    assert (ran, statuses, killed.alive) == ([], [-9], False)
    frozen.thaw()
    world.scheduler.run(21)
    assert ran == ["frozen", "finally frozen"]
    assert (frozen.alive, frozen.status) == (False, 0)


def test_slow_process_pays_for_each_callback() -> None:
    ended: dict[str, float] = {}

    async def main(process: SimProcess) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        ended[process.name] = process.world.now_s

    world = World("1")
    world.spawn("slow", "a", main).slow(0.1)
    world.spawn("quick", "b", main)
    world.scheduler.run(100)
    assert ended["quick"] == 0
    assert 1.9 <= ended["slow"] <= 2.3


def test_sigterm_is_handled_or_ends_the_process() -> None:
    async def handles(process: SimProcess) -> int:
        stop = asyncio.Event()
        process.loop.add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        return 3

    async def ignores(_process: SimProcess) -> None:
        await asyncio.sleep(100)

    world = World("1")
    processes = [world.spawn("handles", "a", handles), world.spawn("ignores", "b", ignores)]
    world.scheduler.run(1)
    for process in processes:
        process.terminate()
    world.scheduler.run(2)
    assert [process.status for process in processes] == [3, -15]


class Pair:
    """A connection from host a to host b, and what the other side got."""

    def __init__(self, seed: str = "1") -> None:
        self.world = World(seed)
        self.got: list[Any] = []
        self.lost: list[tuple[str, Exception | None]] = []
        self.ends: list[End] = []
        self.server = self.world.spawn("server", "b", self._serve)
        self.client = self.world.spawn("client", "a", self._ask)
        self.world.scheduler.run(1)

    async def _serve(self, process: SimProcess) -> None:
        self.listener = process.world.network.listen(process, 7, self._accept)
        await asyncio.sleep(1_000)

    def _accept(self, end: End) -> None:
        end.attach(self.got.append, lambda error: self.lost.append(("server", error)))

    async def _ask(self, process: SimProcess) -> None:
        end = await process.world.network.connect(process, "b", 7)
        end.attach(lambda _message: None, lambda error: self.lost.append(("client", error)))
        self.ends.append(end)
        await asyncio.sleep(1_000)

    def send(self, *messages: Any, size: int = 64) -> None:
        for message in messages:
            self.client.call(self.ends[0].send, message, size)

    def run(self, seconds: float) -> None:
        self.world.scheduler.run(self.world.now_s + seconds)


def test_messages_arrive_in_order() -> None:
    pair = Pair()
    pair.send(*range(100))
    pair.run(1)
    assert pair.got == list(range(100))
    assert pair.ends[0].unread_bytes == 0


def test_blocked_way_holds_and_then_delivers() -> None:
    pair = Pair()
    pair.world.network.block("a", "b")
    pair.send(1, 2)
    pair.run(5)
    assert pair.got == []
    pair.world.network.unblock("a", "b")
    pair.run(5)
    assert (pair.got, pair.lost) == ([1, 2], [])


@pytest.mark.parametrize(("abort", "error"), [(True, ConnectionResetError), (False, type(None))])
def test_what_was_closed_while_the_way_was_blocked_is_heard_of_afterwards(abort: bool, error: type) -> None:
    pair = Pair()
    pair.world.network.block("a", "b")
    pair.client.call(pair.ends[0].abort if abort else pair.ends[0].close)
    pair.run(2)
    assert pair.lost == []
    pair.world.network.unblock("a", "b")
    pair.run(1)
    ((side, what),) = pair.lost
    assert (side, type(what)) == ("server", error)


def test_both_ends_give_up_a_way_that_stays_blocked() -> None:
    pair = Pair()
    pair.world.network.block("a", "b")
    pair.run(GIVE_UP_S * 1.2)
    assert sorted(side for side, _ in pair.lost) == ["client", "server"]
    assert all(isinstance(error, TimeoutError) for _, error in pair.lost)


def test_killed_peer_resets_and_powerless_one_is_silent() -> None:
    pair = Pair()
    pair.server.kill()
    pair.run(1)
    assert [side for side, _ in pair.lost] == ["client"]
    pair = Pair()
    pair.world.power_off("b")
    pair.run(GIVE_UP_S / 2)
    assert pair.lost == []
    pair.run(GIVE_UP_S)
    assert [side for side, _ in pair.lost] == ["client"]


def test_host_that_is_back_refuses_what_was_open() -> None:
    pair = Pair()
    pair.world.power_off("b")
    pair.run(1)
    pair.world.power_on("b")
    pair.send(1)
    pair.run(1)
    assert [side for side, _ in pair.lost] == ["client"]


def test_frozen_process_takes_connections_and_reads_later() -> None:
    pair = Pair()
    pair.server.freeze()
    pair.send(*range(10), size=WINDOW_BYTES)
    pair.run(1)
    assert pair.got == []
    assert pair.ends[0].waiting_bytes == 9 * WINDOW_BYTES
    drained: list[float] = []
    pair.ends[0].when_read(lambda: drained.append(pair.world.now_s))
    pair.run(1)
    assert drained == []
    pair.server.thaw()
    pair.run(1)
    assert (pair.got, len(drained)) == (list(range(10)), 1)


def test_nobody_listens_and_nobody_answers() -> None:
    outcomes: list[str] = []

    async def client(process: SimProcess) -> None:
        try:
            await process.world.network.connect(process, "b", 9)
        except ConnectionRefusedError:
            outcomes.append("refused")
        process.world.network.block("a", "b")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.world.network.connect(process, "b", 7)
        outcomes.append("timed out")

    async def server(process: SimProcess) -> None:
        process.world.network.listen(process, 7, lambda end: end.attach(lambda _m: None, lambda _e: None))
        await asyncio.sleep(50)

    run(client, server)
    assert outcomes == ["refused", "timed out"]


def test_two_delays_of_one_way_add_up_and_each_ends_by_itself() -> None:
    pair = Pair()
    network, (a, b) = pair.world.network, (pair.world.host("a"), pair.world.host("b"))

    def longest_s() -> float:
        return max(network._way_s(a, b) for _ in range(300))

    usual_s = longest_s()
    network.delay("a", "b", 10.0)
    network.delay("a", "b", 5.0)
    assert 13.0 < longest_s() < 15.1
    network.undelay("a", "b", 10.0)
    assert 4.0 < longest_s() < 5.1
    network.undelay("a", "b", 5.0)
    assert longest_s() < 2 * usual_s < 0.1


def test_what_is_clogged_twice_is_held_up_until_both_are_over() -> None:
    pair = Pair()
    network, end = pair.world.network, pair.ends[0]
    network.clog(end)
    network.clog(end)
    pair.send("late")
    pair.run(1)
    network.unclog(end)
    pair.run(1)
    assert pair.got == []
    network.unclog(end)
    pair.run(1)
    assert pair.got == ["late"]


def test_wall_clocks_are_skewed_by_host() -> None:
    shown: list[float] = []

    async def main(process: SimProcess) -> None:
        process.host.skew_s = -30.0
        shown.append(SimClock(process).now().timestamp())

    async def right(process: SimProcess) -> None:
        shown.append(SimClock(process).now().timestamp())

    run(main, right)
    assert abs(shown[0] - shown[1]) == pytest.approx(30)


def test_what_nobody_catches_is_told() -> None:
    async def main(process: SimProcess) -> None:
        async def fails() -> None:
            raise ValueError("lost")

        task = asyncio.create_task(fails())
        await asyncio.sleep(1)
        del task
        process.loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    world = World("1")
    told: list[str] = []
    world.on_unhandled = lambda _process, text: told.append(text)
    world.spawn("main", "a", main)
    world.scheduler.run(5)
    assert "lost" in told[0]
    assert "ZeroDivisionError" in told[1]


def test_same_seed_same_trace() -> None:
    def trace(seed: str) -> int:
        pair = Pair(seed)
        pair.send(*range(50))
        pair.run(5)
        return pair.world.scheduler.trace

    assert trace("1") == trace("1") != trace("2")


def order_of_cancellation(kept: list[object]) -> list[int]:
    """In which order the tasks of a group hear that one of them failed."""
    order: list[int] = []

    async def waits(number: int) -> None:
        try:
            await asyncio.sleep(1_000)
        finally:
            order.append(number)

    async def main(_process: SimProcess) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                for number in range(50):
                    group.create_task(waits(number))
                    kept.append(bytearray(100 + 37 * len(kept)))  # memory is taken up otherwise at every run
                asyncio.get_running_loop().call_later(1.0, group._abort)  # type: ignore[attr-defined]

    run(main)
    return order


def test_task_groups_cancel_in_an_order_that_follows_from_the_seed() -> None:
    kept: list[object] = []
    first = order_of_cancellation(kept)
    assert len(first) == 50
    assert all(order_of_cancellation(kept) == first for _ in range(5))


def test_a_world_ends_without_a_word_from_who_was_killed_before_its_first_turn() -> None:
    async def main(_process: SimProcess) -> None:
        raise AssertionError("it has no turn")

    world = World("1")
    process = world.spawn("early", "a", main)
    process.call(process.kill)
    world.scheduler.run(1.0)
    assert not process.alive
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.close()


# --- what a run leaves behind ---------------------------------------------------------------------------


def structs_unseen_by_the_collector() -> list[type[msgspec.Struct]]:
    """All structs of the simulation that the garbage collector does not look into."""
    names = [module.name for module in pkgutil.walk_packages(simulations.__path__, f"{simulations.__name__}.")]
    members = [member for name in names for member in vars(importlib.import_module(name)).values()]
    structs = {one for one in members if isinstance(one, type) and issubclass(one, msgspec.Struct)}
    return [one for one in structs if not one.__struct_config__.gc]


def held_by(struct: type[msgspec.Struct]) -> set[type]:
    """The classes of what its fields hold that are not plain data."""
    found, asked = set[type](), [msgspec.inspect.type_info(struct)]
    seen = set[int]()
    while asked:
        one = asked.pop()
        if isinstance(one, msgspec.inspect.CustomType):
            found.add(one.cls)
        if isinstance(one, list | tuple):
            asked += one
        elif isinstance(one, msgspec.inspect.Type | msgspec.inspect.Field) and id(one) not in seen:
            seen.add(id(one))
            asked += [
                getattr(one, name) for name in one.__struct_fields__ if name not in ("default", "default_factory")
            ]
    return found


def test_structs_that_the_collector_does_not_see_hold_plain_data() -> None:
    # One that holds part of the world, and is held by it, would keep a whole run in memory for ever.
    structs = structs_unseen_by_the_collector()
    assert len(structs) > 10
    assert {one.__name__: held_by(one) - {Random} for one in structs if held_by(one) - {Random}} == {}
    assert held_by(Proposal) > {Stream}
