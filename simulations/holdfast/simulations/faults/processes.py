"""What befalls the processes of nodes, gateways and replicas, and the machines that they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast.simulations.faults.injection import NOTHING, Broken, Injector, Kind, pick
from holdfast.simulations.plan import Fault
from holdfast.simulations.world.process import SimProcess


def _crash(role: str) -> Callable[[Injector, Fault], Broken]:
    def inject(injector: Injector, fault: Fault) -> Broken:
        member = pick(injector.members(role), fault)
        if member is None or member.process is None:
            return NOTHING
        injector.cluster.killed(member.process, fault.kind)
        if injector.cluster.plan.scenario.heals:
            return Broken(member.name)
        member.stays_down = True
        return Broken(member.name, lambda: None)

    return inject


def _crash_replica(injector: Injector, fault: Fault) -> Broken:
    replica = pick(injector.replicas(), fault)
    if replica is None:
        return NOTHING
    injector.cluster.killed(replica.process, fault.kind)
    return Broken(replica.name)


SECOND_SIGNAL: Final = 0.7
"""A replica that is told to stop gets a second signal where the fault's amount is above this."""


def _tell_replica(injector: Injector, fault: Fault) -> Broken:
    """SIGTERM to a replica by somebody else than its node, and in some cases another one soon after."""
    replica = pick(injector.replicas(), fault)
    if replica is None:
        return NOTHING
    replica.terminate()
    twice = fault.amount > SECOND_SIGNAL
    if twice:
        injector.cluster.world.scheduler.call_later(fault.amount - SECOND_SIGNAL, replica.process.terminate)
    return Broken(replica.name, details="twice" if twice else "")


def _processes(injector: Injector) -> list[SimProcess]:
    """The processes of nodes, gateways and replicas."""
    members = [member.process for member in injector.members() if member.process is not None]
    return [*members, *(replica.process for replica in injector.replicas())]


def _freeze(injector: Injector, fault: Fault) -> Broken:
    # Among all of them: where nothing heals, everybody beside the core would stand still in the end.
    process = pick(_processes(injector), fault)
    if process is None or process.frozen:
        return NOTHING
    injector.cluster.froze(process)
    return Broken(process.name, lambda: injector.cluster.thawed(process))


SLOW_S = (0.0002, 0.01)
"""A slow process takes between so long and so long for each callback, in seconds."""


def _slow(injector: Injector, fault: Fault) -> Broken:
    process = pick([process for process in _processes(injector) if not process.slowed], fault)
    if process is None:
        return NOTHING
    low_s, high_s = SLOW_S
    cost_s = low_s * (high_s / low_s) ** fault.amount
    process.slow(cost_s)
    return Broken(process.name, lambda: process.slow(0.0), f"{cost_s * 1000:.1f} ms a callback")


def _lose_power(injector: Injector, fault: Fault) -> Broken:
    """A node's or gateway's host loses power; its processes are started again once it is back."""
    member = pick(injector.members(), fault)
    if member is None:
        return NOTHING
    injector.cluster.power_off(member.host, fault.kind)

    def mend() -> None:
        injector.cluster.world.power_on(member.host)
        member.start()

    return Broken(member.host, mend)


def _launches_fail(injector: Injector, fault: Fault) -> Broken:
    failing = injector.cluster.launch_failures if fault.amount < 0.5 else injector.cluster.load_failures
    member = pick([node for node in injector.members("node") if node.host not in failing], fault)
    if member is None:
        return NOTHING
    failing.add(member.host)
    starts = injector.cluster.failed_starts
    before = starts[member.host]
    return Broken(member.name, lambda: failing.discard(member.host), struck=lambda: starts[member.host] > before)


PROCESS_KINDS = {
    "node crash": Kind(_crash("node"), 3.0),
    "gateway crash": Kind(_crash("gateway"), 2.0),
    "replica crash": Kind(_crash_replica, 4.0),
    "replica told to stop": Kind(_tell_replica, 2.0),
    "freeze": Kind(_freeze, 3.0, (0.2, 15.0)),
    "slow process": Kind(_slow, 1.5, (0.5, 8.0)),
    "power failure": Kind(_lose_power, 1.5, (0.5, 15.0)),
    "launch failure": Kind(_launches_fail, 0.7, (2.0, 12.0)),
}
