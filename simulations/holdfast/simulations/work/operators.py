"""Operators in a simulation: they deploy, scale, update, roll back, delete, and drain members.

Each operation is a process of its own, as a command would be, with the production operator over the log. What it asks
for follows from what was asked for before, whether or not the log has that already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from holdfast.actors.follower import Follower
from holdfast.actors.identity import Identity
from holdfast.actors.operator import Operator
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.errors import InvalidConfig, LogUnavailable
from holdfast.core.events import DrainTarget
from holdfast.gateway.processes import await_log
from holdfast.simulations.work.items import (
    APPLICATION,
    DELETE,
    DEPLOY,
    DRAIN_GATEWAY,
    DRAIN_NODE,
    ROLL_BACK,
    SCALE,
    TAKE_OUT,
    TAKE_OUT_GATEWAY,
    TAKE_OUT_NODE,
    UPDATE,
    Operation,
)
from holdfast.simulations.world.process import SimProcess

if TYPE_CHECKING:
    from holdfast.simulations.cluster.cluster import Cluster

HOST: Final = "operators"
NAMES: Final = ("o1", "o2")
"""Operators' names. Several commands of one name may run at once."""

RETRY_S: Final = 0.5
TRIES_MAX: Final = 60
"""An operator whose log is away asks again so often, and so many times."""

AWAY_S: Final = (0.2, 3.0)
"""An application that is deleted is deployed again between so long and so long afterwards, in seconds."""

UNCHANGED_PART: Final = 0.3
"""This part of the updates changes one model only."""

OUT_S: Final = (1.0, 10.0)
"""Who is drained by the log is undrained between so long and so long afterwards, in seconds."""

DRAIN_S: Final = 1.5
"""A gateway's streams may go on for so long then, in seconds."""

Wish = Callable[[Operator], Awaitable[bool]]


