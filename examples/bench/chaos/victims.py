"""Who is killed or frozen, and when that is a single failure.

The promise is about single failures, so a victim must leave what the promise rests on: a gateway that answers (a
gateway is only hit while every other one is well), and a replica that is ready besides those that are hit or frozen.
A node's replicas count as hit with its process, though they may live: once it is back they are history.
Until that is so, the next blow waits. Everything else may come together: a node and a server, a frozen server and a
killed leader, two replicas.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

FREEZE_S: Final = (0.5, 5.0)
"""Frozen is for between so long (seconds)."""

FREEZE_SHARE: Final = 0.15
TWO_SHARE: Final = 0.1
"""The shares of blows that freeze, and that hit two at once."""


class Kind(StrEnum):
    """What is hit."""

    REPLICA = "replica"
    NODE = "node"
    NODE_ALL = "node and replicas"
    GATEWAY = "gateway"
    NATS = "nats-server"
    ETCD = "etcd"


SHARES: Final[Mapping[Kind, float]] = {
    Kind.REPLICA: 0.44,
    Kind.NODE: 0.12,
    Kind.NODE_ALL: 0.10,
    Kind.GATEWAY: 0.14,
    Kind.NATS: 0.10,
    Kind.ETCD: 0.10,
}
"""How often each is drawn. A member that dies again and again within 10 s of its start is started ever later."""

ONE_AT_ONCE: Final = frozenset({Kind.GATEWAY, Kind.NODE_ALL})
"""Of these never two in one blow."""


class Process(msgspec.Struct, frozen=True):
    """A process of the cluster. `born_s` (seconds of the epoch) tells it from a later one with the same id."""

    kind: Kind
    name: str
    pid: int
    parent: int
    born_s: float


class View(msgspec.Struct, frozen=True):
    """The cluster at one moment. `ready`: of each gateway that answers, how many replicas it can send streams to."""

    processes: Sequence[Process]
    ready: Mapping[str, int]
    frozen: frozenset[int]
    """Process ids."""


class Target(msgspec.Struct, frozen=True):
    """One drawn: which of its kind is settled by `pick` (0 to 1) among those that are there."""

    kind: Kind
    pick: float


class Blow(msgspec.Struct, frozen=True):
    """One blow. `freeze_s` is None where it kills."""

    gap_s: float
    targets: list[Target]
    freeze_s: float | None


def draw_blow(rng: random.Random, gap_s: tuple[float, float]) -> Blow:
    """The next blow, after a gap."""
    gap = rng.uniform(*gap_s)
    targets = [_draw_target(rng)]
    if rng.random() < TWO_SHARE:
        second = _draw_target(rng)
        if second.kind not in ONE_AT_ONCE or second.kind is not targets[0].kind:
            targets.append(second)
    freeze_s = rng.uniform(*FREEZE_S) if rng.random() < FREEZE_SHARE else None
    return Blow(gap, targets, freeze_s)


def choose(blow: Blow, view: View) -> list[list[Process]] | None:
    """The processes that each target means, or None while hitting them would be more than the promise covers."""
    groups: list[list[Process]] = []
    taken: set[int] = set()
    for target in blow.targets:
        group = _group(target, view, taken)
        if group is None:
            return None
        taken.update(process.pid for process in group)
        groups.append(group)
    nodes = {process.pid for group in groups for process in group if process.kind is Kind.NODE}
    lost = {process.pid for process in view.processes if process.parent in nodes}
    return groups if spares(view, taken | lost) else None


def spares(view: View, pids: set[int]) -> bool:
    """Whether enough is left when these are hit: every gateway but those well, and a replica for each of them."""
    out = pids | view.frozen
    gateways = [process for process in view.processes if process.kind is Kind.GATEWAY]
    hit = [process.name for process in gateways if process.pid in pids]
    left = [process.name for process in gateways if process.pid not in out and view.ready.get(process.name, 0) > 0]
    if not left or (hit and len(hit) + len(left) < len(gateways)) or len(hit) > 1:
        return False
    replicas = sum(process.kind is Kind.REPLICA and process.pid in out for process in view.processes)
    return all(view.ready[name] > replicas for name in left)


def _draw_target(rng: random.Random) -> Target:
    kind = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
    return Target(kind, rng.random())


def _group(target: Target, view: View, taken: set[int]) -> list[Process] | None:
    """What the target means now; None while there is none. What is drawn twice is hit once.

    A node that has all the replicas is not hit: none would be left.
    """
    kind = Kind.NODE if target.kind is Kind.NODE_ALL else target.kind
    there = sorted((p for p in view.processes if p.kind is kind and p.pid not in taken), key=lambda p: (p.name, p.pid))
    replicas = [p for p in view.processes if p.kind is Kind.REPLICA]
    if kind is Kind.NODE:
        there = [node for node in there if any(replica.parent != node.pid for replica in replicas)]
    if not there:
        return None
    picked = there[int(target.pick * len(there))]
    if target.kind is not Kind.NODE_ALL:
        return [picked]
    return [picked, *(p for p in replicas if p.parent == picked.pid and p.pid not in taken)]
