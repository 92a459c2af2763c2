"""Where a replica goes, which replica a stream goes to, and who is held for gone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import events as ev
from holdfast.core.detector import LeaseEvidence
from holdfast.core.placement import choose_node
from holdfast.core.routing import choose
from tests.unit.support.history import History
from tests.unit.support.strategies import MANY, SOME

TTL_S = 5.0
A, B = ("a", "1"), ("b", "1")


# --- placement ------------------------------------------------------------------------------------------


def with_nodes(**slots: int) -> History:
    history = History()
    for node, count in slots.items():
        history.fact(ev.NodeJoined(node, "host", 1, "0", count), by=f"node.{node}")
    return history


def chosen(history: History, avoid: str | None = None, **used: int) -> str | None:
    node = choose_node(history.state, Counter(used), avoid)
    return node.id if node else None


def test_the_node_with_the_fewest_replicas_is_chosen_and_names_break_ties() -> None:
    nodes = with_nodes(b=4, a=4, c=4)
    assert chosen(nodes) == "a"
    assert chosen(nodes, a=1, b=1) == "c"


def test_a_full_node_is_never_chosen() -> None:
    assert chosen(with_nodes(a=1, b=2), a=1, b=1) == "b"
    assert chosen(with_nodes(a=1, b=0), a=1) is None
    assert chosen(with_nodes()) is None


def test_only_a_node_that_takes_part_is_chosen() -> None:
    nodes = with_nodes(a=4, b=4, c=4)
    nodes.fact(ev.NodeStopping("a"), by="node.a")
    nodes.fact(ev.NodeLeft("b"), by="node.b")
    assert chosen(nodes) == "c"


@pytest.mark.parametrize("avoid", ["a", "b"])
def test_the_node_to_avoid_is_chosen_only_if_it_is_less_used_by_more_than_one(avoid: str) -> None:
    nodes = with_nodes(a=9, b=9)
    other = "b" if avoid == "a" else "a"
    assert chosen(nodes, avoid, **{avoid: 1, other: 1}) == other
    assert chosen(nodes, avoid, **{avoid: 1, other: 2}) == other
    assert chosen(nodes, avoid, **{avoid: 1, other: 3}) == avoid


def test_the_only_node_is_chosen_even_if_it_is_to_be_avoided() -> None:
    assert chosen(with_nodes(a=4), "a") == "a"


# --- routing --------------------------------------------------------------------------------------------


@dataclass
class Target:
    room: bool = True
    load: int = 0


TARGETS = st.lists(st.builds(Target, st.booleans(), st.integers(0, 5)), max_size=6)


@MANY
@given(TARGETS, st.randoms(use_true_random=False))
def test_a_replica_without_room_is_never_chosen_and_one_with_room_is_always_found(
    targets: list[Target], rng: random.Random
) -> None:
    target = choose(targets, rng.randrange)
    assert target is None or target.room
    assert (target is None) == (not any(candidate.room for candidate in targets))


@SOME
@given(st.integers(0, 9), st.integers(0, 9), st.randoms(use_true_random=False))
def test_of_two_replicas_the_less_loaded_one_is_chosen(one: int, other: int, rng: random.Random) -> None:
    target = choose([Target(load=one), Target(load=other)], rng.randrange)
    assert target is not None
    assert target.load == min(one, other)


def test_streams_spread_evenly() -> None:
    """With two choices the fullest of 8 stays near the average of 100; with one it would be some 20 above."""
    rng = random.Random(1)
    targets = [Target() for _ in range(8)]
    for _ in range(800):
        target = choose(targets, rng.randrange)
        assert target is not None
        target.load += 1
    assert max(target.load for target in targets) <= 103


def test_equal_replicas_are_equally_often_chosen() -> None:
    rng = random.Random(1)
    targets = [Target() for _ in range(5)]
    picks = Counter(id(choose(targets, rng.randrange)) for _ in range(5000))
    assert min(picks.values()) > 850


# --- leases' evidence -----------------------------------------------------------------------------------


def test_a_member_that_was_never_seen_gets_a_full_ttl() -> None:
    evidence = LeaseEvidence(TTL_S)
    evidence.listed(frozenset(), frozenset({A}), 100.0)
    assert evidence.expired(104.9) == frozenset()
    assert evidence.expired(105.0) == {A}


def test_a_member_that_was_seen_and_is_gone_is_expired_at_once() -> None:
    evidence = LeaseEvidence(TTL_S)
    evidence.listed(frozenset({A, B}), frozenset({A, B}), 100.0)
    evidence.listed(frozenset({B}), frozenset({A, B}), 101.0)
    assert evidence.expired(101.0) == {A}


def test_a_member_that_comes_back_is_not_expired_any_more() -> None:
    evidence = LeaseEvidence(TTL_S)
    evidence.listed(frozenset({A}), frozenset({A}), 100.0)
    evidence.listed(frozenset(), frozenset({A}), 101.0)
    evidence.listed(frozenset({A}), frozenset({A}), 102.0)
    assert evidence.expired(200.0) == frozenset()


def test_lease_servers_that_come_back_give_everybody_a_full_ttl() -> None:
    evidence = LeaseEvidence(TTL_S)
    evidence.listed(frozenset({A}), frozenset({A, B}), 100.0)
    evidence.unreachable()
    assert evidence.expired(200.0) == frozenset()
    evidence.listed(frozenset(), frozenset({A, B}), 200.0)
    assert evidence.expired(204.9) == frozenset()
    assert evidence.expired(205.0) == {A, B}


def test_waiting_is_not_prolonged_by_looking_often() -> None:
    evidence = LeaseEvidence(TTL_S)
    for tenths in range(1000, 1051):
        evidence.listed(frozenset(), frozenset({A}), tenths / 10)
    assert evidence.expired(105.0) == {A}


def test_a_member_that_the_log_no_longer_holds_for_alive_is_forgotten() -> None:
    evidence = LeaseEvidence(TTL_S)
    evidence.listed(frozenset({A}), frozenset({A}), 100.0)
    evidence.listed(frozenset(), frozenset({A}), 101.0)
    evidence.listed(frozenset(), frozenset(), 102.0)
    assert evidence.expired(200.0) == frozenset()


def test_another_life_of_the_same_member_is_another_member() -> None:
    evidence = LeaseEvidence(TTL_S)
    evidence.listed(frozenset({A}), frozenset({A}), 100.0)
    evidence.listed(frozenset({A}), frozenset({("a", "2")}), 101.0)
    assert evidence.expired(101.0) == frozenset()
    assert evidence.expired(106.0) == {("a", "2")}


LISTINGS = st.lists(
    st.tuples(st.floats(0, 3), st.none() | st.frozensets(st.sampled_from([A, B]))), min_size=1, max_size=12
)


@MANY
@given(LISTINGS)
def test_nobody_is_expired_while_listed_or_before_its_time(
    listings: list[tuple[float, frozenset[tuple[str, str]] | None]],
) -> None:
    """The model: expired is who was missing in the last listing, and was seen in the one before or missed for a TTL."""
    evidence = LeaseEvidence(TTL_S)
    wanted = frozenset({A, B})
    now_s = 1000.0
    absent: dict[tuple[str, str], float] = {}
    seen: frozenset[tuple[str, str]] = frozenset()
    for pause_s, present in listings:
        now_s += pause_s
        if present is None:
            evidence.unreachable()
            absent, seen = {}, frozenset()
        else:
            evidence.listed(present, wanted, now_s)
            for member in wanted - present:
                absent.setdefault(member, now_s - TTL_S if member in seen else now_s)
            absent = {member: since for member, since in absent.items() if member not in present}
            seen = present
        assert evidence.expired(now_s) == {member for member, since in absent.items() if now_s - since >= TTL_S}
