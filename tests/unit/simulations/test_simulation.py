"""What holds of runs as a whole."""

from __future__ import annotations

import msgspec

from holdfast.simulations.plan import SCENARIOS
from holdfast.simulations.simulation import draw_plan, run


def test_a_run_that_is_cut_short_is_not_blamed_for_what_it_had_no_time_for() -> None:
    plan = draw_plan(1, SCENARIOS["calm"])
    for lasts_s, settles in ((plan.lasts_s, True), (1.0, False)):
        result, history = run(msgspec.structs.replace(plan, lasts_s=lasts_s))
        assert (history.settle is not None) == settles
        assert result.violations == []
