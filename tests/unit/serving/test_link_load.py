"""How busy a gateway takes a replica to be: by its last report, and by what it took in since."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from holdfast.core.admission import Reason
from holdfast.core.pace import Pace
from holdfast.core.requests import EngineInfo, EngineLoad
from holdfast.core.thresholds import NONE_SET, Thresholds
from holdfast.gateway.link_load import LinkLoad
from holdfast.gateway.session import StreamRun

INFO = EngineInfo("m", 1_000, 100, 8, True, "none")
LIMIT = Thresholds(active_prefill_tokens_threshold=500)


def run() -> StreamRun:
    """A stream on the replica that has brought nothing yet."""
    return cast(StreamRun, SimpleNamespace(link=object(), stream=SimpleNamespace(proven=False)))


def load_with(thresholds: Thresholds = LIMIT) -> LinkLoad:
    load = LinkLoad(thresholds)
    load.introduced(INFO)
    load.reported(report(), 0, Pace())
    return load


def report(prefill_tokens: int = 0) -> EngineLoad:
    return EngineLoad(0, 0, 0, 100, 1, prefill_tokens)


@pytest.mark.parametrize(("thresholds", "most"), [(LIMIT, 500), (NONE_SET, 1_000)])
def test_prompts_that_came_since_the_last_report_keep_others_away(thresholds: Thresholds, most: int) -> None:
    load = load_with(thresholds)
    load.taken_in(run(), most)
    assert (load.spare(1), load.why_busy(1)) == (7, None)
    load.taken_in(run(), 1)
    assert (load.spare(2), load.why_busy(2)) == (0, Reason.PREFILL_TOKENS)


def test_what_the_next_report_says_of_them_counts_alone() -> None:
    load = load_with()
    load.taken_in(run(), 400)
    load.reported(report(prefill_tokens=300), 1, Pace())
    load.taken_in(run(), 200)
    assert load.spare(2) == 6
    load.taken_in(run(), 1)
    assert load.spare(3) == 0
    load.reported(report(), 3, Pace())
    assert load.spare(3) == 5


def test_a_prompt_that_was_read_or_whose_stream_has_left_counts_no_longer() -> None:
    load = load_with()
    read, left = run(), run()
    load.taken_in(read, 501)
    load.taken_in(left, 501)
    assert load.spare(2) == 0
    read.stream.proven = True  # type: ignore[misc]  # it is no real stream
    assert load.spare(2) == 0
    left.link = None
    assert (load.spare(1), load.why_busy(1)) == (7, None)


def test_nothing_is_kept_of_a_replica_that_has_not_reported_or_is_out_of_sight() -> None:
    load = load_with()
    load.taken_in(run(), 501)
    load.forget()
    load.taken_in(run(), 501)
    load.reported(report(), 0, Pace())
    assert load.spare(0) == 8


def test_a_threshold_that_is_changed_counts_for_them_too() -> None:
    load = load_with()
    load.taken_in(run(), 400)
    assert load.spare(1) == 7
    load.set_thresholds(Thresholds(active_prefill_tokens_threshold=300))
    assert load.spare(1) == 0
