"""What is looked for in living actors: a run notices what they hold on to."""

from __future__ import annotations

import pytest

from holdfast.actors.follower import Follower
from holdfast.actors.held import HeldStreams
from holdfast.gateway.serving import Serving
from holdfast.gateway.session import StreamSession
from holdfast.simulations.checkers.health import BOUNDS
from holdfast.simulations.mutants.edits import applied, edit
from holdfast.simulations.plan import SCENARIOS, STANDARD
from holdfast.simulations.simulation import draw_plan, run
from holdfast.store.jetstream_follow import _Consumer

LEAKS = {
    "streams of requests": [edit(StreamSession.__aexit__, ("self._withdraw(run)", "pass"))],
    "links to replicas": [edit(Serving._sync, ("elif link is not None:", "elif False:"))],
    "streams held": [edit(HeldStreams._remove, ("del self.by_key[held.key]", "pass"))],
    "log readers": [edit(_Consumer.discard, ("await self._connection.unsubscribe(self._subscription)", "pass"))],
    "waits for records": [
        edit(Follower.change, ("self._waiters.pop(waiter, None)", "pass")),
        edit(Follower._wake, ("self._waiters, {}", "self._waiters, self._waiters")),
    ],
}


SEEDS = 10
"""Not every run has a reader that is renewed, as after a silence, or a replica that is lost."""


@pytest.mark.parametrize("what", LEAKS)
def test_what_an_actor_never_lets_go_of_is_noticed(what: str) -> None:
    plans = (draw_plan(seed, SCENARIOS[STANDARD]) for seed in range(1, SEEDS + 1))
    runs = (run(plan, mutant=applied(tuple(LEAKS[what])))[0] for plan in plans)
    found = next(result.violations for result in runs if BOUNDS in {one.checker for one in result.violations})
    assert any(what in violation.message for violation in found)


def test_nothing_is_held_on_to_where_nothing_is_taken_out() -> None:
    assert run(draw_plan(1, SCENARIOS[STANDARD]))[0].violations == []
