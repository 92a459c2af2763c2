"""What befalls the network: partitions in both ways and in one, delay, clogging, connections that are reset."""

from __future__ import annotations

from holdfast.simulations.faults.injection import NOTHING, Broken, Injector, Kind, Mend, over, pick
from holdfast.simulations.plan import Fault


def _two_hosts(injector: Injector, fault: Fault) -> tuple[str, list[str]]:
    """A host, and those that it is cut off from: one other, or all."""
    hosts = injector.hosts()
    one = hosts[int(fault.pick * len(hosts))]
    others = [name for name in injector.cluster.hosts if name != one]
    if fault.amount < 0.5:
        return one, [others[int(fault.amount * 2 * len(others))]]
    return one, others


def _block(injector: Injector, ways: list[tuple[str, str]]) -> Mend:
    network = injector.cluster.world.network
    for way in ways:
        network.block(*way)

    def mend() -> None:
        for way in ways:
            network.unblock(*way)

    return mend


def _partition(injector: Injector, fault: Fault) -> Broken:
    one, others = _two_hosts(injector, fault)
    mend = _block(injector, [way for other in others for way in ((one, other), (other, one))])
    return Broken(f"{one}>{','.join(others)}", mend, "both ways")


def _partition_one_way(injector: Injector, fault: Fault) -> Broken:
    one, others = _two_hosts(injector, fault)
    outwards = fault.pick * 1000 % 1 < 0.5
    mend = _block(injector, [(one, other) if outwards else (other, one) for other in others])
    return Broken(f"{one}>{','.join(others)}", mend, "what it sends" if outwards else "what is sent to it")


DELAY_S = (0.01, 1.0)
"""Packets are late by up to so much, in seconds."""


def _delay(injector: Injector, fault: Fault) -> Broken:
    one, others = _two_hosts(injector, fault)
    low_s, high_s = DELAY_S
    delay_s = low_s * (high_s / low_s) ** (fault.pick * 1000 % 1)
    network = injector.cluster.world.network
    ways = [way for other in others for way in ((one, other), (other, one))]
    for way in ways:
        network.delay(*way, delay_s)

    def mend() -> None:
        for way in ways:
            network.undelay(*way, delay_s)

    return Broken(
        f"{one}>{','.join(others)}",
        mend,
        f"each packet up to {delay_s:.2f} s late: connections overtake each other",
    )


CLOG_PART = 0.4


def _clog(injector: Injector, fault: Fault) -> Broken:
    """Connections are clogged one after the other, and go on in another order (swizzled clogging)."""
    network, scheduler, rng = injector.cluster.world.network, injector.cluster.world.scheduler, injector.rng(fault)
    ends = [end for end in network.ends() if rng.random() < CLOG_PART]
    if not ends:
        return NOTHING
    for end in ends:
        scheduler.call_later(fault.lasts_s * 0.3 * rng.random(), network.clog, end)
    for end in ends:
        scheduler.call_later(fault.lasts_s * (0.4 + 0.6 * rng.random()), network.unclog, end)
    return Broken("network", over, f"{len(ends)} ends of connections")


def _cut(injector: Injector, fault: Fault) -> Broken:
    """Some middlebox resets a connection."""
    end = pick(injector.cluster.world.network.ends(), fault)
    if end is None:
        return NOTHING
    for one in (end, end.other):
        one.lose(ConnectionResetError("reset by a middlebox"))
    return Broken(f"{end.process.name}>{end.other.process.name}")


FLAP_S = (0.1, 1.0)
"""A link that flaps is reset every so often, in seconds."""


def _flap(injector: Injector, fault: Fault) -> Broken:
    """Gateways' connections to one replica are reset again and again: it fails what is asked of it, and lives on."""
    replica = pick([replica for replica in injector.replicas() if not replica.flaps], fault)
    if replica is None:
        return NOTHING
    network, scheduler = injector.cluster.world.network, injector.cluster.world.scheduler
    low_s, high_s = FLAP_S
    every_s = low_s * (high_s / low_s) ** fault.amount
    gateways = {member.name for member in injector.cluster.gateways}
    resets: list[int] = []
    mended = False
    replica.flaps = True

    def reset() -> None:
        if mended:
            return
        ends = [end for end in network.ends_of(replica.process) if end.other.process.name in gateways]
        for end in ends:
            for one in (end, end.other):
                one.lose(ConnectionResetError("the link is down"))
        resets.append(len(ends))
        scheduler.call_later(every_s, reset)

    def mend() -> None:
        nonlocal mended
        mended, replica.flaps = True, False

    reset()
    return Broken(replica.name, mend, f"every {every_s:.2f} s", struck=lambda: sum(resets))


NETWORK_KINDS = {
    "partition": Kind(_partition, 2.0, (0.2, 15.0)),
    "one-way partition": Kind(_partition_one_way, 2.0, (0.2, 15.0)),
    "delay": Kind(_delay, 1.5, (0.5, 10.0)),
    "clogging": Kind(_clog, 1.5, (0.5, 8.0)),
    "reset connection": Kind(_cut, 2.0),
    "flapping link": Kind(_flap, 0.0, (1.0, 10.0)),
}
