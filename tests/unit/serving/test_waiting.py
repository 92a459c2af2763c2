"""Who goes next, and who gives way."""

from __future__ import annotations

from collections import Counter
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.admission import Priority
from holdfast.gateway.backend import Claim
from holdfast.gateway.session import StreamRun
from holdfast.gateway.waiting import TURNS_MAX, WaitingQueue

BATCH, DEFAULT, CRITICAL = Priority
PRIORITIES = st.sampled_from(Priority)
TENANTS = st.sampled_from("abc")


class FakeRun:
    """What a queue knows of a stream."""

    has_tokens = False

    def __init__(self, queue: WaitingQueue, priority: Priority = DEFAULT, tenant: str = "") -> None:
        self.claim = Claim(priority, tenant)
        self._queue = queue

    def leave_queue(self) -> None:
        self._queue.remove(cast(StreamRun, self))


def add(queue: WaitingQueue, priority: Priority = DEFAULT, tenant: str = "") -> StreamRun:
    run = cast(StreamRun, FakeRun(queue, priority, tenant))
    queue.append(run)
    return run


def next_of(queue: WaitingQueue) -> StreamRun:
    run = queue.head()
    queue.begun(run)
    return run


def test_the_higher_priority_goes_first_and_within_one_who_came_first() -> None:
    queue = WaitingQueue()
    runs = [add(queue, priority) for priority in (BATCH, DEFAULT, CRITICAL, BATCH, DEFAULT, CRITICAL)]
    order = [next_of(queue) for _ in runs]
    assert order == [runs[2], runs[5], runs[1], runs[4], runs[0], runs[3]]
    assert not queue


def test_what_lost_its_replica_goes_before_everybody() -> None:
    queue = WaitingQueue()
    add(queue, CRITICAL)
    moved = cast(StreamRun, FakeRun(queue, BATCH))
    queue.appendleft(moved)
    assert queue.ahead(CRITICAL) == 2
    assert next_of(queue) is moved


def test_a_low_priority_that_waits_gets_a_turn_now_and_then() -> None:
    queue = WaitingQueue()
    low = add(queue, BATCH)
    for turn in range(TURNS_MAX):
        add(queue, CRITICAL)
        assert next_of(queue) is not low, turn
    add(queue, CRITICAL)
    assert next_of(queue) is low


def test_tenants_take_turns_whatever_they_have_waiting() -> None:
    queue = WaitingQueue()
    for _ in range(30):
        add(queue, tenant="greedy")
    for _ in range(3):
        add(queue, tenant="modest")
    assert Counter(next_of(queue).claim.tenant for _ in range(6)) == {"greedy": 3, "modest": 3}


def test_the_last_that_came_of_the_lowest_priority_gives_way() -> None:
    queue = WaitingQueue()
    batch = [add(queue, BATCH) for _ in range(2)]
    default = add(queue)
    assert queue.below(CRITICAL, 1) == [batch[1]]
    assert queue.below(CRITICAL, 9) == [batch[1], batch[0], default]
    assert queue.below(DEFAULT, 9) == [batch[1], batch[0]]
    assert queue.below(BATCH, 9) == []


def test_within_a_priority_the_tenant_that_has_most_gives_way_if_it_has_more() -> None:
    queue = WaitingQueue()
    runs = [add(queue, tenant=tenant) for tenant in "aab"]
    usage = {"a": 5, "b": 9, "c": 1}
    assert queue.greedy(DEFAULT, usage["c"] + 1, usage, 1) == [runs[2]]
    assert queue.greedy(DEFAULT, 9, usage, 1) == []
    assert queue.greedy(CRITICAL, 0, usage, 1) == []


@given(st.lists(st.tuples(st.sampled_from(["add", "moved", "next", "remove"]), PRIORITIES, TENANTS), max_size=60))
def test_nobody_is_lost_or_served_twice(steps: list[tuple[str, Priority, str]]) -> None:
    queue, waiting = WaitingQueue(), []
    for what, priority, tenant in steps:
        if what == "add":
            waiting.append(add(queue, priority, tenant))
        elif what == "moved":
            run = cast(StreamRun, FakeRun(queue, priority, tenant))
            queue.appendleft(run)
            waiting.append(run)
        elif waiting and what == "next":
            waiting.remove(next_of(queue))
        elif waiting:
            queue.remove(waiting.pop(len(waiting) // 2))
        assert sorted(map(id, queue)) == sorted(map(id, waiting))
        assert queue.ahead(BATCH) == len(queue) == len(waiting)
    while queue:
        waiting.remove(next_of(queue))
    assert not waiting


@given(st.lists(PRIORITIES, min_size=1, max_size=100))
def test_nobody_is_passed_over_for_ever(arrivals: list[Priority]) -> None:
    queue = WaitingQueue()
    low = add(queue, BATCH)
    for turn, priority in enumerate(arrivals):
        add(queue, priority)
        if next_of(queue) is low:
            return
        assert turn <= 2 * TURNS_MAX
