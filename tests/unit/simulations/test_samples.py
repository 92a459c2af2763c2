"""What is looked for in living gateways: a run notices what they hold on to."""

from __future__ import annotations

import pytest

from holdfast.gateway.serving import Serving
from holdfast.gateway.session import StreamSession
from holdfast.simulations.checkers.health import BOUNDS
from holdfast.simulations.mutants.edits import Edit, applied, edit
from holdfast.simulations.plan import SCENARIOS, STANDARD
from holdfast.simulations.simulation import draw_plan, run


@pytest.mark.parametrize(
    ("leak", "what"),
    [
        (edit(StreamSession.__aexit__, ("self._withdraw(run)", "pass")), "streams of requests"),
        (edit(Serving._sync, ("elif link is not None:", "elif False:")), "links to replicas"),
    ],
)
def test_what_a_gateway_never_lets_go_of_is_noticed(leak: Edit, what: str) -> None:
    plan = draw_plan(1, SCENARIOS[STANDARD])
    result, _history = run(plan, mutant=applied((leak,)))
    assert {violation.checker for violation in result.violations} >= {BOUNDS}
    assert any(what in violation.message for violation in result.violations)
    assert run(plan)[0].violations == []
