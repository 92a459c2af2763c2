"""Members: who runs takes part and holds a lease, and nobody whom nothing befell is given up or loses its lease."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from holdfast.core import events as ev
from holdfast.core.cluster import MemberStatus
from holdfast.simulations.checkers.folding import FinalLog, Member, final_log
from holdfast.simulations.checkers.health import befalls
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import GATEWAY, NODE, SERVER, LeaseEvent, Process, Settle

MEMBERS: Final = "members"
LEASES: Final = "leases"

CALM_S: Final = 10.0
"""So long after a fault is over, in seconds, it no longer explains what happens to a lease: a TTL and tries to get
through are over by then."""

LEASE_SERVERS: Final = "etcd"
LOG_SERVERS: Final = "nats"
"""What the names of their hosts begin with."""

STANDSTILLS: Final = {
    f"{plane} server {what}": servers
    for plane, servers in (("lease", LEASE_SERVERS), ("log", LOG_SERVERS))
    for what in ("crash", "freeze", "power failure")
}
"""Faults in which a server of these answers nobody. As the only one it lets nobody down more than another."""

KEEP_FROM_RENEWING: Final = frozenset(
    {
        *("freeze", "slow process", "power failure"),
        *("partition", "one-way partition", "delay", "clogging"),
        *("lease server crash", "lease server freeze", "lease server power failure"),
        *("leases: answers lost", "leases: requests dropped", "leases: timeouts"),
        *("leases: leader change", "leases: expiry early", "leases: member cut off (stale reads)"),
    }
)
"""Faults that may keep a member from renewing its lease in time, or end leases by themselves. Clocks that jump, watches
that are cut, what is compacted, late ends, requests that come twice, slow disks and full ones may not: renewals take
nothing of all that."""

FULL: Final = "leases: out of space"
"""Servers that have no room renew leases, and take in no new keys: who had no lease by then can't get one."""

LOG: Final = "log"
"""What troubles of the log befall that are no single server's, and a word in the reason of who can't reach it."""


# --- members --------------------------------------------------------------------------------------------


def members(history: History, judged: Judged) -> list[Violation]:
    """At the end, every node and gateway that runs takes part by the log, and holds the lease that says so; and none
    whose process has ended does.

    That is asked of those who had the time that the settling of a run is given.
    """
    settle = history.settle
    if settle is None:
        return []
    log = final_log(history)
    leased = _leased(history.leases)
    found = []
    for process in history.processes:
        settled = history.ended_s - max(process.began_s, settle.began_s) >= settle.bound_s
        outside = bool(settle.core) and process.name not in settle.core
        if process.role not in (NODE, GATEWAY) or not process.alive or not settled or outside:
            continue
        judged["members that run"] += 1
        wrong = _not_taking_part(log, process, leased)
        if wrong:
            message = f"{process.name} (process {process.pid}) runs since {process.began_s:.3f} s, and {wrong}"
            found.append(Violation(MEMBERS, history.ended_s, message))
    return [*found, *_ended(history, log, settle, judged)]


def _ended(history: History, log: FinalLog, settle: Settle, judged: Judged) -> Iterator[Violation]:
    """Members that ended long ago, and take part by the log; not nodes with replicas: these are given up slowly."""
    holding = {replica.node for replica in log.state.replicas.values()}
    for process in history.processes:
        mine = log.member_of(process)
        if mine is None or process.ended_s is None or (process.role == NODE and mine.name in holding):
            continue
        if history.ended_s - max(process.ended_s, settle.began_s) < settle.bound_s:
            continue
        judged["members that ended"] += 1
        known = (log.state.nodes if process.role == NODE else log.state.gateways).get(mine.name)
        if known is not None and known.pid == process.pid and known.status in _TAKES_PART:
            message = f"{process.name} (process {process.pid}) ended at {process.ended_s:.3f} s, and is {known.status}"
            yield Violation(MEMBERS, history.ended_s, f"{message} in the log")


_TAKES_PART: Final = (MemberStatus.ALIVE, MemberStatus.STOPPING)


def _not_taking_part(log: FinalLog, process: Process, leased: set[str]) -> str:
    mine = log.member_of(process)
    if mine is None:
        return "has not joined"
    known = (log.state.nodes if process.role == NODE else log.state.gateways).get(mine.name)
    if known is None or known.incarnation != mine.incarnation:
        return "the log has another incarnation of it"
    if known.status is not MemberStatus.ALIVE:
        return f"is {known.status} in the log"
    return "" if _key_of(process.role, mine) in leased else "holds no lease"


def _key_of(role: str, member: Member) -> str:
    return f"{role}s/{member.name}/{member.incarnation}"


_KEY: Final = re.compile(r"(?<!ended/)(?<!cut-off/)(nodes|gateways)/[^/]+/[^/]+$")


