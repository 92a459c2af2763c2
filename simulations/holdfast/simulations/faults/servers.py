"""What befalls the log's and the leases' servers, as their adapters see it.

Servers crash, freeze and lose power as other processes do; what only they do wrong is in `nats.faults` and
`etcd.faults`, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.simulations.etcd import faults as etcd_faults
from holdfast.simulations.faults.injection import NOTHING, Broken, Injector, Kind, over, pick
from holdfast.simulations.nats import faults as jetstream_faults
from holdfast.simulations.plan import Fault

LOG = "log"
LEASES = "leases"
"""The two kinds of servers."""

PART_MIN = 0.1
"""At least this part of requests is struck where a fault strikes some."""

LATE_MAX_S = 6.0
"""What is late is so by up to so much, in seconds."""


def _hosts(injector: Injector, what: str) -> list[str]:
    servers = injector.cluster.servers
    return servers.log_hosts if what == LOG else servers.lease_hosts


def _crash(what: str) -> Callable[[Injector, Fault], Broken]:
    def inject(injector: Injector, fault: Fault) -> Broken:
        servers = injector.cluster.servers
        host = pick(_hosts(injector, what), fault)
        if host is None or not servers.processes[host].alive:
            return NOTHING
        injector.cluster.killed(servers.processes[host], fault.kind)
        return Broken(host, lambda: servers.start_one(host))

    return inject


def _freeze(what: str) -> Callable[[Injector, Fault], Broken]:
    def inject(injector: Injector, fault: Fault) -> Broken:
        host = pick(_hosts(injector, what), fault)
        process = injector.cluster.servers.processes[host] if host is not None else None
        if process is None or not process.alive or process.frozen:
            return NOTHING
        injector.cluster.froze(process)
        return Broken(process.name, lambda: injector.cluster.thawed(process))

    return inject


ALL_PART = 0.3
"""How often all servers of a kind lose their power at once."""


def _lose_power(what: str) -> Callable[[Injector, Fault], Broken]:
    def inject(injector: Injector, fault: Fault) -> Broken:
        cluster, hosts = injector.cluster, _hosts(injector, what)
        if fault.amount > ALL_PART:
            hosts = [hosts[int(fault.pick * len(hosts))]]
        hosts = [host for host in hosts if cluster.world.host(host).up]
        if not any(cluster.servers.processes[host].alive for host in hosts):
            return NOTHING
        for host in hosts:
            cluster.power_off(host, fault.kind)

        def mend() -> None:
            for host in hosts:
                cluster.world.power_on(host)
                cluster.servers.start_one(host)

        return Broken(",".join(hosts), mend)

    return inject


# --- the log --------------------------------------------------------------------------------------------


def _trouble(kind: str, max_s: float = 0.0) -> Callable[[Injector, Fault], Broken]:
    """A window in which something goes wrong with a part of all requests."""

    def inject(injector: Injector, fault: Fault) -> Broken:
        jetstream = injector.cluster.servers.jetstream
        part = PART_MIN + (1 - PART_MIN) * fault.amount
        over_s = injector.cluster.plan.scenario.healed_s
        window = jetstream.trouble(
            kind, fault.lasts_s, injector.rng(fault), part=part, max_s=max_s * fault.pick, over_s=over_s
        )
        return Broken("log", over, f"{part:.0%}", lambda: window.struck)

    return inject


STALE_MAX_S = 2.0
"""A leader that was just elected answers as of before for up to so long, in seconds: less than reads may take."""


def _read_stale(injector: Injector, fault: Fault) -> Broken:
    """The leader steps down, and those that are elected from then on answer reads with what they had before."""
    jetstream, rng = injector.cluster.servers.jetstream, injector.rng(fault)
    if not jetstream.change_leader(rng):
        return NOTHING
    over_s = injector.cluster.plan.scenario.healed_s
    window = jetstream.trouble(jetstream_faults.STALE_READ, fault.lasts_s, rng, max_s=STALE_MAX_S, over_s=over_s)
    return Broken("log", over, "the leader steps down", lambda: window.struck)


def _consumers(do: Callable[[Injector, Fault], int]) -> Callable[[Injector, Fault], Broken]:
    """Something befalls consumers, at once."""

    def inject(injector: Injector, fault: Fault) -> Broken:
        struck = do(injector, fault)
        return Broken("log", None, f"{struck} readers") if struck else NOTHING

    return inject


def _end_pulls(injector: Injector, fault: Fault) -> int:
    return injector.cluster.servers.jetstream.end_pulls(injector.rng(fault), PART_MIN + fault.amount)


def _delete_consumers(injector: Injector, fault: Fault) -> int:
    return injector.cluster.servers.jetstream.delete_consumers(injector.rng(fault), PART_MIN + fault.amount)


def _stall_consumers(injector: Injector, fault: Fault) -> int:
    return injector.cluster.servers.jetstream.stall_consumers(
        fault.lasts_s, injector.rng(fault), PART_MIN + fault.amount
    )


def _skip_deliveries(injector: Injector, fault: Fault) -> int:
    return injector.cluster.servers.jetstream.skip_deliveries(
        injector.rng(fault), 1 + int(3 * fault.pick), PART_MIN + fault.amount
    )


def _disconnect(injector: Injector, fault: Fault) -> Broken:
    servers = injector.cluster.servers
    index = int(fault.pick * len(servers.log_hosts))
    clients = servers.jetstream.disconnect_clients(index)
    return Broken(servers.log_hosts[index], None, f"{clients} clients") if clients else NOTHING


def _change_leader(injector: Injector, fault: Fault) -> Broken:
    changed = injector.cluster.servers.jetstream.change_leader(injector.rng(fault))
    return Broken("log") if changed else NOTHING


LOG_KINDS = {
    "log server crash": Kind(_crash(LOG), 1.5, (0.1, 6.0)),
    "log server freeze": Kind(_freeze(LOG), 1.5, (0.2, 12.0)),
    "log server power failure": Kind(_lose_power(LOG), 1.0, (0.5, 8.0)),
    "log: acks lost": Kind(_trouble(jetstream_faults.ACK_LOST), 1.5, (1.0, 8.0)),
    "log: appends late": Kind(_trouble(jetstream_faults.LATE, LATE_MAX_S), 1.5, (1.0, 8.0)),
    "log: appends twice": Kind(_trouble(jetstream_faults.TWICE, LATE_MAX_S), 1.0, (1.0, 8.0)),
    "log: appends refused": Kind(_trouble(jetstream_faults.REFUSED), 1.0, (1.0, 8.0)),
    "log: appends refused, yet landed": Kind(_trouble(jetstream_faults.REFUSED_YET_LANDS), 1.0, (1.0, 8.0)),
    "log: full": Kind(_trouble(jetstream_faults.FULL), 0.5, (0.5, 4.0)),
    "log: slow disk": Kind(_trouble(jetstream_faults.SLOW_DISK, 2.0), 1.0, (1.0, 8.0)),
    "log: slow delivery": Kind(_trouble(jetstream_faults.SLOW_DELIVERY, LATE_MAX_S), 1.0, (0.5, 8.0)),
    "log: API mute": Kind(_trouble(jetstream_faults.MUTE_API), 0.5, (0.5, 6.0)),
    "log: no responders": Kind(_trouble(jetstream_faults.NO_RESPONDERS), 0.5, (0.5, 6.0)),
    "log: stale reads": Kind(_read_stale, 0.5, (4.0, 15.0), several=LOG),
    "log: pulls end": Kind(_consumers(_end_pulls), 1.0),
    "log: readers deleted": Kind(_consumers(_delete_consumers), 1.0),
    "log: slow readers stall": Kind(_consumers(_stall_consumers), 1.0, (0.5, 8.0)),
    "log: gaps": Kind(_consumers(_skip_deliveries), 1.0),
    "log: clients thrown out": Kind(_disconnect, 1.0),
    "log: leader change": Kind(_change_leader, 1.5, several=LOG),
}


# --- the leases -----------------------------------------------------------------------------------------


def _etcd(kind: str) -> Callable[[Injector, Fault], Broken]:
    def inject(injector: Injector, fault: Fault) -> Broken:
        hit = injector.cluster.servers.etcd_faults.begin(kind, injector.rng(fault), fault.lasts_s)
        if hit is None:
            return NOTHING
        return Broken(hit.name, over if hit.lasts_s else None, struck=hit.struck, lasts_s=hit.lasts_s)

    return inject


LEASE_KINDS = {
    "lease server crash": Kind(_crash(LEASES), 1.5, (0.1, 6.0)),
    "lease server freeze": Kind(_freeze(LEASES), 1.5, (0.2, 12.0)),
    "lease server power failure": Kind(_lose_power(LEASES), 1.0, (0.5, 8.0)),
    "leases: answers lost": Kind(_etcd(etcd_faults.ANSWERS_LOST), 1.0, (0.5, 8.0)),
    "leases: requests dropped": Kind(_etcd(etcd_faults.REQUESTS_DROPPED), 0.5, (0.5, 8.0)),
    "leases: requests twice": Kind(_etcd(etcd_faults.REQUESTS_REPEATED), 1.0, (0.5, 8.0)),
    "leases: timeouts": Kind(_etcd(etcd_faults.REQUESTS_TIMED_OUT), 0.5, (0.5, 8.0)),
    "leases: watches cut": Kind(_etcd(etcd_faults.WATCHES_CUT), 1.0),
    "leases: compacted": Kind(_etcd(etcd_faults.COMPACTED), 0.5),
    "leases: compacted ahead of watches": Kind(_etcd(etcd_faults.COMPACTED_AHEAD), 1.0, (0.5, 4.0)),
    "leases: expiry late": Kind(_etcd(etcd_faults.EXPIRY_LATE), 0.7, (2.0, 10.0)),
    "leases: expiry early": Kind(_etcd(etcd_faults.EXPIRY_EARLY), 1.0, (3.0, 8.0), several=LEASES),
    "leases: leader change": Kind(_etcd(etcd_faults.LEADER_CHANGED), 1.5, several=LEASES),
    "leases: member cut off (stale reads)": Kind(_etcd(etcd_faults.CUT_OFF), 1.0, (1.0, 12.0), several=LEASES),
    "leases: slow disk": Kind(_etcd(etcd_faults.DISK_SLOW), 1.0, (0.5, 8.0)),
    "leases: out of space": Kind(_etcd(etcd_faults.SPACE_OUT), 0.5, (0.5, 6.0)),
}
