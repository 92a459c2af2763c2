"""When faults end: at the time that the history tells, before all is healed, and each of several at its own time."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from holdfast.simulations.etcd import faults as etcd_faults
from holdfast.simulations.etcd import trouble as etcd_trouble
from holdfast.simulations.etcd.faults import EtcdFaults
from holdfast.simulations.etcd.member import Call
from holdfast.simulations.etcd.trouble import REPEATED_MAX_S, Trouble
from holdfast.simulations.nats import faults
from holdfast.simulations.nats.faults import Window
from holdfast.simulations.plan import SCENARIOS, Fault
from holdfast.simulations.records import Fault as Injected
from holdfast.simulations.simulation import draw_plan, run
from holdfast.simulations.world.process import SimProcess
from tests.unit.simulations.etcd_cases import Etcd
from tests.unit.simulations.etcd_cases import run as run_etcd
from tests.unit.simulations.jetstream_bed import Bed

CALM = SCENARIOS["calm"]


def injected(*drawn: tuple[float, str, float], until_s: float, heals: bool = True, **knobs: object) -> list[Injected]:
    """What became of faults of a calm cluster, of which each is a time, a kind, and how long it lasts."""
    plan = draw_plan(1, CALM if heals else msgspec.structs.replace(CALM, heals=False, nodes=5))
    several = tuple(Fault(number, at_s, kind, for_s, 0.5, 0.9) for number, (at_s, kind, for_s) in enumerate(drawn))
    settings = msgspec.structs.replace(plan.knobs, **knobs)
    plan = msgspec.structs.replace(plan, knobs=settings, faults=several, work=plan.work[:1], lasts_s=until_s)
    _result, history = run(plan)
    return history.faults


# --- until all is healed --------------------------------------------------------------------------------


def test_a_leader_freezes_only_where_it_thaws_in_time() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        await leases.grant(6)
        now_s, kind, rng = etcd.world.now_s, etcd_faults.EXPIRY_EARLY, random.Random("faults")
        leader = etcd.servers.group.leader()
        assert leader is not None
        assert EtcdFaults(etcd.servers, now_s + 6.4).begin(kind, rng, 3.0) is None
        assert not leader.process.frozen
        hit = EtcdFaults(etcd.servers, now_s + 6.6).begin(kind, rng, 3.0)
        assert hit is not None
        assert hit.lasts_s == 6.5
        await asyncio.sleep(6.4)
        assert leader.process.frozen
        await asyncio.sleep(0.2)
        assert not leader.process.frozen

    run_etcd(case, 3)


def test_the_history_says_when_the_leader_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    thawed_s: list[float] = []
    thaw = SimProcess.thaw

    def told(process: SimProcess) -> None:
        thawed_s.append(process.world.now_s)
        thaw(process)

    monkeypatch.setattr(SimProcess, "thaw", told)
    kind = "leases: expiry early"
    early, late = (20.0, kind, 3.0), (35.0, kind, 4.0)
    (fault,) = injected(early, late, until_s=45.0, lease_servers=3, lease_ttl_s=6.0)
    assert (fault.from_s, fault.until_s) == (20.0, 26.5)
    assert thawed_s == [26.5]


def test_a_slow_disk_has_written_everything_in_time() -> None:
    async def case(etcd: Etcd) -> None:
        over_s = etcd.world.now_s + 5.0
        for number in range(20):
            before = {name: disk.slow_s for name, disk in etcd.servers.group.disks.items()}
            hit = EtcdFaults(etcd.servers, over_s).begin(etcd_faults.DISK_SLOW, random.Random(number), 8.0)
            assert hit is not None
            slow_s = etcd.servers.group.disks[hit.name].slow_s - before[hit.name]
            assert hit.lasts_s + slow_s == pytest.approx(5.0)

    run_etcd(case, 3)


def test_no_request_comes_a_second_time_after_all_is_healed() -> None:
    for over_s, longest_s in ((11.0, 1.0), (20.0, REPEATED_MAX_S), (9.0, 0.0)):
        trouble, delays_s = Trouble(random.Random("1")), list[float]()
        trouble.begin(etcd_trouble.REPEATED, 1.0, over_s)
        for _ in range(200):
            assert trouble.lets_in(Call.__new__(Call), 10.0, delays_s.append)
        assert 0.9 * longest_s <= max(delays_s) <= longest_s


@pytest.mark.parametrize(("over_s", "longest_s"), [(11.0, 1.0), (20.0, 6.0), (9.0, 0.0)])
def test_nothing_is_held_up_until_after_all_is_healed(over_s: float, longest_s: float) -> None:
    window = Window(10.0, random.Random("1"), max_s=6.0, over_s=over_s)
    assert 0.9 * longest_s <= max(window.held_up_s(10.0) for _ in range(200)) <= longest_s


@pytest.mark.parametrize("kinds", [(faults.LATE,), (faults.TWICE,), (faults.LATE, faults.TWICE), (faults.SLOW_DISK,)])
def test_appends_land_before_all_is_healed(kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.simulations.nats.server import Server

    taken_s: list[float] = []
    append = Server.append

    def told(server: Server, *what: object) -> None:
        taken_s.append(server.now_s)
        append(server, *what)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr(Server, "append", told)
    bed = Bed(append_timeout_s=90.0, publish_timeout_s=60.0)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        began_s = process.world.now_s
        for kind in kinds:
            bed.servers.trouble(kind, 2.0, random.Random("5"), max_s=60.0, over_s=began_s + 3.0)
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(log.append(f"facts.{number}", b"", message_id=str(number), expected_last=0))
        await asyncio.sleep(60)
        assert len(taken_s) == (40 if faults.TWICE in kinds else 20)
        assert began_s + 2.0 < max(*taken_s, *(entry.at_s for entry in bed.servers.entries("test"))) < began_s + 3.01

    bed.run(body)


# --- who is there to be struck --------------------------------------------------------------------------


def test_a_server_that_is_dead_throws_nobody_out_and_has_no_power_to_lose() -> None:
    crash, thrown, power = "log server crash", "log: clients thrown out", "log server power failure"
    found = injected((10, crash, 5.0), (12, thrown, 0.0), (12.2, power, 3.0), until_s=22.0, log_servers=1)
    assert [(fault.kind, fault.target) for fault in found if fault.from_s < 15] == [(crash, "nats1")]
    later = {fault.kind: fault for fault in found if fault.from_s >= 15}
    assert set(later) == {thrown, power}
    assert later[power].until_s == pytest.approx(later[power].from_s + 3.0)
    assert later[thrown].details.endswith(" clients")


def test_a_server_that_stands_still_throws_nobody_out() -> None:
    freeze, thrown = "log server freeze", "log: clients thrown out"
    found = injected((10, freeze, 5.0), (12, thrown, 0.0), until_s=20.0, log_servers=1)
    assert [fault.kind for fault in found] == [freeze, thrown]
    assert found[1].from_s >= 15


# --- several at a time ----------------------------------------------------------------------------------

ON_ONE_TARGET = (
    *("slow process", "launch failure", "engine hangs", "slow engine", "failing health check", "barren engine"),
)


@pytest.mark.parametrize("heals", [True, False])
@pytest.mark.parametrize("kind", ON_ONE_TARGET)
def test_what_a_fault_has_befallen_the_same_befalls_no_second_time_until_it_is_over(kind: str, heals: bool) -> None:
    shape = {} if heals else {"slots": 2}  # with a replica on each node that is not of the core
    found = injected((10.0, kind, 1.5), (10.2, kind, 0.5), until_s=13.0, heals=heals, **shape)
    assert [fault.kind for fault in found] == [kind] * 2
    first, second = found
    if heals:
        assert first.until_s == 11.5
        assert second.target != first.target or second.from_s >= first.until_s
    else:
        assert first.until_s is second.until_s is None
        assert first.target != second.target


def test_readers_stall_until_the_last_stall_is_over() -> None:
    bed = Bed(follow_heartbeat_s=5.0)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        got: list[float] = []

        async def follow() -> None:
            async for _entry in log.follow(0):
                got.append(process.world.now_s)

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.5)
        began_s = process.world.now_s
        assert bed.servers.stall_consumers(2.0, random.Random("1")) == 1
        assert bed.servers.stall_consumers(0.2, random.Random("1")) == 1
        await log.append("facts.a", b"", message_id="a", expected_last=0)
        await asyncio.sleep(3.0)
        following.cancel()
        assert len(got) == 1
        assert got[0] >= began_s + 2.0

    bed.run(body)
