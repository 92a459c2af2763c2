"""What is known of a replica to judge it by, and for how long: few requests, slow ones, and those nobody waited for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from holdfast.core.admission import Service
from holdfast.core.outliers import USUAL, Outliers, Showing
from holdfast.core.rows import ATTEMPTS, FIRSTS, LASTS_S, NO_ROW, Last
from holdfast.gateway.backend import DEFAULT_CLAIM
from holdfast.gateway.link_record import FIRSTS_MAX, LinkRecord
from holdfast.gateway.session import StreamRun
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, Site, answer_to, ask, eventually, opened

INTERVAL_S = 5.0
OTHERS_S = 0.05
"""How long a first token takes on a replica that is well (seconds)."""


@pytest.fixture
def site() -> Site:
    return Site()


@dataclass
class Attempts:
    """A replica's record, and attempts that are made on it, each of which began so long ago as it says."""

    record: LinkRecord = field(default_factory=LinkRecord)

    def begun(self, ago_s: float, accepted: int = 0) -> StreamRun:
        began_s = asyncio.get_running_loop().time() - ago_s
        stream = SimpleNamespace(accepted=[0] * accepted)
        run = SimpleNamespace(claim=DEFAULT_CLAIM, began_s=began_s, awaits_first=False, stream=stream)
        self.record.began(cast(StreamRun, run))
        return cast(StreamRun, run)

    def answered(self, first_s: float, had: int = 0, *, times: int = 1) -> Attempts:
        for _ in range(times):
            run = self.begun(first_s, had + 1)
            self.record.first_token(run)
            self.record.finished(run)
        return self

    def left(self, after_s: float, *, times: int = 1) -> Attempts:
        for _ in range(times):
            self.record.left(self.begun(after_s))
        return self

    def show(self, now_s: float = 0.0) -> Showing:
        return self.record.show(now_s)


def judged(bad: Showing) -> list[str]:
    """Who is passed over, among two that are well."""
    well = Showing(USUAL.requests_min, 0, USUAL.requests_min, OTHERS_S)
    out, _ = Outliers().look({"bad": bad, "a": well, "b": well}, 0.0)
    return [one.replica for one in out]


async def test_one_long_prompt_among_others_says_nothing() -> None:
    assert not judged(Attempts().answered(3.0).answered(OTHERS_S, times=11).show())
    assert judged(Attempts().answered(3.0, times=12).show()) == ["bad"]


async def test_who_takes_over_streams_that_have_tokens_is_not_taken_for_slow() -> None:
    service = Service()
    attempts = (
        Attempts(LinkRecord(service)).answered(2.0, had=2_000, times=20).answered(OTHERS_S, times=USUAL.requests_min)
    )
    showing = attempts.show()
    assert (showing.well, showing.first_count) == (20 + USUAL.requests_min, USUAL.requests_min)
    assert showing.first_s == pytest.approx(OTHERS_S, abs=0.02)
    assert service.first_s == pytest.approx(OTHERS_S, abs=0.02), "nor does the deployment seem slower"


async def test_a_replica_that_is_too_slow_for_anybody_to_wait_is_taken_for_slow() -> None:
    service = Service()
    Attempts(LinkRecord(service)).answered(OTHERS_S)
    showing = Attempts(LinkRecord(service)).left(4.0, times=12).show()
    assert (showing.well, showing.failed, showing.first_count) == (0, 0, 12)
    assert judged(showing) == ["bad"]


async def test_who_leaves_before_anybody_would_have_a_token_says_nothing() -> None:
    service = Service()
    Attempts(LinkRecord(service)).answered(3.0)
    assert Attempts(LinkRecord(service)).left(1.0, times=40).show() == Showing(0, 0, 0, None)
    assert Attempts().left(9.0, times=40).show() == Showing(0, 0, 0, None), "nobody had one ever"


async def test_who_leaves_while_a_stream_that_moved_begins_again_says_nothing() -> None:
    attempts = Attempts().answered(OTHERS_S)
    attempts.record.left(attempts.begun(5.0, accepted=100))
    showing = attempts.show()
    assert (showing.well, showing.failed, showing.first_count) == (1, 0, 1)


