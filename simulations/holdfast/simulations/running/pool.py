"""Calls one function for many tasks, in other OS processes, and outlives whatever the function does there.

A task that raises, that takes its process with it, or that takes too long is answered by a `Broken`; the others go on.
Each process imports once and is used for many tasks.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, Generic, TypeVar

import msgspec

from holdfast.core.errors import WorldFailure

RAISED: Final = "raised"
DIED: Final = "died"
SLOW: Final = "took too long"
"""How a task may break; after `RAISED` comes the exception's type."""

TASK_LIMIT_S = 60.0
"""Seconds of a processor's time that a task may take; its process ends then. On a machine that is busy with other
things they may be many real ones."""

REAL_LIMIT_S = 1_800.0
"""Real seconds that a task may take: one that only waits needs no processor, and would never end."""

TASKS_MAX = 5_000
"""So many tasks, and a process is replaced by a new one: what libraries never free stays bounded."""

TEXT_MAX = 4_000
"""Characters of a traceback that are kept, the last ones."""

END_S = 2.0
"""Real seconds that a process is given to end by itself when there is nothing more to do."""

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class Broken(msgspec.Struct, frozen=True):
    """A task without an answer: how it broke, and the traceback or what else is known."""

    how: str
    text: str


class WorkersFailed(WorldFailure):
    """A process could not get ready for tasks: what it imports fails. The text holds the traceback."""


class _Worker:
    """A process and the task that it is at."""

    def __init__(self, prepare: Callable[[], object] | None, work: Callable[[Any], Any], limit_s: float) -> None:
        self._limit_s = limit_s
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, prepare, work, limit_s), daemon=True)
        with _interrupts_blocked():
            self.process.start()
        theirs.close()
        self.task: Any = None
        self.busy = False
        self.until_s = 0.0
        self.done = 0

    def give(self, task: Any, real_limit_s: float) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is dead, which is found out when its answer is awaited
            self.connection.send(task)
        self.task, self.busy, self.until_s = task, True, time.monotonic() + real_limit_s

    def take(self) -> Any:
        """Its answer, which is there, or the news of its end."""
        self.busy = False
        self.done += 1
        try:
            ready, answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.close()
            code = self.process.exitcode or 0
            if code == -signal.SIGPROF:
                return Broken(SLOW, f"not done after {self._limit_s:g} s of a processor's time")
            cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return Broken(DIED, f"its process ended {cause}")
        if not ready:
            raise WorkersFailed(f"a worker of the simulation can't start: {answer}")
        return answer

    def give_up(self, real_limit_s: float) -> Broken:
        """Kill it in the middle of its task."""
        self.busy = False
        self.kill()
        return Broken(SLOW, f"not done after {real_limit_s:g} s of real time")

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Let it end: it does, when nobody can send it tasks."""
        self.connection.close()
        self.process.join(END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    @property
    def usable(self) -> bool:
        return not self.connection.closed


class Pool(Generic[Task, Answer]):
    """`jobs` processes that call `work`. Both functions must be ones of a module. Use as a context manager.

    `prepare` is called once in each process, to import what `work` needs. A task takes at most `limit_s` seconds of a
    processor's time, and `real_limit_s` real ones.
    """

    def __init__(
        self,
        work: Callable[[Task], Answer],
        jobs: int,
        *,
        prepare: Callable[[], object] | None = None,
        limit_s: float = TASK_LIMIT_S,
        real_limit_s: float = REAL_LIMIT_S,
    ) -> None:
        self._work = work
        self._prepare = prepare
        self._limit_s = limit_s
        self._real_limit_s = real_limit_s
        self._workers: list[_Worker | None] = [None] * jobs

    def __enter__(self) -> Pool[Task, Answer]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers:
            if worker is not None and worker.usable:
                worker.kill() if worker.busy or kind else worker.close()

    def map(self, tasks: Iterable[Task]) -> Generator[tuple[Task, Answer | Broken], None, None]:
        """Each task with its answer, in the order in which they are done. Takes tasks as it gets on, no earlier.

        Closed before its end, it kills what is under way. Raises `WorkersFailed`.
        """
        remaining = iter(tasks)
        try:
            while self._hand_out(remaining):
                yield from self._done()
        finally:
            for worker in self._workers:
                if worker is not None and worker.busy:
                    worker.give_up(self._real_limit_s)

    def _hand_out(self, tasks: Iterator[Task]) -> bool:
        """Give everybody idle a task; whether anybody has one."""
        for at, worker in enumerate(self._workers):
            if worker is not None and worker.busy:
                continue
            for task in tasks:
                self._idle(at).give(task, self._real_limit_s)
                break
        return any(worker is not None and worker.busy for worker in self._workers)

    def _idle(self, at: int) -> _Worker:
        worker = self._workers[at]
        if worker is not None and worker.usable and worker.done < TASKS_MAX:
            return worker
        if worker is not None and worker.usable:
            worker.close()
        worker = self._workers[at] = _Worker(self._prepare, self._work, self._limit_s)
        return worker

    def _done(self) -> Iterator[tuple[Task, Answer | Broken]]:
        busy = {worker.connection: worker for worker in self._workers if worker is not None and worker.busy}
        patience_s = min(worker.until_s for worker in busy.values()) - time.monotonic()
        answering = wait(list(busy), max(0.0, patience_s))
        for connection, worker in busy.items():
            if connection in answering:
                yield worker.task, worker.take()
            elif time.monotonic() >= worker.until_s:
                yield worker.task, worker.give_up(self._real_limit_s)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """What is started in here never hears of Ctrl-C, which goes to all processes of a terminal: we end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the other process -------------------------------------------------------------------------------


def _serve(tasks: Connection, prepare: Callable[[], object] | None, work: Callable[[Any], Any], limit_s: float) -> None:
    """Answer tasks until nobody can send any, or one has had its time."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.unraisablehook = _ignore  # what simulated processes left behind in the middle of something
    try:
        if prepare is not None:
            prepare()
    except BaseException:
        with contextlib.suppress(EOFError, OSError):
            tasks.recv()
            tasks.send((False, _traceback()))
        return
    gc.collect()
    gc.freeze()
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = tasks.recv()
            signal.setitimer(signal.ITIMER_PROF, limit_s)  # at its end SIGPROF ends the process
            answer = _answer(work, task)
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            tasks.send((True, answer))


def _ignore(_unraisable: object) -> None:
    """Nobody reads it."""


def _answer(work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return work(task)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        return Broken(f"{RAISED} {type(error).__name__}", _traceback())


def _traceback() -> str:
    return traceback.format_exc()[-TEXT_MAX:]
