"""What befalls wall clocks and engines."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.simulations.cluster.engines import BreakableEngine
from holdfast.simulations.cluster.replicas import RunningReplica
from holdfast.simulations.faults.injection import NOTHING, Broken, Injector, Kind, pick
from holdfast.simulations.plan import Fault

SKEW_S = 40.0

XID_GPU_GONE = 79


def _skew(injector: Injector, fault: Fault) -> Broken:
    """A host's wall clock is wrong from now on, and jumps back when that is mended."""
    name = pick([member.host for member in injector.cluster.members], fault)
    if name is None:
        return NOTHING
    host, skew_s = injector.cluster.world.host(name), SKEW_S * (2 * fault.amount - 1)
    host.skew_s += skew_s

    def mend() -> None:
        host.skew_s -= skew_s

    return Broken(name, mend, f"{skew_s:+.1f} s")


def _jump(injector: Injector, fault: Fault) -> Broken:
    """A host's wall clock is set right, or wrong: it jumps and stays so."""
    name = pick([member.host for member in injector.cluster.members], fault)
    if name is None:
        return NOTHING
    injector.cluster.world.host(name).skew_s = SKEW_S * (2 * fault.amount - 1)
    return Broken(name, None, f"to {SKEW_S * (2 * fault.amount - 1):+.1f} s")


# --- engines --------------------------------------------------------------------------------------------


def _loaded(
    injector: Injector, fault: Fault, befallen: Callable[[BreakableEngine], object] = lambda _engine: False
) -> tuple[RunningReplica, BreakableEngine] | None:
    """One that has its engine, unless this fault has befallen that already: its first end would be that of both."""
    loaded = [(replica, engine) for replica in injector.replicas() if (engine := replica.engine) is not None]
    return pick([one for one in loaded if not befallen(one[1])], fault)


def _hang(injector: Injector, fault: Fault) -> Broken:
    found = _loaded(injector, fault, lambda engine: engine.hangs)
    if found is None:
        return NOTHING
    replica, engine = found
    engine.hang()
    return Broken(replica.name, lambda: replica.process.call(engine.resume))


def _out_of_memory(injector: Injector, fault: Fault) -> Broken:
    found = _loaded(injector, fault, lambda engine: engine.out_of_memory)
    if found is None:
        return NOTHING
    replica, engine = found
    engine.out_of_memory = True
    return Broken(replica.name, struck=lambda: engine.ran_out)


def _slow_engine(injector: Injector, fault: Fault) -> Broken:
    found = _loaded(injector, fault, lambda engine: engine.slow_s)
    if found is None:
        return NOTHING
    replica, engine = found
    engine.slow_s = 0.05 * 20**fault.amount

    def mend() -> None:
        engine.slow_s = 0.0

    return Broken(replica.name, mend, f"{engine.slow_s:.2f} s more for each step")


def _cut_answer(injector: Injector, fault: Fault) -> Broken:
    found = _loaded(injector, fault, lambda engine: engine.cuts_answers)
    if found is None:
        return NOTHING
    replica, engine = found
    engine.cuts_answers = True
    return Broken(replica.name, struck=lambda: engine.cut)


def _lose_stream(injector: Injector, fault: Fault) -> Broken:
    engines = [(replica, engine) for replica in injector.replicas() if (engine := replica.engine) and engine.begun]
    found = pick(engines, fault)
    if found is None:
        return NOTHING
    replica, engine = found
    engine.lose_stream(fault.amount)
    return Broken(replica.name)


def _sicken(injector: Injector, fault: Fault) -> Broken:
    """Its own health check raises from now on, though it makes tokens."""
    found = _loaded(injector, fault, lambda engine: engine.sick)
    if found is None:
        return NOTHING
    replica, engine = found
    engine.sick = True
    return Broken(replica.name, lambda: setattr(engine, "sick", False))


def _make_barren(injector: Injector, fault: Fault) -> Broken:
    """It steps, and nothing comes of it."""
    found = _loaded(injector, fault, lambda engine: engine.barren)
    if found is None:
        return NOTHING
    replica, engine = found
    engine.barren = True
    return Broken(replica.name, lambda: setattr(engine, "barren", False))


def _fail_device(injector: Injector, fault: Fault) -> Broken:
    """The driver reports that a GPU is gone."""
    found = _loaded(injector, fault)
    if found is None:
        return NOTHING
    replica, engine = found
    replica.process.call(engine.device_events.inject, XID_GPU_GONE)
    return Broken(replica.name)


MACHINE_KINDS = {
    "clock skew": Kind(_skew, 1.0, (1.0, 20.0)),
    "clock jump": Kind(_jump, 1.0),
    "engine hangs": Kind(_hang, 1.5, (0.5, 15.0)),
    "engine out of memory": Kind(_out_of_memory, 1.0),
    "slow engine": Kind(_slow_engine, 1.0, (1.0, 10.0)),
    "wrong-length answer": Kind(_cut_answer, 1.0),
    "engine loses stream": Kind(_lose_stream, 1.0),
    "barren engine": Kind(_make_barren, 0.7, (0.5, 15.0)),
    "device error": Kind(_fail_device, 0.7),
    "failing health check": Kind(_sicken, 0.7, (0.5, 15.0)),
}
