"""Which replicas are passed over, for how long, and never too many."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.budget import BURST_MIN, RetryBudget
from holdfast.core.outliers import FIRST_FACTOR, FIRST_MORE_S, USUAL, Outliers, Rules, Showing, ejected_max
from holdfast.core.rows import ATTEMPTS, FIRSTS, LASTS_S, NO_ROW, Last, Row

WELL = Showing(20, 0, 20, 0.1)
FAILS = Showing(5, 15, 20, 0.1)
SLOW = Showing(20, 0, 20, 2.0)
NOTHING = Showing(0, 0, 0, None)


def judge() -> Outliers:
    return Outliers(Rules(longest_s=40.0))


def replicas(count: int, **others: Showing) -> dict[str, Showing]:
    return {**{f"r{number}": WELL for number in range(count)}, **others}


@pytest.mark.parametrize(("showing", "why"), [(FAILS, "failed 75%"), (SLOW, "took 2.000 s")])
def test_a_replica_that_serves_far_worse_than_the_others_is_passed_over_with_the_reason(
    showing: Showing, why: str
) -> None:
    out, back = judge().look(replicas(2, bad=showing), 0.0)
    assert [(one.replica, one.until_s) for one in out] == [("bad", 10.0)]
    assert why in out[0].reason
    assert not back


def test_what_all_suffer_from_is_no_reason() -> None:
    assert judge().look({"a": FAILS, "b": FAILS}, 0.0) == ([], [])
    assert judge().look({"a": SLOW, "b": SLOW, "c": SLOW}, 0.0) == ([], [])


@pytest.mark.parametrize(
    "few", [Showing(0, USUAL.requests_min - 1, 0, None), Showing(20, 0, USUAL.requests_min - 1, 3.0)]
)
def test_few_attempts_and_few_first_tokens_say_nothing(few: Showing) -> None:
    assert judge().look(replicas(2, bad=few), 0.0) == ([], [])


@pytest.mark.parametrize(
    "few", [Showing(USUAL.requests_min - 1, 0, 0, None), Showing(0, 0, USUAL.requests_min - 1, 0.1)]
)
def test_nor_does_it_say_anything_to_be_compared_with_few(few: Showing) -> None:
    assert judge().look({"a": few, "b": few, "fails": FAILS, "slow": NOTHING}, 0.0) == ([], [])
    assert judge().look({"a": few, "b": few, "fails": NOTHING, "slow": SLOW}, 0.0) == ([], [])


def test_a_replica_that_nobody_waits_for_is_judged_by_its_first_tokens_alone() -> None:
    ((ejection,), _) = judge().look(replicas(2, bad=Showing(0, 0, 12, 30.0)), 0.0)
    assert ejection.replica == "bad"


@pytest.mark.parametrize("bad", [FAILS, SLOW])
def test_replicas_that_show_enough_at_different_times_are_compared_with_what_others_showed_last(bad: Showing) -> None:
    outliers = judge()
    assert outliers.look({"a": WELL, "b": WELL, "bad": NOTHING}, 0.0) == ([], [])
    ((ejection,), _) = outliers.look({"a": NOTHING, "b": NOTHING, "bad": bad}, USUAL.window_s)
    assert ejection.replica == "bad"


@pytest.mark.parametrize("bad", [FAILS, SLOW])
def test_what_others_showed_too_long_ago_or_while_they_were_passed_over_is_nothing_to_go_by(bad: Showing) -> None:
    outliers = judge()
    outliers.look({"a": WELL, "bad": NOTHING}, 0.0)
    assert outliers.look({"a": NOTHING, "bad": bad}, USUAL.window_s + 1) == ([], [])
    outliers = judge()
    outliers.look({"out": FAILS, "b": WELL}, 0.0)
    outliers.look({"out": WELL, "b": NOTHING}, 5.0)
    assert outliers.look({"out": NOTHING, "b": bad}, 10.0) == ([], ["out"])


@pytest.mark.parametrize(
    ("bad", "theirs"),
    [(FAILS, Showing(0, USUAL.requests_min - 2, 0, None)), (SLOW, Showing(0, 0, USUAL.requests_min - 2, 1.9))],
)
def test_what_all_begin_to_suffer_from_is_no_reason_against_the_first_who_shows_it(
    bad: Showing, theirs: Showing
) -> None:
    outliers = judge()
    outliers.look(replicas(3, bad=WELL), 0.0)
    assert outliers.look({**dict.fromkeys(replicas(3), theirs), "bad": bad}, 5.0) == ([], [])


# --- few requests ---------------------------------------------------------------------------------------

GOOD_ROW = Row(ATTEMPTS, 0, FIRSTS, 0.1, 0.2)
FAILED_ROW = Row(ATTEMPTS, ATTEMPTS)
SLOW_ROW = Row(ATTEMPTS, 0, FIRSTS, 2.0, 3.0)


def with_rows(**rows: Row) -> dict[str, Showing]:
    return {name: Showing(0, 0, 0, None, row) for name, row in rows.items()}


@pytest.mark.parametrize(("row", "why"), [(FAILED_ROW, "last 5 attempts failed"), (SLOW_ROW, "2.000 s or longer")])
def test_who_gets_few_requests_is_passed_over_where_each_of_the_last_ones_was_bad(row: Row, why: str) -> None:
    ((ejection,), _) = judge().look(with_rows(bad=row, other=GOOD_ROW), 0.0)
    assert ejection.replica == "bad"
    assert why in ejection.reason


@pytest.mark.parametrize(
    "row",
    [
        Row(ATTEMPTS - 1, ATTEMPTS - 1),
        Row(ATTEMPTS, ATTEMPTS - 1),
        Row(ATTEMPTS, 0, FIRSTS - 1, 2.0, 3.0),
        Row(ATTEMPTS, 0, FIRSTS, 0.2, 3.0),
    ],
)
def test_one_good_one_among_the_last_or_too_few_of_them_say_nothing(row: Row) -> None:
    assert judge().look(with_rows(bad=row, other=GOOD_ROW), 0.0) == ([], [])


def test_nor_does_a_row_say_anything_where_the_others_are_bad_too_or_show_nothing() -> None:
    for row, others in (
        (FAILED_ROW, NO_ROW),
        (FAILED_ROW, Row(ATTEMPTS, 2)),
        (SLOW_ROW, Row(ATTEMPTS, 0, FIRSTS - 1, 0.1, 0.2)),
        (SLOW_ROW, Row(ATTEMPTS, 0, FIRSTS, 0.1, 0.5)),
    ):
        assert judge().look(with_rows(bad=row, other=others), 0.0) == ([], [])


@given(st.lists(st.tuples(st.floats(0, 300), st.booleans()), max_size=20), st.floats(0, 900))
def test_a_row_has_the_last_ones_but_for_those_that_are_too_old(ends: list[tuple[float, bool]], later_s: float) -> None:
    last, now_s, all_of_them = Last(), 0.0, list[tuple[float, bool]]()
    for passes_s, well in ends:
        now_s += passes_s
        last.ended(now_s, well=well)
        last.first_token(now_s, passes_s)
        all_of_them.append((now_s, well))
    now_s += later_s
    recent = [well for at_s, well in all_of_them[-ATTEMPTS:] if now_s - at_s <= LASTS_S]
    firsts_s = [took[0] for took, (at_s, _) in zip(ends, all_of_them, strict=True) if now_s - at_s <= LASTS_S][-FIRSTS:]
    row = last.row(now_s)
    assert (row.attempts, row.failed, row.firsts) == (len(recent), recent.count(False), len(firsts_s))
    assert (row.shortest_s, row.median_s) == ((min(firsts_s), statistics.median(firsts_s)) if firsts_s else (0.0, 0.0))


# --- for how long ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9))
def test_each_is_compared_with_the_median_of_all_others(times_s: list[float]) -> None:
    outliers, slowest = judge(), max(times_s)
    others = sorted(times_s)[:-1]
    usual_s = statistics.median(others)
    out, _ = outliers.look({f"r{n}": Showing(20, 0, 20, took_s) for n, took_s in enumerate(times_s)}, 0.0)
    outlier = slowest > FIRST_FACTOR * usual_s and slowest > usual_s + FIRST_MORE_S
    assert [times_s[int(one.replica[1:])] for one in out] == ([slowest] if outlier else [])


def test_the_only_one_is_never_passed_over() -> None:
    assert judge().look({"bad": FAILS}, 0.0) == ([], [])
    assert ejected_max(1) == 0


def test_it_is_back_after_a_while_and_passed_over_for_longer_the_next_time_up_to_a_bound() -> None:
    outliers, now_s, lasted = judge(), 0.0, []
    for _ in range(4):
        ((ejection,), _) = outliers.look(replicas(3, bad=FAILS), now_s)
        lasted.append(ejection.until_s - now_s)
        assert outliers.look(replicas(3, bad=NOTHING), ejection.until_s - 0.1) == ([], [])
        assert outliers.look(replicas(3, bad=NOTHING), ejection.until_s) == ([], ["bad"])
        now_s = ejection.until_s + 1
    assert lasted == [10.0, 20.0, 40.0, 40.0]


def test_serving_well_makes_up_for_having_been_passed_over() -> None:
    outliers = judge()
    outliers.look(replicas(3, bad=FAILS), 0.0)
    for now_s in (10.0, 15.0):
        outliers.look(replicas(3, bad=WELL), now_s)
    ((ejection,), _) = outliers.look(replicas(3, bad=FAILS), 20.0)
    assert ejection.until_s == 30.0


def test_the_worst_are_passed_over_first() -> None:
    out, _ = judge().look(replicas(20, slow=SLOW, fails=FAILS, fails_more=Showing(0, 20, 0, None)), 0.0)
    assert [one.replica for one in out] == ["fails_more", "fails"]


def test_who_was_passed_over_is_back_where_others_have_gone() -> None:
    outliers = judge()
    outliers.look(replicas(3, bad=FAILS), 0.0)
    assert outliers.look({"bad": WELL}, 1.0) == ([], ["bad"])


def test_who_is_out_of_reach_for_a_moment_stays_passed_over_and_for_longer_the_next_time() -> None:
    outliers = judge()
    outliers.look(replicas(3, bad=FAILS), 0.0)
    assert outliers.look(replicas(3), 5.0, ["bad"]) == ([], [])
    assert outliers.look(replicas(3), 10.0, ["bad"]) == ([], ["bad"])
    ((ejection,), _) = outliers.look(replicas(3, bad=FAILS), 11.0)
    assert ejection.until_s == 31.0


def test_who_is_gone_is_forgotten() -> None:
    outliers = judge()
    outliers.look(replicas(3, bad=FAILS), 0.0)
    assert outliers.look(replicas(3), 1.0) == ([], ["bad"])
    ((ejection,), _) = outliers.look(replicas(3, bad=FAILS), 2.0)
    assert ejection.until_s == 12.0


def test_no_more_than_need_be_are_back_where_others_have_gone() -> None:
    outliers = judge()
    outliers.look(replicas(20, a=FAILS, b=SLOW), 0.0)
    assert outliers.ejected.keys() == {"a", "b"}
    assert outliers.look(replicas(10, a=NOTHING, b=NOTHING), 1.0) == ([], ["b"])


SHOWINGS = st.builds(Showing, st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.none() | st.floats(0, 100))


NAMES = st.sampled_from([f"r{n}" for n in range(30)])


@given(st.lists(st.tuples(st.dictionaries(NAMES, SHOWINGS), st.sets(NAMES)), max_size=12))
def test_never_more_than_a_tenth_are_passed_over_but_for_one_and_never_all(
    rounds: list[tuple[dict[str, Showing], set[str]]],
) -> None:
    outliers = judge()
    for now_s, (showings, others) in enumerate(rounds):
        absent = others - showings.keys()
        outliers.look(showings, float(now_s), absent)
        passed_over = outliers.ejected.keys()
        assert passed_over <= showings.keys() | absent
        there = showings.keys() | passed_over
        assert len(passed_over) <= max(1, len(there) // 10)
        assert not there or len(passed_over) < len(there)


# --- what is tried again --------------------------------------------------------------------------------


def test_all_that_is_open_may_begin_again_once_and_not_twice() -> None:
    budget = RetryBudget(0.0, 0.0)
    assert all(budget.spend(500, 0.0) for _ in range(500))
    assert not budget.spend(500, 0.0)


def test_a_burst_that_is_set_is_held_where_fewer_are_open() -> None:
    budget = RetryBudget(0.0, 0.0, burst=3)
    assert [budget.spend(1, 0.0) for _ in range(4)] == [True, True, True, False]


def test_requests_and_time_earn_more() -> None:
    budget = RetryBudget(0.5, 2.0)
    while budget.spend(0, 0.0):
        pass
    for _ in range(4):
        budget.earn()
    assert [budget.spend(0, 0.0) for _ in range(3)] == [True, True, False]
    assert [budget.spend(0, 1.0) for _ in range(3)] == [True, True, False]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300), st.floats(0, 10)), max_size=200))
def test_no_more_is_tried_again_than_was_earned(steps: list[tuple[bool, int, float]]) -> None:
    budget, now_s, requests, tried, most = RetryBudget(0.2, 10.0), 0.0, 0, 0, BURST_MIN
    for comes, open_streams, passes_s in steps:
        now_s += passes_s
        most = max(most, open_streams)
        if comes:
            budget.earn()
            requests += 1
        else:
            tried += budget.spend(open_streams, now_s)
    assert tried <= most + 0.2 * requests + 10.0 * now_s + 1e-6
