"""A replica's process, as its node has it: launched, listened to, told to stop, and killed if that is not enough.

What becomes of it goes to the log as it happens, up to how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

import msgspec

from holdfast.actors.node_metrics import NodeMetrics
from holdfast.actors.replica_watch import ReplicaWatch
from holdfast.actors.specification import (
    Checked,
    Draining,
    Failed,
    Ready,
    ReplicaSpecification,
    StopOrder,
    decode_report,
)
from holdfast.actors.writer import FactWriter
from holdfast.core.cluster import ReplicaState
from holdfast.core.decoding import UNDECODABLE
from holdfast.core.errors import WorldFailure
from holdfast.core.events import ReplicaDraining, ReplicaExited, ReplicaReady, ReplicaStarted, StreamsFenced
from holdfast.core.ports import Launcher, Process

STOP_MARGIN_S = 3.0
"""A replica that is told to stop gets this much longer than its deadline before it is killed: its last streams go
elsewhere in that time, and the engine closes."""

REPORTS_TIMEOUT_S = 1.0
"""How long a replica's last words are waited for when its process has ended."""

logger = logging.getLogger(__name__)


class Child:
    """A replica's process from its launch to its end.

    `advertise_host` is the host that gateways reach it by; without one it is what it binds. `order` is how it is to
    stop.
    """

    def __init__(
        self,
        node: str,
        advertise_host: str,
        specification: ReplicaSpecification,
        watch: ReplicaWatch,
        launcher: Launcher,
        facts: FactWriter,
        metrics: NodeMetrics,
    ) -> None:
        self.specification = specification
        self.order = StopOrder(specification.drain, specification.graceful_shutdown_timeout_s)
        self._node = node
        self._advertise_host = advertise_host
        self._watch = watch
        self._launcher = launcher
        self._facts = facts
        self._metrics = metrics
        self._process: Process | None = None
        self._started_s = 0.0
        self._stopping = asyncio.Event()
        self._drains_itself = False
        self._message = ""

    @property
    def ends(self) -> bool:
        """Whether it is to end, by its node's word or somebody else's."""
        return self._stopping.is_set() or self._drains_itself

    def stop(self, known: ReplicaState | None) -> None:
        """Tell it to stop, as the log says if that says how."""
        if known is not None and not self._stopping.is_set():
            mode, deadline_s = known.stop_mode or self.order.mode, known.stop_deadline_s
            self.order = StopOrder(mode, self.order.deadline_s if deadline_s is None else deadline_s)
        self._stopping.set()

    def kill(self) -> None:
        """End its process at once, if there is one."""
        if self._process is not None:
            self._process.kill()

    async def run(self, placed: str) -> None:
        """Launch it, and tell the log how it goes, to its end. `placed` is the event that placed it here."""
        name = self.specification.replica
        try:
            process = await self._launcher.launch(name, msgspec.json.encode(self.specification))
        except WorldFailure as error:
            expected = self._stopping.is_set()
            unstarted = ReplicaExited(name, self._node, 0, None, None, expected, str(error))
            self._ended(unstarted, placed)
            return
        self._process = process
        self._started_s = asyncio.get_running_loop().time()
        started = self._facts.record(ReplicaStarted(name, self._node, process.pid), placed)
        try:
            async with asyncio.TaskGroup() as group:
                reports = group.create_task(self._read_reports(process, started))
                stopper = group.create_task(self._stop_when_told(process))
                watching = group.create_task(self._watch.run(started))
                status = await process.wait()
                stopper.cancel()
                watching.cancel()
                # A child of the replica may hold the pipe open; what it reported is here by now.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REPORTS_TIMEOUT_S):
                        await asyncio.shield(reports)
                reports.cancel()
        finally:
            process.kill()
        self._ended(self._exited(process.pid, status), started)

    def _ended(self, fact: ReplicaExited, cause: str) -> None:
        self._facts.record(fact, cause)
        self._metrics.exited(fact)

    async def _read_reports(self, process: Process, started: str) -> None:
        async for line in process.messages():
            try:
                report = decode_report.decode(line)
            except UNDECODABLE as error:
                logger.warning("replica %s reports nonsense: %s", self.specification.replica, error)
                continue
            if isinstance(report, Ready):
                name, address = self.specification.replica, self._reached_at(report.address)
                ready = ReplicaReady(name, self._node, address, report.info, report.system_port)
                self._watch.ready(report.address, self._facts.record(ready, started))
                self._metrics.ready(asyncio.get_running_loop().time() - self._started_s)
            elif isinstance(report, Failed):
                self._message = report.message
            elif isinstance(report, Draining):
                self._drains_itself = True
                self._facts.record(ReplicaDraining(self.specification.replica, self._node), started)
            elif isinstance(report, Checked):
                self._watch.checked(report.message)
            else:
                fenced = StreamsFenced(self._node, self.specification.replica, report.gateway, report.streams)
                self._facts.note(fenced, started)

    def _reached_at(self, address: str) -> str:
        """Where gateways reach what listens at `address`; an IPv6 host in brackets."""
        bound, _, port = address.rpartition(":")
        host = (self._advertise_host or bound).strip("[]")
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def _stop_when_told(self, process: Process) -> None:
        """Pass on that it shall stop, and SIGKILL when that was not enough."""
        await self._stopping.wait()
        process.tell(msgspec.json.encode(self.order))
        await asyncio.sleep(self.order.deadline_s + STOP_MARGIN_S)
        logger.warning("replica %s did not stop in time; killing it", self.specification.replica)
        process.kill()

    def _exited(self, pid: int, status: int) -> ReplicaExited:
        return ReplicaExited(
            self.specification.replica,
            self._node,
            pid,
            status if status >= 0 else None,
            _signal_name(-status) if status < 0 else None,
            self.ends,
            self._message,
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
