"""Runs that failed once do no more, and would again without what mended them.

Bugs of the adapters that no run of a whole cluster was found to show are kept here too, by name, as tests over
simulated servers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from holdfast.simulations import bugs
from holdfast.simulations.bugs import Bug, NoSuchBug
from holdfast.simulations.mutants.mended import MENDED
from holdfast.simulations.plan import SCENARIOS, STANDARD, Fault
from holdfast.simulations.simulation import draw_plan, run
from tests.unit.simulations import (
    test_etcd_faults,
    test_jetstream_follows,
    test_jetstream_groups,
    test_jetstream_storms,
)

ORDERS = 40
"""In so many orders of turns a plan is tried: the one in which it was found is another one as soon as any code changes.

A plan that shows its bug in none of them has lost its worth: draw another one, with the mend taken out.
"""

WITNESSES: dict[str, Callable[[], object]] = {
    "leaderless-server": partial(
        test_jetstream_groups.test_who_is_connected_to_a_member_that_is_cut_off_appends_and_follows_elsewhere, "0"
    ),
    "quiet-old-log": partial(
        test_jetstream_groups.test_a_follower_on_a_member_that_is_cut_off_while_the_log_is_quiet_hears_of_news, "0"
    ),
    "lagging-server": partial(
        test_jetstream_groups.test_a_reader_does_not_take_a_member_that_lags_for_a_log_that_lost_history, "1", True
    ),
    "last-delivery": partial(
        test_jetstream_follows.test_the_last_delivery_before_a_silence_is_missed_and_the_next_heartbeat_tells, 1
    ),
    "former-leaders-refusal": partial(
        test_jetstream_groups.test_a_former_leader_that_knows_less_does_not_pass_for_another_writer, "0"
    ),
    "unreadable-duplicate": partial(test_jetstream_storms.test_nothing_is_lost_doubled_or_out_of_order, 25, 3),
    "compacted-deletion": test_etcd_faults.test_a_deletion_at_the_very_revision_that_was_compacted_is_told,
}
"""Adapters over simulated servers that fail without the mend."""


@pytest.mark.parametrize("name", bugs.names())
def test_a_bug_that_was_mended_stays_mended(name: str) -> None:
    bug = bugs.load(name)
    assert bug.name == name
    assert bug.what
    assert bug.fixed
    result, _history = run(bug.plan)
    assert result.violations == []


@pytest.mark.parametrize("name", [name for name in bugs.names() if name in MENDED])
def test_a_plan_shows_its_bug_without_the_mend(name: str) -> None:
    bug, mend = bugs.load(name), MENDED[name]
    assert bug.checker in mend.caught_by
    broke: set[str] = set()
    for order in range(ORDERS):
        # The seed decides on nothing but turns and the network's pace here: the plan has all the rest.
        plan = msgspec.structs.replace(bug.plan, seed=bug.plan.seed + order)
        result, _history = run(plan, mutant=mend.removed())
        broke |= {violation.checker for violation in result.violations}
        if bug.checker in broke:
            return
    pytest.fail(f"in {ORDERS} orders of turns without its mend {name} broke {sorted(broke) or 'nothing'}")


@pytest.mark.parametrize("name", list(WITNESSES))
def test_an_adapters_bug_is_back_without_the_mend(name: str) -> None:
    witness = WITNESSES[name]
    witness()
    with MENDED[name].removed(), pytest.raises(BaseException):  # noqa: B017, PT011 - whatever breaks
        witness()


def test_every_mend_that_can_be_taken_out_is_missed_somewhere() -> None:
    assert set(MENDED) <= {*bugs.names(), *WITNESSES}


def test_a_bug_is_kept_as_it_was_found(tmp_path: Path) -> None:
    bug = Bug("lost-token", "exactly-once", "a token was lost", "", "0123abcd", 1, draw_plan(1, SCENARIOS[STANDARD]))
    path = tmp_path / "lost-token.json"
    bugs.save(bug, path)
    assert bugs.names(tmp_path) == ["lost-token"]
    assert bugs.load("lost-token", tmp_path) == bugs.load(str(path)) == bug


def test_a_bug_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(NoSuchBug, match=r"lost is no seed, and no bug: No such file.*have a name: other$"):
        bugs.load("lost", tmp_path)
    with pytest.raises(NoSuchBug, match="does not hold a plan as this version of Holdfast has it"):
        bugs.load("other", tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('"kind":"replica crash"', '"kind":"replica melts"', "there is no kind of fault 'replica melts'"),
        ('"kind":"deploy"', '"kind":"undeploy"', "there is no operation 'undeploy'"),
        ('"slots":', '"places":', "there is no setting 'places'"),
    ],
)
def test_a_plan_of_another_version_is_refused_and_not_run_without_what_it_asks_for(
    before: str, after: str, told: str, tmp_path: Path
) -> None:
    faults = (Fault(0, 1.0, "replica crash", 0.0, 0.5, 0.5),)
    plan = msgspec.structs.replace(draw_plan(1, SCENARIOS[STANDARD]), faults=faults)
    text = msgspec.json.encode(Bug("old", "exactly-once", "", "", "0123abcd", 1, plan)).decode()
    assert before in text
    (tmp_path / "old.json").write_text(text.replace(before, after))
    with pytest.raises(NoSuchBug, match=told):
        bugs.load("old", tmp_path)
