"""Keeps child processes running: starts them again when they end, slower each time, and says when that is futile.

A child that dies soon after its start again and again has something wrong with it that starting does not mend.
Until the cluster has come up once (`settled`) that ends everything with the last line of the child's log. Later
the others go on serving, and the child is tried for as long as it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from holdfast.core.errors import WorldFailure
from holdfast.store.log_files import last_line

RESTART_FIRST_S = 0.2
RESTART_MAX_S = 10.0
"""Between a child's end and its next start: doubling from the first to the largest, in seconds."""

RIGHT_AT_START_S = 10.0
"""A child that ends within this time of its start died right at start."""

EARLY_DEATHS_MAX = 3
"""Deaths right at start, in a row, after which starting is futile."""


class GivenUp(WorldFailure):
    """A child can't be brought to run."""


class Child(Protocol):
    """A process that can be started again after it ended (`ChildProcess` is one)."""

    name: str
    log_path: Path

    @property
    def pid(self) -> int | None: ...

    async def start(self) -> None:
        """Start it. Raises `WorldFailure`."""
        ...

    async def wait(self) -> int: ...

    async def stop(self) -> None: ...

    async def kill(self) -> None: ...


class Keeper:
    """Keeps one child running. `running` is set from its first start on; `changed()` is called at every change.

    `ended(pid)` is called when a process of the child has ended without having been told to.
    """

    def __init__(
        self,
        child: Child,
        *,
        changed: Callable[[], None],
        say: Callable[[str], None],
        ended: Callable[[int], object] = lambda _pid: None,
    ) -> None:
        self.child = child
        self._ended = ended
        self.running = asyncio.Event()
        self.settled = False
        self._changed = changed
        self._say = say

    async def run(self) -> None:
        """Start the child, and start it again whenever it ends, until cancelled. Raises `GivenUp`."""
        loop = asyncio.get_running_loop()
        early_deaths, wait_s = 0, RESTART_FIRST_S
        while True:
            born_s = loop.time()
            ending = await self._live()
            self._changed()
            if loop.time() - born_s >= RIGHT_AT_START_S:
                early_deaths, wait_s = 0, RESTART_FIRST_S
            early_deaths += 1
            if early_deaths >= EARLY_DEATHS_MAX and not self.settled:
                raise GivenUp(self._futile(ending, early_deaths))
            self._say(f"{self.child.name} ended ({ending}); starting it again in {wait_s:g} s")
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RESTART_MAX_S)

    async def _live(self) -> str:
        """One life of the child; how it ended."""
        try:
            await self.child.start()
        except (WorldFailure, OSError) as error:  # also: no memory for a process, no room for its log
            return f"it did not come up: {str(error).partition(chr(10))[0]}"
        self.running.set()
        self._changed()
        pid = self.child.pid
        status = await self.child.wait()
        if pid is not None:
            self._ended(pid)
        return describe_ending(status)

    def _futile(self, ending: str, deaths: int) -> str:
        last = last_line(self.child.log_path)
        return f"{self.child.name} ended {deaths} times right at its start ({ending}). {self.child.log_path}: {last}"


def describe_ending(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit code {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


async def stop_all(children: Iterable[Child], within_s: float) -> None:
    """End all of them at once: in order, and by SIGKILL those that have not ended by then."""
    await asyncio.gather(*(_stop(child, within_s) for child in children))


async def _stop(child: Child, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await child.stop()
    except TimeoutError:
        await child.kill()
