"""How a fault is injected and healed: by whom it befalls at that time, and what mends it.

A fault is drawn as plain numbers (`plan.Fault`). What it befalls is chosen when its time has come, among what is there
then: replicas come and go. A kind's function breaks something and returns what it broke and how to mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

import msgspec

from holdfast.simulations.cluster.cluster import Cluster
from holdfast.simulations.cluster.members import Member
from holdfast.simulations.cluster.replicas import RunningReplica
from holdfast.simulations.plan import Fault
from holdfast.simulations.records import Fault as Injected

T = TypeVar("T")

Mend = Callable[[], object]


class Broken(NamedTuple):
    """What a fault did. `mend` is None where it was over at once; `target` empty where there was nothing to break.

    `struck` tells at the end of the run whether it ever did anything, where that is open when it is injected. `lasts_s`
    is for how long it breaks something, where that is not what was drawn.
    """

    target: str
    mend: Mend | None = None
    details: str = ""
    struck: Callable[[], object] | None = None
    lasts_s: float | None = None


NOTHING = Broken("")

LOOK_S = 0.5
"""What finds nothing to break looks again after so long (virtual seconds), for as long as faults may begin."""


class Kind(NamedTuple):
    """A kind of fault. `weight`: how often it is drawn (0: only where a scenario names it); `lasts_s`: between so long
    and so long, zeros for at once.

    `several` names the servers ("log", "leases") that it can only befall where they are several.
    """

    inject: Callable[[Injector, Fault], Broken]
    weight: float = 1.0
    lasts_s: tuple[float, float] = (0.0, 0.0)
    several: str = ""


class Injector:
    """Injects a plan's faults into a cluster."""

    def __init__(self, cluster: Cluster, faults: Sequence[Fault], kinds: Mapping[str, Kind]) -> None:
        self.cluster = cluster
        self._kinds = kinds
        self._faults = faults
        self._mends: dict[Fault, tuple[Mend, Injected]] = {}
        self._open: list[tuple[Callable[[], object], Injected]] = []
        self._rngs: dict[int, Random] = {}
        self.core = frozenset(cluster.core)

    def arm(self) -> None:
        """Set the timers of all faults."""
        for fault in self._faults:
            self.cluster.world.scheduler.call_at(fault.at_s, self._inject, fault)

    def finish(self) -> None:
        """The run is over: note which faults never did anything."""
        for struck, told in self._open:
            told.struck = bool(struck())

    def rng(self, fault: Fault) -> Random:
        """What a fault draws while it lasts."""
        rng = self._rngs.get(fault.number)
        if rng is None:
            rng = self._rngs[fault.number] = self.cluster.world.rng(f"fault {fault.number}")
        return rng

    def _inject(self, fault: Fault) -> None:
        kind = self._kinds[fault.kind]
        broken = kind.inject(self, fault)
        if not broken.target:
            self._look_again(fault)
            return
        now_s = self.cluster.world.now_s
        told = self.cluster.history.fault(now_s, fault.kind, broken.target, broken.details)
        if broken.struck is not None:
            self._open.append((broken.struck, told))
        if broken.mend is None:
            told.until_s = now_s
        elif self.cluster.plan.scenario.heals:
            self._mends[fault] = (broken.mend, told)
            until_s = fault.at_s + fault.lasts_s if broken.lasts_s is None else now_s + broken.lasts_s
            self.cluster.world.scheduler.call_at(until_s, self._heal, fault)

    def _look_again(self, fault: Fault) -> None:
        scenario, at_s = self.cluster.plan.scenario, fault.at_s + LOOK_S
        if at_s <= scenario.faults_until_s:
            lasts_s = max(0.0, min(fault.lasts_s, scenario.healed_s - at_s))
            later = msgspec.structs.replace(fault, at_s=at_s, lasts_s=lasts_s)
            self.cluster.world.scheduler.call_at(at_s, self._inject, later)

    def _heal(self, fault: Fault) -> None:
        mend, told = self._mends.pop(fault)
        mend()
        told.until_s = self.cluster.world.now_s

    # --- whom it befalls --------------------------------------------------------------------------------

    def members(self, role: str = "") -> list[Member]:
        """Members whose process is there, of this role or of any; none of the healthy core."""
        return [
            member
            for member in self.cluster.members
            if member.alive and role in ("", member.role) and member.name not in self.core
        ]

    def replicas(self) -> list[RunningReplica]:
        """Replicas whose process is there, in the order of their names; none of the healthy core's nodes."""
        found = (self.cluster.replicas[name] for name in sorted(self.cluster.replicas))
        return [replica for replica in found if replica.node.host.name not in self.core]

    def hosts(self) -> list[str]:
        """The hosts of members and servers, but for the healthy core's, which could not do without servers."""
        names = [member.host for member in self.cluster.members]
        if not self.core:
            names += self.cluster.servers.hosts
        return [name for name in names if name not in self.core]


def over() -> None:
    """What mends a fault that ends by itself."""


def pick(among: Sequence[T], fault: Fault) -> T | None:
    """The one that the fault befalls, if there are any."""
    return among[int(fault.pick * len(among))] if among else None