async def test_few_attempts_are_kept_until_they_are_enough_or_too_old() -> None:
    attempts = Attempts()
    attempts.record.broke(USUAL.requests_min - 1)
    assert attempts.show(0.0).failed == USUAL.requests_min - 1
    attempts.record.broke()
    assert attempts.show(INTERVAL_S).failed == USUAL.requests_min
    assert attempts.show(2 * INTERVAL_S).failed == 0, "they were judged by"
    attempts.record.broke()
    assert attempts.show(INTERVAL_S + USUAL.window_s - 1).failed == 1
    assert attempts.show(INTERVAL_S + USUAL.window_s).failed == 1
    assert attempts.show(INTERVAL_S + USUAL.window_s + 1).failed == 0, "they are too old"


async def test_few_first_tokens_are_kept_where_there_are_many_attempts() -> None:
    attempts, counts = Attempts(), list[tuple[int, int]]()
    for number in range(3):
        attempts.answered(OTHERS_S, times=4).answered(2.0, had=9, times=USUAL.requests_min)
        showing = attempts.show(number * INTERVAL_S)
        counts.append((showing.well, showing.first_count))
    assert counts == [(14, 4), (14, 8), (14, 12)]
    showing = attempts.show(3 * INTERVAL_S)
    assert (showing.attempts, showing.first_count, showing.first_s) == (0, 0, None)


async def test_no_more_than_the_last_first_tokens_are_kept() -> None:
    showing = Attempts().answered(9.0, times=FIRSTS_MAX).answered(1.0, times=FIRSTS_MAX).show()
    assert (showing.well, showing.first_count) == (2 * FIRSTS_MAX, FIRSTS_MAX)
    assert showing.first_s == pytest.approx(1.0, abs=0.2)


async def test_a_replica_that_fails_everything_is_found_whatever_the_rate() -> None:
    """Nine attempts of each in an interval are too few, those of two intervals are not."""
    outliers, bad, well = Outliers(), Attempts(), Attempts()
    found = []
    for look in range(2):
        bad.record.broke(USUAL.requests_min - 1)
        well.answered(OTHERS_S, times=USUAL.requests_min - 1)
        now_s = look * INTERVAL_S
        out, _ = outliers.look({"bad": bad.show(now_s), "well": well.show(now_s)}, now_s)
        found.append([one.replica for one in out])
    assert found == [[], ["bad"]]


async def test_what_a_replica_showed_last_is_kept_though_it_was_judged_by_it_and_until_it_begins_anew() -> None:
    attempts = Attempts().answered(OTHERS_S, times=USUAL.requests_min)
    attempts.record.broke(3)
    attempts.record.broke(0)
    for now_s in (0.0, INTERVAL_S):
        row = attempts.show(now_s + asyncio.get_running_loop().time()).row
        assert (row.attempts, row.failed, row.firsts) == (ATTEMPTS, 1, FIRSTS), "three were lost at once, by one cause"
    attempts.record.reset()
    assert attempts.show().row == NO_ROW


async def test_a_replica_that_fails_all_of_few_requests_is_found() -> None:
    """One request in four minutes of each replica: nothing of a minute is enough to judge by."""
    outliers, bad, well = Outliers(), Last(), Last()
    found = dict[float, list[str]]()
    for number in range(ATTEMPTS):
        now_s = number * LASTS_S / ATTEMPTS
        bad.ended(now_s, well=False)
        well.ended(now_s, well=True)
        showings = {name: Showing(0, 0, 0, None, last.row(now_s)) for name, last in (("bad", bad), ("well", well))}
        found[now_s] = [one.replica for one in outliers.look(showings, now_s)[0]]
    assert [*found.values()] == [[]] * (ATTEMPTS - 1) + [["bad"]]


# --- with replicas --------------------------------------------------------------------------------------


async def test_a_stream_that_moved_is_no_first_token_of_where_it_goes_and_one_without_tokens_is(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=2))
        first, second = await site.replica(itl_ms=5), await site.replica(itl_ms=5)
        gateway = await site.gateway()
        links = [gateway._links[replica.name] for replica in (first, second)]
        async with opened(gateway, ask(tokens=10_000)) as session:
            await Answer().read(session, tokens=3)
            (busy,) = [link for link in links if link.in_flight]
            (other,) = [link for link in links if link is not busy]
            (run,) = busy.runs()
            had = len(run.stream.accepted)
            {first.name: first, second.name: second}[busy.replica].cut()
            await eventually(lambda: len(run.stream.accepted) > had + 1)
            assert run.link is other
            assert busy.record.show(0.0).failed == 1
            assert other.record.show(0.0).first_count == 0
        await eventually(lambda: busy.room)
        for _ in range(4):
            (await answer_to(gateway, ask())).check(ask())
        assert sum(link.record.show(0.0).first_count for link in links) == 5
