"""What is known of a replica to judge it by, and for how long: few requests, slow ones, and those nobody waited for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from holdfast.core.admission import Service
from holdfast.core.outliers import ATTEMPTS_MIN, RECORD_S, Outliers, Showing
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
    well = Showing(ATTEMPTS_MIN, 0, ATTEMPTS_MIN, OTHERS_S)
    out, _ = Outliers(10.0, 300.0).look({"bad": bad, "a": well, "b": well}, 0.0)
    return [one.replica for one in out]


async def test_one_long_prompt_among_others_says_nothing() -> None:
    assert not judged(Attempts().answered(3.0).answered(OTHERS_S, times=11).show())
    assert judged(Attempts().answered(3.0, times=12).show()) == ["bad"]


async def test_who_takes_over_streams_that_have_tokens_is_not_taken_for_slow() -> None:
    service = Service()
    attempts = Attempts(LinkRecord(service)).answered(2.0, had=2_000, times=20).answered(OTHERS_S, times=ATTEMPTS_MIN)
    showing = attempts.show()
    assert (showing.well, showing.first_count) == (20 + ATTEMPTS_MIN, ATTEMPTS_MIN)
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
    attempts.record.broke(ATTEMPTS_MIN - 1)
    assert attempts.show(0.0).failed == ATTEMPTS_MIN - 1
    attempts.record.broke()
    assert attempts.show(INTERVAL_S).failed == ATTEMPTS_MIN
    assert attempts.show(2 * INTERVAL_S).failed == 0, "they were judged by"
    attempts.record.broke()
    assert attempts.show(INTERVAL_S + RECORD_S - 1).failed == 1
    assert attempts.show(INTERVAL_S + RECORD_S).failed == 1
    assert attempts.show(INTERVAL_S + RECORD_S + 1).failed == 0, "they are too old"


async def test_few_first_tokens_are_kept_where_there_are_many_attempts() -> None:
    attempts, counts = Attempts(), list[tuple[int, int]]()
    for number in range(3):
        attempts.answered(OTHERS_S, times=4).answered(2.0, had=9, times=ATTEMPTS_MIN)
        showing = attempts.show(number * INTERVAL_S)
        counts.append((showing.well, showing.first_count))
    assert counts == [(14, 4), (14, 8), (14, 12)]
    assert attempts.show(3 * INTERVAL_S) == Showing(0, 0, 0, None)


async def test_no_more_than_the_last_first_tokens_are_kept() -> None:
    showing = Attempts().answered(9.0, times=FIRSTS_MAX).answered(1.0, times=FIRSTS_MAX).show()
    assert (showing.well, showing.first_count) == (2 * FIRSTS_MAX, FIRSTS_MAX)
    assert showing.first_s == pytest.approx(1.0, abs=0.2)


async def test_a_replica_that_fails_everything_is_found_whatever_the_rate() -> None:
    """Nine attempts of each in an interval are too few, those of two intervals are not."""
    outliers, bad, well = Outliers(10.0, 300.0), Attempts(), Attempts()
    found = []
    for look in range(2):
        bad.record.broke(ATTEMPTS_MIN - 1)
        well.answered(OTHERS_S, times=ATTEMPTS_MIN - 1)
        now_s = look * INTERVAL_S
        out, _ = outliers.look({"bad": bad.show(now_s), "well": well.show(now_s)}, now_s)
        found.append([one.replica for one in out])
    assert found == [[], ["bad"]]


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
