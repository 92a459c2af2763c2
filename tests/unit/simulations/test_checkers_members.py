"""Members: who runs takes part and holds a lease; leases end, and members are given up, only for a reason."""

from __future__ import annotations

import pytest

from holdfast.core import events as ev
from holdfast.simulations.records import SERVER, Settle
from tests.unit.simulations.recorded import Run, broken, only, well

LEASE = 103
"""The lease of well()'s gateway."""


def given_up(run: Run, at_s: float = 20.0) -> None:
    """The gateway is given up for its lease, and is back at once."""
    run.at_s = at_s
    run.decide(ev.GatewayLost("gateway-1", "i1", "its lease expired"))
    run.fact(ev.GatewayJoined("gateway-1", "host", 103, "http://gateway-1", "0"), "gateway.gateway-1")


# --- members --------------------------------------------------------------------------------------------


def test_a_member_that_the_log_holds_for_gone_while_it_runs_is_found() -> None:
    run = well()
    run.history.fault(19.0, "freeze", "gateway-1", until_s=20.0)
    run.at_s = 20.0
    run.decide(ev.GatewayLost("gateway-1", "i1", "its lease expired"))
    assert "gateway-1 (process 103) runs since 1.000 s, and is LOST in the log" in only(broken(run), "members")


def test_a_member_that_never_joined_is_found_once_it_had_the_time() -> None:
    run = well()
    run.history.process_began(24.0, "node-3", "node", "host-node-3", 104)
    assert "node-3 (process 104) runs since 24.000 s, and has not joined" in only(broken(run), "members")
    run.history.ended_s = 28.0
    assert broken(run) == []


@pytest.mark.parametrize("kind", ["deleted", "expired", "revoked"])
def test_a_member_without_a_lease_is_found(kind: str) -> None:
    run = well()
    run.history.fault(19.0, "freeze", "gateway-1", until_s=20.0)
    run.history.lease_event(20.0, kind, LEASE, "/holdfast/c/gateways/gateway-1/i1" if kind == "deleted" else "")
    assert "gateway-1 (process 103) runs since 1.000 s, and holds no lease" in only(broken(run), "members")
    run.leased("gateways/gateway-1/i1", 900)
    assert broken(run) == []


def test_a_note_that_a_member_ended_is_no_lease() -> None:
    run = well()
    run.history.fault(19.0, "freeze", "gateway-1", until_s=20.0)
    run.history.lease_event(20.0, "expired", LEASE)
    run.leased("ended/gateways/gateway-1/i1", 900)
    run.leased("cut-off/gateways/gateway-1/i1", 901)
    assert "holds no lease" in only(broken(run), "members")


def test_of_a_healthy_core_only_the_core_must_take_part() -> None:
    run = well()
    run.history.process_began(14.0, "node-3", "node", "host-node-3", 104)
    assert broken(run)
    run.history.settle = Settle(10.0, 5.0, ("node-1", "node-2", "gateway-1"))
    assert broken(run) == []


def test_a_member_that_ended_long_ago_and_takes_part_by_the_log_is_found() -> None:
    run = well()
    run.at_s = 5.0
    run.gateway("gateway-2", 105)
    run.processes["gateway-2"].ended(8.0, -9, "a fault")
    assert only(broken(run), "members") == "gateway-2 (process 105) ended at 8.000 s, and is ALIVE in the log"
    run.history.ended_s = 14.0
    assert broken(run) == []
    run.history.ended_s = 30.0
    run.at_s = 20.0
    run.decide(ev.GatewayLost("gateway-2", "i1", "its process ended"))
    assert broken(run) == []


# --- leases ---------------------------------------------------------------------------------------------


def test_a_lease_that_ends_without_a_reason_is_found() -> None:
    run = well()
    run.history.lease_event(20.0, "expired", LEASE)
    run.leased("gateways/gateway-1/i1", 900)
    assert "the lease of gateway-1 (process 103) ended, and nothing had befallen it" in only(broken(run), "leases")


