"""Which replicas are passed over, for how long, and never too many."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.budget import BURST_MIN, RetryBudget
from holdfast.core.outliers import ATTEMPTS_MIN, FIRST_FACTOR, FIRST_MORE_S, RECORD_S, Outliers, Showing, ejected_max

WELL = Showing(20, 0, 20, 0.1)
FAILS = Showing(5, 15, 20, 0.1)
SLOW = Showing(20, 0, 20, 2.0)
NOTHING = Showing(0, 0, 0, None)


def judge() -> Outliers:
    return Outliers(10.0, 40.0)


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


@pytest.mark.parametrize("few", [Showing(0, ATTEMPTS_MIN - 1, 0, None), Showing(20, 0, ATTEMPTS_MIN - 1, 3.0)])
def test_few_attempts_and_few_first_tokens_say_nothing(few: Showing) -> None:
    assert judge().look(replicas(2, bad=few), 0.0) == ([], [])


@pytest.mark.parametrize("few", [Showing(ATTEMPTS_MIN - 1, 0, 0, None), Showing(0, 0, ATTEMPTS_MIN - 1, 0.1)])
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
    ((ejection,), _) = outliers.look({"a": NOTHING, "b": NOTHING, "bad": bad}, RECORD_S)
    assert ejection.replica == "bad"


@pytest.mark.parametrize("bad", [FAILS, SLOW])
def test_what_others_showed_too_long_ago_or_while_they_were_passed_over_is_nothing_to_go_by(bad: Showing) -> None:
    outliers = judge()
    outliers.look({"a": WELL, "bad": NOTHING}, 0.0)
    assert outliers.look({"a": NOTHING, "bad": bad}, RECORD_S + 1) == ([], [])
    outliers = judge()
    outliers.look({"out": FAILS, "b": WELL}, 0.0)
    outliers.look({"out": WELL, "b": NOTHING}, 5.0)
    assert outliers.look({"out": NOTHING, "b": bad}, 10.0) == ([], ["out"])


@pytest.mark.parametrize(
    ("bad", "theirs"), [(FAILS, Showing(0, ATTEMPTS_MIN - 2, 0, None)), (SLOW, Showing(0, 0, ATTEMPTS_MIN - 2, 1.9))]
)
def test_what_all_begin_to_suffer_from_is_no_reason_against_the_first_who_shows_it(
    bad: Showing, theirs: Showing
) -> None:
    outliers = judge()
    outliers.look(replicas(3, bad=WELL), 0.0)
    assert outliers.look({**dict.fromkeys(replicas(3), theirs), "bad": bad}, 5.0) == ([], [])


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


SHOWINGS = st.builds(Showing, st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.none() | st.floats(0, 100))


@given(st.lists(st.dictionaries(st.sampled_from([f"r{n}" for n in range(30)]), SHOWINGS), max_size=12))
def test_never_more_than_a_tenth_are_passed_over_but_for_one_and_never_all(rounds: list[dict[str, Showing]]) -> None:
    outliers = judge()
    for now_s, showings in enumerate(rounds):
        outliers.look(showings, float(now_s))
        passed_over = outliers.ejected.keys()
        assert passed_over <= showings.keys()
        assert len(passed_over) <= max(1, len(showings) // 10)
        assert not showings or len(passed_over) < len(showings)


# --- what is tried again --------------------------------------------------------------------------------


def test_all_that_is_open_may_begin_again_once_and_not_twice() -> None:
    budget = RetryBudget(0.0, 0.0)
    assert all(budget.spend(500, 0.0) for _ in range(500))
    assert not budget.spend(500, 0.0)


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
