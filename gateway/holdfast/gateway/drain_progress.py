"""Who is meant by the name that an operator gives, and how far a drain is."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from holdfast.actors.operator import drainable
from holdfast.core.cluster import ClusterState, Drain, MemberStatus
from holdfast.core.drains import drain_key
from holdfast.core.errors import Misuse
from holdfast.core.events import DrainTarget
from holdfast.core.status import natural_order, report

NAMES_SHOWN_MAX = 20


class Target(NamedTuple):
    """Somebody who can be drained."""

    kind: DrainTarget
    name: str


class Progress(msgspec.Struct, frozen=True):
    """How far it is, and why not farther, for people."""

    done: bool
    message: str


def find_target(state: ClusterState, given: str) -> Target:
    """Whom the name means. `kind/name` says which of several of one name. Raises `Misuse`, which tells who is there."""
    there = drainable(state)
    kind, slash, name = given.partition("/")
    among = [Target(one, name) for one in there if one == kind] if slash else [Target(one, given) for one in there]
    found = [target for target in among if target.name in there[target.kind]]
    if len(found) == 1:
        return found[0]
    if found:
        ways = " or ".join(f"{target.kind}/{target.name}" for target in found)
        raise Misuse(f"{given} is the name of several: say {ways}")
    listed = "; ".join(f"{one}s: {_some(names)}" for one, names in there.items())
    raise Misuse(f"there is no node, replica or gateway {given!r}; there are {listed}")


def _some(names: list[str]) -> str:
    shown = sorted(names, key=natural_order)[:NAMES_SHOWN_MAX]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return (", ".join(shown) or "none") + more


def only_gateway(state: ClusterState, target: Target) -> bool:
    """Whether nobody would take requests if this gateway did not."""
    others = (one for one in state.gateways.values() if one.id != target.name)
    taking = any(one.status is MemberStatus.ALIVE and one.drain is None for one in others)
    return target.kind == "gateway" and not taking


def drain_progress(state: ClusterState, target: Target) -> Progress:
    """How far the drain is that was asked for."""
    if drain_key(target.kind, target.name) in state.drain_requests:
        return Progress(False, "waits for a leader to decide")
    if target.kind == "replica":
        replica = state.replicas.get(target.name)
        if replica is None:
            return Progress(True, "it is gone")
        return Progress(False, f"it is {replica.status}; {_waits(state)}")
    if _drain_of(state, target) is None:
        return Progress(True, "somebody else undrained it meanwhile")
    if target.kind == "node":
        here = [replica.id for replica in state.replicas.values() if replica.node == target.name]
        return Progress(not here, f"{_some(here)} to go; {_waits(state)}" if here else "nothing runs on it")
    gateway = state.gateways[target.name]
    ended = gateway.status in (MemberStatus.LEFT, MemberStatus.LOST)
    waits = "lets what is open end, or go elsewhere"
    return Progress(gateway.drained or ended, "nothing is open" if gateway.drained else "it ended" if ended else waits)


def undrain_progress(state: ClusterState, target: Target) -> Progress:
    """How far the end of a drain is that was asked for."""
    waits = drain_key(target.kind, target.name) in state.drain_requests
    return Progress(not waits, "waits for a leader to decide" if waits else "it is in use")


def _drain_of(state: ClusterState, target: Target) -> Drain | None:
    members = state.nodes if target.kind == "node" else state.gateways
    member = members.get(target.name)
    return None if member is None else member.drain


def _waits(state: ClusterState) -> str:
    """What the deployments say that are not as they should be."""
    applications = report(state, None).applications.values()
    said = {
        f"{name}: {deployment.message}"
        for application in applications
        for name, deployment in application.deployments.items()
        if deployment.message
    }
    return "; ".join(sorted(said)) or "it is about to stop"