@pytest.mark.parametrize("target", ["gateway-1", "host-gateway-1>host-node-1", "network", "etcd1", "node-1,etcd1"])
def test_a_fault_that_befell_it_or_a_lease_server_is_a_reason(target: str) -> None:
    run = well()
    run.history.process_began(0.0, "etcd1", SERVER, "etcd1", 9)
    run.history.fault(15.0, "partition", target, until_s=18.0)
    run.history.lease_event(20.0, "expired", LEASE)
    run.leased("gateways/gateway-1/i1", 900)
    given_up(run)
    assert broken(run) == []


def test_a_fault_long_ago_or_elsewhere_is_none() -> None:
    run = well()
    run.history.fault(3.0, "freeze", "gateway-1", until_s=9.0)
    run.history.fault(15.0, "freeze", "node-2", until_s=18.0)
    run.history.lease_event(20.0, "expired", LEASE)
    run.leased("gateways/gateway-1/i1", 900)
    assert only(broken(run), "leases")


def test_a_member_that_is_given_up_without_a_reason_is_found() -> None:
    run = well()
    given_up(run)
    assert "gateway-1 is given up because its lease expired, and nothing had befallen" in only(broken(run), "leases")


@pytest.mark.parametrize(("servers", "found"), [(1, True), (3, False)])
def test_the_standstill_of_the_only_lease_server_is_no_reason_to_give_up_anybody(servers: int, found: bool) -> None:
    run = well()
    for number in range(servers):
        run.history.process_began(0.0, f"etcd{number + 1}", SERVER, f"etcd{number + 1}", 9 + number)
    run.history.fault(15.0, "lease server freeze", "etcd1", until_s=19.0)
    given_up(run)
    assert bool(broken(run)) is found


@pytest.mark.parametrize(
    ("kind", "target", "servers", "found"),
    [
        ("log server freeze", "nats1", 1, True),
        ("log server freeze", "nats1", 3, False),
        ("log: slow delivery", "log", 1, False),
        ("partition", "host-node-2>nats1", 1, False),
        ("partition", "host-node-1>etcd1", 1, True),
    ],
)
def test_a_node_that_gives_itself_up_for_the_log_needs_a_reason_why_others_reach_it(
    kind: str, target: str, servers: int, found: bool
) -> None:
    run = well()
    for number in range(servers):
        run.history.process_began(0.0, f"nats-{number + 1}", SERVER, f"nats{number + 1}", 9 + number)
    run.history.fault(15.0, kind, target, until_s=19.0)
    run.at_s = 20.0
    run.decide(ev.NodeLost("node-2", "i1", "it can't reach the log and gave up its lease"))
    told = [one for one in broken(run) if one.checker == "leases"]
    assert bool(told) is found


def test_a_nodes_trouble_with_the_log_is_no_reason_to_lose_its_lease() -> None:
    run = well()
    run.history.fault(15.0, "log: slow delivery", "log", until_s=19.0)
    given_up(run)
    assert only(broken(run), "leases")


@pytest.mark.parametrize(
    ("has_a_lease", "struck", "found"), [(True, True, True), (False, True, False), (False, False, True)]
)
def test_servers_without_room_are_a_reason_for_who_had_no_lease_by_then(
    has_a_lease: bool, struck: bool, found: bool
) -> None:
    run = well()
    if not has_a_lease:
        run.history.fault(3.0, "freeze", "gateway-1", until_s=4.0)
        run.history.lease_event(5.0, "expired", LEASE)
    run.history.fault(15.0, "leases: out of space", "etcd1,etcd2", until_s=20.0).struck = struck
    given_up(run)
    run.leased("gateways/gateway-1/i1", 900)
    assert [violation.checker for violation in broken(run)] == ["leases"] * found


def test_who_was_just_started_has_no_time_to_be_well() -> None:
    run = well()
    given_up(run, at_s=10.0)
    assert broken(run) == []


@pytest.mark.parametrize("kind", ["clock jump", "leases: watches cut", "leases: requests twice", "launch failure"])
def test_what_keeps_nobody_from_renewing_is_no_reason_to_lose_a_lease(kind: str) -> None:
    run = well()
    run.history.fault(15.0, kind, "host-node-2,etcd1", until_s=19.0)
    given_up(run)
    assert only(broken(run), "leases")


def test_a_fault_that_did_nothing_is_no_reason_either() -> None:
    run = well()
    run.history.fault(15.0, "leases: requests dropped", "etcd1", until_s=19.0).struck = False
    given_up(run)
    assert only(broken(run), "leases")