def _local(key: str) -> str:
    """A member's lease key without what stands before all keys of the cluster; empty for any other key."""
    match = _KEY.search(key)
    return match[0] if match else ""


def _leased(events: list[LeaseEvent]) -> set[str]:
    """The keys that stand on leases at the end."""
    standing: dict[str, int] = {}
    for event in events:
        if event.kind in ("created", "put"):
            standing[_local(event.key)] = event.lease
        elif event.kind == "deleted":
            standing.pop(_local(event.key), None)
        elif event.kind in ("expired", "revoked"):
            standing = {key: lease for key, lease in standing.items() if lease != event.lease}
    return set(standing)


# --- leases ---------------------------------------------------------------------------------------------


def leases(history: History, judged: Judged) -> list[Violation]:
    """No lease of a member ends, and no member is given up for its lease, unless something befell it.

    A lease server that stood still or ended as the only one explains that leases end, but not that a member is given
    up once it is back: everybody gets the time to come back first. Nor does the only log server explain that a node
    gives itself up: nobody reaches the log then.
    """
    log = final_log(history)
    return [*_ended_leases(history, log, judged), *_given_up(history, log, judged)]


def _processes(history: History, log: FinalLog) -> dict[str, Process]:
    """Members' processes by their lease keys."""
    found = {}
    for process in history.processes:
        mine = log.member_of(process)
        if mine is not None and process.role in (NODE, GATEWAY):
            found[_key_of(process.role, mine)] = process
    return found


def _well(
    history: History,
    process: Process,
    at_s: float,
    planes: tuple[str, ...] = (LEASE_SERVERS,),
    *,
    standstills_explain: bool = True,
) -> bool:
    """Whether it has run for a while, and no fault of it or of these servers explains what happens to its lease."""
    if process.began_s > at_s - CALM_S or (process.ended_s is not None and process.ended_s <= at_s):
        return False
    servers = {one.host for one in history.processes if one.role == SERVER and one.host.startswith(planes)}
    others = {"network", *servers, *([LOG] if LOG_SERVERS in planes else [])}
    for fault in history.faults:
        over_s = float("inf") if fault.until_s is None else fault.until_s + CALM_S
        if not fault.from_s <= at_s <= over_s or not befalls(fault, process.name, process.host, *others):
            continue
        if not fault.struck or (fault.kind not in KEEP_FROM_RENEWING and not fault.kind.startswith(LOG)):
            continue
        plane = STANDSTILLS.get(fault.kind)
        if standstills_explain or plane is None or sum(server.startswith(plane) for server in servers) > 1:
            return False
    return True


def ended_leases(history: History, log: FinalLog) -> Iterator[tuple[LeaseEvent, Process]]:
    """Leases of members that ran out, and whose they were."""
    processes = _processes(history, log)
    holders: dict[int, Process] = {}
    for event in history.leases:
        if event.kind in ("created", "put") and (holder := processes.get(_local(event.key))) is not None:
            holders[event.lease] = holder
        elif event.kind == "expired" and event.lease in holders:
            yield event, holders[event.lease]


def _ended_leases(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    for event, process in ended_leases(history, log):
        judged["leases that ended"] += 1
        if _well(history, process, event.at_s):
            message = f"the lease of {process.name} (process {process.pid}) ended, and nothing had befallen it"
            yield Violation(LEASES, event.at_s, message)


def _given_up(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    processes = _processes(history, log)
    for place, record in log.effective():
        payload = record.event.payload
        if isinstance(payload, ev.NodeLost):
            key = f"nodes/{payload.node}/{payload.node_incarnation}"
        elif isinstance(payload, ev.GatewayLost):
            key = f"gateways/{payload.gateway}/{payload.gateway_incarnation}"
        else:
            continue
        process, at_s = processes.get(key), log.times[place]
        planes = (LEASE_SERVERS, LOG_SERVERS) if LOG in payload.reason.split() else (LEASE_SERVERS,)
        if process is None or _got_no_lease(history, key, at_s):
            continue
        judged["members given up"] += 1
        if _well(history, process, at_s, planes, standstills_explain=False):
            message = f"{process.name} is given up because {payload.reason}, and nothing had befallen it"
            yield Violation(LEASES, at_s, f"sequence {record.sequence}: {message}")


def _got_no_lease(history: History, key: str, at_s: float) -> bool:
    """Whether the member could not have its key by then, since the servers ran out of space when it had none."""
    full = [fault for fault in history.faults if fault.kind == FULL and fault.struck and fault.from_s <= at_s]
    lately = [fault for fault in full if fault.until_s is None or at_s <= fault.until_s + CALM_S]
    return any(key not in _leased([one for one in history.leases if one.at_s < fault.from_s]) for fault in lately)