class Operators:
    """All operators of a cluster. `wished` are the configurations that were asked for, in order."""

    def __init__(self, cluster: Cluster, first: ApplicationConfig) -> None:
        self._cluster = cluster
        self.wished = [first]

    def act(self, operation: Operation) -> None:
        """Begin an operation."""
        kind = operation.kind
        if kind in (DRAIN_NODE, DRAIN_GATEWAY):
            self._drain(operation)
        elif kind in TAKE_OUT:
            self._take_out(operation)
        elif kind == DELETE:
            low_s, high_s = AWAY_S
            self._ask(operation, lambda operator: operator.delete(APPLICATION))
            self._cluster.world.scheduler.call_later(
                low_s + (high_s - low_s) * operation.amount, self._deploy, operation, self.wished[-1]
            )
        else:
            wish = {DEPLOY: self._first, SCALE: self._scaled, UPDATE: self._updated, ROLL_BACK: self._before}[kind]
            application = wish(operation)
            self.wished.append(application)
            self._deploy(operation, application)

    # --- what is asked for ------------------------------------------------------------------------------

    def _first(self, _operation: Operation) -> ApplicationConfig:
        return self.wished[0]

    def _scaled(self, operation: Operation) -> ApplicationConfig:
        """One model gets from one replica up to one more than at first, as long as all of them have one more at most:
        nodes have slots for these, and an update needs another one.
        """
        now, first = self.wished[-1].deployments, self.wished[0].deployments
        at = int(operation.amount * len(now))
        others = sum(deployment.num_replicas for number, deployment in enumerate(now) if number != at)
        room = sum(deployment.num_replicas for deployment in first) + 1 - others
        replicas = 1 + int(_second(operation) * min(first[at].num_replicas + 1, room))
        return _changed(now, {at: msgspec.structs.replace(now[at], num_replicas=replicas)})

    def _updated(self, operation: Operation) -> ApplicationConfig:
        """Engines get another pace, which takes new replicas."""
        now = self.wished[-1].deployments
        factor = 0.5 + _second(operation)
        models = range(len(now)) if operation.amount > UNCHANGED_PART else [0]
        return _changed(now, {at: _paced(now[at], factor) for at in models})

    def _before(self, _operation: Operation) -> ApplicationConfig:
        """What was asked for before the last different wish."""
        earlier = [application for application in self.wished if application != self.wished[-1]]
        return earlier[-1] if earlier else self.wished[-1]

    # --- how it is asked for ----------------------------------------------------------------------------

    def _deploy(self, operation: Operation, application: ApplicationConfig) -> None:
        self._ask(operation, lambda operator: operator.deploy(application))

    def _ask(self, operation: Operation, wish: Wish) -> None:
        name = NAMES[operation.number % len(NAMES)]
        self._cluster.world.spawn(name, HOST, lambda process: self._run(process, operation, wish))

    async def _run(self, process: SimProcess, operation: Operation, wish: Wish) -> int:
        """The command: wait for the log, read it, ask."""
        cluster, history = self._cluster, self._cluster.history
        incarnation = f"{process.rng.getrandbits(32):08x}"
        identity = Identity(cluster.name, "operator", process.name, incarnation, HOST, process.pid, HOST)
        history.note(cluster.world.now_s, process.name, f"asks for: {operation.kind}")
        async with await_log(cluster.settings_for(HOST), asyncio.Event(), cluster.stores(process)) as log:
            assert log is not None
            follower = Follower(log)
            following = asyncio.create_task(follower.run())
            try:
                operator = Operator(log, cluster.machine(process).clock, identity, follower)
                for _ in range(TRIES_MAX):
                    with contextlib.suppress(LogUnavailable):
                        await wish(operator)
                        history.note(cluster.world.now_s, process.name, f"has asked for: {operation.kind}")
                        return 0
                    await asyncio.sleep(RETRY_S)
            finally:
                following.cancel()
        history.note(cluster.world.now_s, process.name, f"could not ask for: {operation.kind}")
        return 1

    def _take_out(self, operation: Operation) -> None:
        """Drain somebody by the log, and undrain whom that was after a while; none of a healthy core."""
        low_s, high_s = OUT_S
        out_s = low_s + (high_s - low_s) * operation.amount
        target: list[tuple[DrainTarget, str]] = []

        async def drain(operator: Operator) -> bool:
            found = self._whom(operation, await operator.drainable())
            if found is None:
                return False
            target[:] = [found]
            deadline_s = DRAIN_S if found[0] == "gateway" else None
            with contextlib.suppress(InvalidConfig):  # it may have ended while the log was away, between two tries
                return await operator.drain(*found, "migrate" if _second(operation) < 0.5 else "finish", deadline_s)
            return False

        async def undrain(operator: Operator) -> bool:
            if not target:
                return False
            with contextlib.suppress(InvalidConfig):
                return await operator.undrain(*target[0])
            return False

        def put_back() -> None:
            self._ask(operation, undrain)

        self._ask(operation, drain)
        self._cluster.world.scheduler.call_later(out_s, put_back)

    def _whom(self, operation: Operation, there: dict[DrainTarget, list[str]]) -> tuple[DrainTarget, str] | None:
        """Whom a drain befalls, of those that the log has by then."""
        kind: DrainTarget = (
            "node"
            if operation.kind == TAKE_OUT_NODE
            else "gateway"
            if operation.kind == TAKE_OUT_GATEWAY
            else "replica"
        )
        names = sorted(name for name in there[kind] if name not in self._cluster.core)
        return (kind, names[int(operation.amount * len(names))]) if names else None

    def _drain(self, operation: Operation) -> None:
        """End a member in order; its service manager starts it again."""
        cluster = self._cluster
        members = cluster.nodes if operation.kind == DRAIN_NODE else cluster.gateways
        member = members[int(operation.amount * len(members))]
        if member.alive and member.process is not None:
            cluster.history.note(cluster.world.now_s, HOST, f"{operation.kind}: {member.name}")
            member.process.terminate()


def _second(operation: Operation) -> float:
    """A second number between 0 and 1 out of the operation's one."""
    return operation.amount * 1000 % 1


def _changed(deployments: list[DeploymentConfig], changes: dict[int, DeploymentConfig]) -> ApplicationConfig:
    return ApplicationConfig(APPLICATION, [changes.get(at, old) for at, old in enumerate(deployments)])


def _paced(deployment: DeploymentConfig, factor: float) -> DeploymentConfig:
    arguments = dict(deployment.engine.arguments)
    arguments["itl_ms"] = round(arguments["itl_ms"] * factor, 3)
    return msgspec.structs.replace(deployment, engine=EngineConfig(deployment.engine.kind, arguments))
