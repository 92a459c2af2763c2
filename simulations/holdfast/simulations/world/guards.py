"""What would let the real world into a run raises: threads, sockets, child processes, real clocks, unseeded chance.

Sockets, names of machines, processes and signals are seen by an audit hook, so that it does not matter who asks.
Clocks, chance and threads are replaced for the time of a run. `datetime.now` and C code of libraries escape this:
`tests/unit/simulations` looks for them in what we import ourselves, and for the rest the trace of a seed would change
from run to run.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

FORBIDDEN = frozenset(
    {
        "socket.__new__",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostname",
        "subprocess.Popen",
        "os.kill",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.system",
    }
)
CLOCKS = (
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep"),
    *("process_time", "process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns"),
    *("localtime", "gmtime", "ctime", "asctime", "strftime"),
)
"""Those of the module `time`; the last ones take a time, but none means now."""

CHANCE = tuple(
    name
    for name, function in sorted(vars(random).items())
    if isinstance(getattr(function, "__self__", None), random.Random)
)
"""The functions of the module `random`: methods of a generator that nobody gave a seed."""


class LeftTheSimulation(BaseException):
    """Code in a simulated process used what is not simulated. Not an `Exception`: nobody may catch and go on."""


class _Guard:
    """Whether a run is going on now; the audit hook can't be taken out again."""

    active = False
    hooked = False


def _hook(event: str, _arguments: tuple[object, ...]) -> None:
    if _Guard.active and event in FORBIDDEN:
        raise LeftTheSimulation(f"{event} within a simulated run")


def _forbidden(name: str) -> Callable[..., NoReturn]:
    def refuse(*_arguments: object, **_more: object) -> NoReturn:
        raise LeftTheSimulation(f"{name} within a simulated run")

    return refuse


_seed_of = random.Random.seed


def _seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
    if a is None:
        raise LeftTheSimulation("a generator without a seed within a simulated run")
    _seed_of(generator, a, version)


class _LoggingTime:
    """What `logging` takes for the clock: records have the virtual time."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.time = now_s

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextlib.contextmanager
def sealed(now_s: Callable[[], float]) -> Iterator[None]:
    """Within this, leaving the simulation raises `LeftTheSimulation`."""
    if not _Guard.hooked:
        sys.addaudithook(_hook)
        _Guard.hooked = True
    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for name in CLOCKS:
        replace(time, name, _forbidden(f"time.{name}"))
    for name in CHANCE:
        replace(random, name, _forbidden(f"random.{name}"))
    replace(threading.Thread, "start", _forbidden("starting a thread"))
    replace(_thread, "start_new_thread", _forbidden("starting a thread"))
    replace(random.Random, "seed", _seed)
    replace(os, "urandom", _forbidden("os.urandom"))
    replace(random, "_urandom", _forbidden("os.urandom"))
    replace(os, "getrandom", _forbidden("os.getrandom"))
    replace(uuid, "uuid1", _forbidden("uuid.uuid1"))
    replace(logging, "time", _LoggingTime(now_s))
    _Guard.active = True
    try:
        yield
    finally:
        _Guard.active = False
        for owner, name, value in reversed(replaced):
            setattr(owner, name, value)
