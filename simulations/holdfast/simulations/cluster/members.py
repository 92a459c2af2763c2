"""Nodes and gateways under a service manager: started, started again when they end, and their leases ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from holdfast.actors.ended import end_leases
from holdfast.actors.identity import Identity
from holdfast.core.errors import HoldfastError
from holdfast.gateway.cli.running import exit_code, first_known
from holdfast.simulations.world.process import SimProcess

if TYPE_CHECKING:
    from holdfast.simulations.cluster.cluster import Cluster

ENDING_TIMEOUT_S = 3.0
"""As `holdfast leases end` has it."""

FAILED = 1


class Member:
    """One node or gateway of the cluster, whatever process is it just now."""

    def __init__(self, cluster: Cluster, role: str, name: str, main: Callable[[Member], Coroutine[Any, Any, None]]):
        self.role = role
        self.name = name
        self.host = name
        self.process: SimProcess | None = None
        self.starts = 0
        self.stays_down = False
        self._cluster = cluster
        self._main = main

    @property
    def alive(self) -> bool:
        """Whether a process is there."""
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """Start its next process, unless one is there, or its host has no power."""
        world = self._cluster.world
        if self.alive or self.stays_down or not world.host(self.host).up:
            return
        self.starts += 1
        self.process = world.spawn(self.name, self.host, self._run)
        self._cluster.began(self.process, self.role)
        self.process.on_exit(self._ended)

    def identity(self) -> Identity:
        """The incarnation that this process is."""
        process = self.process
        assert process is not None
        incarnation = f"{process.rng.getrandbits(32):08x}"
        return Identity(self._cluster.name, self.role, self.name, incarnation, self.host, process.pid, self.host)

    def on_stop(self, stop: asyncio.Event, grace_s: float = 0.0) -> None:
        """Set `stop` at SIGTERM; a second one ends the process at once. Requests have `grace_s` to end."""
        cluster, process = self._cluster, self.process
        assert process is not None

        def told() -> None:
            if stop.is_set():
                process.kill()
            cluster.life(process).told(cluster.world.now_s, grace_s)
            stop.set()

        process.loop.add_signal_handler(signal.SIGTERM, told)

    async def _run(self, _process: SimProcess) -> int:
        """The process, as the command line runs it: what is raised on purpose is an exit code."""
        try:
            await self._main(self)
        except HoldfastError as error:
            return self._said(error)
        except BaseExceptionGroup as group:
            known = first_known(group)
            if known is None:
                raise
            return self._said(known)
        return 0

    def _said(self, error: HoldfastError) -> int:
        assert self.process is not None
        self._cluster.history.note(self._cluster.world.now_s, self.name, f"ends: {error}")
        return exit_code(error)

    def _ended(self, _status: int) -> None:
        """The service manager sees it."""
        cluster, process = self._cluster, self.process
        assert process is not None
        if not process.host.up or cluster.over:
            return
        if cluster.knobs.ends_leases:
            cluster.world.spawn(f"{self.name}-ending", self.host, lambda ending: self._end_lease(ending, process.pid))
        restart_s = cluster.knobs.restart_s * (0.5 + cluster.restarts.random())
        cluster.world.scheduler.call_later(restart_s, self.start)

    async def _end_lease(self, _process: SimProcess, pid: int) -> int:
        try:
            async with asyncio.timeout(ENDING_TIMEOUT_S):
                leases = self._cluster.leases(_process)
                try:
                    await end_leases(leases, self.role, self.name, lambda holder: holder.pid == pid)
                finally:
                    await leases.close()
        except (HoldfastError, TimeoutError):
            return FAILED
        return 0
