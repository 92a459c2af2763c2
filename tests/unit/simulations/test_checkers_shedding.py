"""Load that is shed in the wrong order is found, and in the right one not."""

from __future__ import annotations

import pytest

from holdfast.core.admission import Reason
from tests.unit.simulations.recorded import Run, answered, broken, only, well


def rejected(priority: str, reason: str) -> Run:
    run = well()
    request = answered(7)
    request.priority = priority
    request.tries[0].rejected = reason
    run.history.request(request)
    return run


@pytest.mark.parametrize("reason", [Reason.DISPLACED, Reason.PRIORITY])
def test_a_critical_request_that_gave_way_is_found(reason: Reason) -> None:
    assert only(broken(rejected("critical", reason)), "shedding").endswith(f"as {reason}")


@pytest.mark.parametrize(
    ("priority", "reason"),
    [("critical", Reason.QUEUE_AGE), ("critical", ""), ("batch", Reason.DISPLACED), ("", Reason.PRIORITY)],
)
def test_others_may_give_way_and_a_critical_request_may_find_no_room(priority: str, reason: str) -> None:
    assert not broken(rejected(priority, reason))
