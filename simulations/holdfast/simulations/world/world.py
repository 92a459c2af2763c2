"""One run's world: time, hosts, network, processes, and what is noted of them."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from holdfast.simulations.world.loop import ProcessLoop
from holdfast.simulations.world.network import Network
from holdfast.simulations.world.process import Main, SimProcess
from holdfast.simulations.world.scheduler import Scheduler

FIRST_PID = 100


@dataclass
class Host:
    """A machine. `skew_s` is by how much its wall clock is wrong; `disk` outlives its processes."""

    name: str
    up: bool = True
    skew_s: float = 0.0
    disk: dict[str, Any] = field(default_factory=dict)


class World:
    """Everything there is in one run. `on_end` hears of processes that end; `tasks_of` finds what they had to do."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.scheduler = Scheduler(self.rng("scheduling"))
        self.network = Network(self)
        self.hosts: dict[str, Host] = {}
        self.processes: list[SimProcess] = []
        self.on_end: Callable[[SimProcess], object] = lambda _process: None
        self.on_unhandled: Callable[[SimProcess, str], object] = lambda _process, _text: None
        self.tasks_of: Callable[[ProcessLoop], object] = asyncio.all_tasks
        self._pids = FIRST_PID

    @property
    def now_s(self) -> float:
        """The true virtual time in seconds; the world begins at 0."""
        return self.scheduler.now_s

    def rng(self, purpose: str) -> Random:
        """A generator for one purpose: what is drawn for another does not change it."""
        return Random(f"{self.seed}/{purpose}")

    def host(self, name: str) -> Host:
        """The host of this name; it is made when it is first asked for."""
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name)
        return host

    def spawn(self, name: str, host: str, main: Main) -> SimProcess:
        """Start a process."""
        self._pids += 1
        process = SimProcess(self, name, self.host(host), self._pids, main)
        self.processes.append(process)
        return process

    def process_ended(self, process: SimProcess) -> None:
        self.on_end(process)

    def unhandled(self, process: SimProcess, text: str) -> None:
        """Something raised where nobody catches it."""
        self.on_unhandled(process, text)

    def power_off(self, host: str) -> list[SimProcess]:
        """All processes of a host end, and say nothing to anybody; those."""
        machine = self.host(host)
        machine.up = False
        ended = [process for process in self.processes if process.host is machine and process.alive]
        for process in ended:
            process.kill()
        return ended

    def power_on(self, host: str) -> None:
        """The host is back, without processes."""
        self.host(host).up = True

    def close(self) -> None:
        """End all that is left, without a word from what is cut off in the middle: its `finally` clauses run now."""
        self.on_end = self.on_unhandled = _ignore
        hook = sys.unraisablehook
        sys.unraisablehook = _ignore
        try:
            with warnings.catch_warnings():
                # Tasks that were made last of all have not had their first turn.
                warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
                while self.processes:
                    self.processes.pop().forget()
                self.hosts.clear()
                self.network.close()
                self.scheduler.close()
                gc.collect()
        finally:
            sys.unraisablehook = hook


def _ignore(*_what: object) -> None:
    """Nobody wants to know any more."""
