"""Where a replica goes, which replica a stream goes to, and who is held for gone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import events as ev
from holdfast.core.detector import SECOND_LOOK_S, SILENCE_MAX, LeaseEvidence
from holdfast.core.placement import Vacancies
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
    node = Vacancies(history.state, Counter(used)).take(avoid)
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


@MANY
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8),
    st.lists(st.none() | st.integers(0, 7), max_size=20),
    st.lists(st.dictionaries(st.sampled_from([f"n{number}" for number in range(8)]), st.integers(1, 3)), min_size=1),
)
def test_one_after_another_each_goes_where_it_would_go_alone(
    nodes: list[tuple[int, int]], avoided: list[int | None], resting: list[dict[str, int]]
) -> None:
    history = with_nodes(**{f"n{number}": slots for number, (slots, _used) in enumerate(nodes)})
    used = Counter({f"n{number}": taken for number, (_slots, taken) in enumerate(nodes)})
    together = Vacancies(history.state, used.copy())
    for place, number in enumerate(avoided):
        avoid = None if number is None else f"n{number}"
        rest = resting[place % len(resting)]
        together.rest(rest)
        node = together.take(avoid)
        assert (node.id if node else None) == best(history, used, avoid, rest)
        if node is not None:
            used[node.id] += 1


def best(history: History, used: Counter[str], avoid: str | None, rest: dict[str, int]) -> str | None:
    """By looking at all nodes: the rule in two lines."""
    free = [node.id for node in history.state.live_nodes() if used[node.id] < node.slots]
    if free and all(name in rest for name in free):
        return min(free, key=lambda name: (used[name] + rest[name], used[name], name))
    free = [name for name in free if name not in rest]
    return min(free, key=lambda name: (used[name] + (name == avoid), name == avoid, name), default=None)


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


def test_among_full_replicas_a_few_are_looked_at_and_not_all() -> None:
    rng = random.Random(1)
    looks = 0

    class Counted(Target):
        def __getattribute__(self, name: str) -> Any:
            nonlocal looks
            looks += name == "room"
            return super().__getattribute__(name)

    targets = [Counted(room=number % 20 == 0) for number in range(2000)]
    for _ in range(200):
        target = choose(targets, rng.randrange)
        assert target is not None
        assert target.room
    assert looks / 200 < 100


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


NOBODY: frozenset[tuple[str, str]] = frozenset()
POLL_S = 1.0


class Listings:
    """Listings one after the other, `POLL_S` apart unless said otherwise, as if by a leader."""

    def __init__(self) -> None:
        self.evidence = LeaseEvidence(TTL_S)
        self.now_s = 100.0

    def list(
        self,
        present: frozenset[tuple[str, str]],
        *,
        wanted: frozenset[tuple[str, str]] = frozenset({A, B}),
        times: int = 1,
        after_s: float = POLL_S,
        ended: frozenset[tuple[str, str]] = NOBODY,
        cut_off: frozenset[tuple[str, str]] = NOBODY,
    ) -> frozenset[tuple[str, str]]:
        """The same listing some times; who is expired then."""
        for _ in range(times):
            self.now_s += after_s
            self.evidence.listed(present, wanted, self.now_s, ended, cut_off)
        return self.evidence.expired()


def test_a_member_that_was_never_seen_gets_a_full_ttl() -> None:
    listings = Listings()
    assert listings.list(frozenset({B}), times=5) == NOBODY
    assert listings.list(frozenset({B})) == {A}


def test_a_member_that_was_seen_and_is_gone_is_expired_at_a_second_look_where_the_servers_answered_for_a_ttl() -> None:
    listings = Listings()
    assert listings.list(frozenset({A, B}), times=6) == NOBODY
    assert listings.evidence.next_look_s() is None
    assert listings.list(frozenset({B})) == NOBODY
    assert listings.evidence.next_look_s() == pytest.approx(SECOND_LOOK_S)
    assert listings.list(frozenset({B}), after_s=SECOND_LOOK_S + 0.001) == {A}


def test_a_member_whose_lease_was_ended_before_its_time_and_that_is_back_by_then_is_not() -> None:
    listings = Listings()
    assert listings.list(frozenset({A, B}), times=6) == NOBODY
    assert listings.list(NOBODY) == NOBODY
    assert listings.list(frozenset({A, B}), after_s=SECOND_LOOK_S + 0.001) == NOBODY
    assert listings.list(frozenset({A, B}), times=6) == NOBODY


def test_a_member_that_is_gone_before_the_servers_have_answered_for_a_ttl_gets_a_full_one() -> None:
    listings = Listings()
    listings.list(frozenset({A, B}), times=2)
    assert listings.list(frozenset({B}), times=5) == NOBODY
    assert listings.list(frozenset({B})) == {A}


def test_a_member_whose_process_was_seen_to_end_is_expired_at_once() -> None:
    listings = Listings()
    assert listings.list(frozenset({B}), ended=frozenset({A})) == {A}
    assert listings.evidence.ended == {A}


def test_a_member_that_gave_its_lease_up_and_says_why_is_expired_at_once_until_it_is_back() -> None:
    listings = Listings()
    assert listings.list(frozenset({B}), cut_off=frozenset({A})) == {A}
    assert listings.evidence.cut_off == {A}
    assert listings.evidence.ended == NOBODY
    assert listings.list(frozenset({A, B}), cut_off=frozenset({A})) == NOBODY
    assert listings.evidence.cut_off == NOBODY


def test_a_note_about_a_member_that_is_there_proves_nothing() -> None:
    listings = Listings()
    assert listings.list(frozenset({A, B}), ended=frozenset({A})) == NOBODY
    assert listings.evidence.ended == NOBODY


def test_servers_that_froze_for_less_than_their_time_limit_cost_nobody_his_place() -> None:
    """No call failed: the first listing came late, and leases that could not be renewed end a moment after it."""
    listings = Listings()
    listings.list(frozenset({A, B}), times=10)
    assert listings.list(frozenset({A, B}), after_s=4.0) == NOBODY
    assert listings.list(NOBODY, times=4) == NOBODY
    assert listings.list(frozenset({A, B})) == NOBODY


def test_silence_of_the_servers_counts_for_no_more_than_its_limit() -> None:
    listings = Listings()
    listings.list(frozenset({B}), times=3)
    assert listings.list(frozenset({B}), after_s=60.0) == NOBODY
    assert listings.list(frozenset({B})) == NOBODY
    assert listings.list(frozenset({B})) == {A}


def test_servers_that_always_answer_late_keep_nobody_alive_for_ever() -> None:
    listings = Listings()
    assert listings.list(frozenset({B}), times=20, after_s=TTL_S) == {A}


def test_a_member_that_comes_back_is_not_expired_any_more() -> None:
    listings = Listings()
    listings.list(frozenset({A, B}), times=6)
    assert listings.list(frozenset({B}), times=2) == {A}
    assert listings.list(frozenset({A, B})) == NOBODY


def test_lease_servers_that_come_back_give_everybody_a_full_ttl() -> None:
    listings = Listings()
    listings.list(frozenset({A, B}), times=10)
    listings.evidence.unreachable()
    assert listings.evidence.expired() == NOBODY
    listings.list(frozenset({A, B}), after_s=100.0)
    assert listings.list(NOBODY, times=5) == NOBODY
    assert listings.list(NOBODY) == {A, B}


def test_waiting_is_not_prolonged_by_looking_often() -> None:
    listings = Listings()
    listings.list(NOBODY, wanted=frozenset({A}), times=41, after_s=0.125)
    assert listings.evidence.expired() == {A}


def test_a_member_that_the_log_no_longer_holds_for_alive_is_forgotten() -> None:
    listings = Listings()
    listings.list(frozenset({A}), wanted=frozenset({A}), times=6)
    assert listings.list(NOBODY, wanted=frozenset({A}), times=2) == {A}
    assert listings.list(NOBODY, wanted=NOBODY) == NOBODY


def test_another_life_of_the_same_member_is_another_member() -> None:
    again = ("a", "2")
    listings = Listings()
    listings.list(frozenset({A}), wanted=frozenset({A}), times=6)
    assert listings.list(frozenset({A}), wanted=frozenset({again}), times=5) == NOBODY
    assert listings.list(frozenset({A}), wanted=frozenset({again})) == {again}


LISTINGS = st.lists(
    st.tuples(st.floats(0, 3), st.none() | st.frozensets(st.sampled_from([A, B]))), min_size=1, max_size=12
)


@MANY
@given(LISTINGS)
def test_nobody_is_expired_while_listed_or_before_its_time(
    listings: list[tuple[float, frozenset[tuple[str, str]] | None]],
) -> None:
    """Whoever is expired is missing, and was for a TTL of answers, or went after a TTL of answers without a break."""
    evidence = LeaseEvidence(TTL_S)
    wanted = frozenset({A, B})
    now_s, steady_s, before_s = 1000.0, 1000.0, None
    counted: dict[tuple[str, str], float] = {}
    seen = NOBODY
    for pause_s, present in listings:
        now_s += pause_s
        if present is None:
            evidence.unreachable()
            counted, seen, before_s = {}, NOBODY, None
        else:
            evidence.listed(present, wanted, now_s)
            passed_s = min(now_s - before_s, TTL_S * SILENCE_MAX) if before_s is not None else 0.0
            if before_s is None or now_s - before_s > TTL_S * SILENCE_MAX:
                steady_s = now_s
            known = seen if now_s - steady_s >= TTL_S else NOBODY
            counted = {
                member: counted[member] + passed_s if member in counted else TTL_S if member in known else 0.0
                for member in wanted - present
            }
            seen, before_s = present, now_s
        missed = {member: time_s for member, time_s in counted.items() if abs(time_s - TTL_S) > 1e-6 or member in seen}
        assert evidence.expired() <= {member for member, time_s in counted.items() if time_s >= TTL_S - 1e-6}
        assert evidence.expired() >= {member for member, time_s in missed.items() if time_s > TTL_S}
