"""Tasks in other processes: what comes back of those that go well, raise, die, or never end."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator

import pytest

from holdfast.simulations.running import pool as pool_module
from holdfast.simulations.running.pool import DIED, RAISED, SLOW, Broken, Pool, WorkersFailed

BAD, DEADLY, KILLED, WAITING, ENDLESS = 13, 14, 15, 16, 17


def double(number: int) -> int:
    """What the workers do."""
    match number:
        case 13:
            raise KeyError("unlucky")
        case 14:
            os._exit(3)
        case 15:
            os.kill(os.getpid(), signal.SIGKILL)
        case 16:
            time.sleep(600)
        case 17:
            while True:
                pass
    return 2 * number


def waits(seconds: float) -> float:
    time.sleep(seconds)
    return 2 * seconds


def process_id(_task: int) -> int:
    return os.getpid()


def cannot_start() -> None:
    raise ImportError("no such module")


def test_every_task_is_answered_once() -> None:
    with Pool(double, 2) as pool:
        assert dict(pool.map(range(10))) == {number: 2 * number for number in range(10)}
        assert dict(pool.map([20])) == {20: 40}


def test_what_a_task_does_to_its_process_costs_no_other_task() -> None:
    with Pool(double, 2) as pool:
        answers = dict(pool.map([1, BAD, DEADLY, 2, KILLED, 3, 4]))
    assert {number: answers[number] for number in (1, 2, 3, 4)} == {1: 2, 2: 4, 3: 6, 4: 8}
    bad, deadly, killed = (answers[number] for number in (BAD, DEADLY, KILLED))
    assert isinstance(bad, Broken)
    assert bad.how == f"{RAISED} KeyError"
    assert bad.text.endswith("KeyError: 'unlucky'\n")
    assert deadly == Broken(DIED, "its process ended with exit code 3")
    assert killed == Broken(DIED, "its process ended by SIGKILL")


def test_a_task_that_never_ends_is_given_up() -> None:
    slow = Broken(SLOW, "not done after 0.2 s of a processor's time")
    with Pool(double, 1, limit_s=0.2) as pool:
        assert list(pool.map([ENDLESS, 1])) == [(ENDLESS, slow), (1, 2)]


def test_a_task_that_waits_for_ever_is_given_up() -> None:
    with Pool(double, 1, real_limit_s=0.5) as pool:
        assert list(pool.map([WAITING])) == [(WAITING, Broken(SLOW, "not done after 0.5 s of real time"))]


def test_who_waits_for_a_processor_has_not_had_its_time() -> None:
    with Pool(waits, 1, limit_s=0.2) as pool:
        assert list(pool.map([0.5])) == [(0.5, 1.0)]


def test_workers_that_cannot_import_what_they_need_end_the_whole() -> None:
    with Pool(double, 2, prepare=cannot_start) as pool, pytest.raises(WorkersFailed, match="no such module"):
        list(pool.map([1]))


def test_tasks_are_drawn_as_they_are_needed() -> None:
    drawn: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count(100):
            drawn.append(number)
            yield number

    with Pool(double, 2) as pool:
        answers = pool.map(endless())
        first = [next(answers) for _ in range(4)]
        answers.close()
    assert all(answer == 2 * task for task, answer in first)
    assert len(drawn) <= 6


def test_a_worker_is_used_for_many_tasks_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "TASKS_MAX", 3)
    with Pool(process_id, 1) as pool:
        ids = [answer for _, answer in pool.map(range(6))]
    assert ids[0] == ids[1] == ids[2] != ids[3] == ids[4] == ids[5]
