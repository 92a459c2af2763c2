"""Which link of a deployment gets a stream, and that full links are not looked at again and again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from holdfast.core.config import DeploymentConfig, EngineConfig
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.pool import Pool
from holdfast.gateway.session import StreamRun

LINKS = 50


@dataclass(eq=False)
class FakeLink:
    """A link with room or without, that counts how often it is asked for it."""

    places: int = 0
    load: int = 0
    free_for_suspects: bool = True
    crowded: bool = False
    ready: bool = True
    passed_over: bool = False
    sick: bool = False
    asked: int = field(default=0)

    @property
    def room(self) -> bool:
        self.asked += 1
        return self.places > 0

    @property
    def takes_moved(self) -> bool:
        self.asked += 1
        return self.places > 0 or self.crowded


def as_link(link: FakeLink) -> ReplicaLink:
    return cast(ReplicaLink, link)


def run_of(
    *, suspect: bool = False, avoid: FakeLink | None = None, attempts: int = 0, was_held: bool = False
) -> StreamRun:
    stream = SimpleNamespace(suspect=suspect, attempts=attempts, accepted=[])
    return cast(StreamRun, SimpleNamespace(stream=stream, avoid=avoid, was_held=was_held))


@pytest.fixture
def links() -> list[FakeLink]:
    return [FakeLink() for _ in range(LINKS)]


@pytest.fixture
def pool(links: list[FakeLink]) -> Pool:
    pool = Pool(DeploymentConfig("tiny", EngineConfig("mock")))
    pool.links = [as_link(link) for link in links]
    return pool


def chosen(pool: Pool, run: StreamRun, *among: FakeLink) -> ReplicaLink | None:
    return pool.choose(run, random.Random(1).randrange, [as_link(link) for link in among] or None)


def test_full_links_are_all_looked_at_once_and_not_again_until_one_says_that_it_has_room(
    pool: Pool, links: list[FakeLink]
) -> None:
    for _ in range(3):
        assert chosen(pool, run_of()) is None
        assert pool.places == 0
    assert sum(link.asked for link in links) <= LINKS + 4
    links[7].places = 1
    pool.exhausted = False
    assert chosen(pool, run_of(), links[7]) is as_link(links[7])
    assert sum(link.asked for link in links) <= LINKS + 5


def test_what_a_suspect_stream_may_not_use_is_left_for_others(pool: Pool, links: list[FakeLink]) -> None:
    links[7].places, links[7].free_for_suspects = 1, False
    assert chosen(pool, run_of(suspect=True)) is None
    assert chosen(pool, run_of()) is as_link(links[7])


def test_the_link_to_avoid_is_taken_when_no_other_has_room(pool: Pool, links: list[FakeLink]) -> None:
    links[7].places = links[8].places = 1
    assert chosen(pool, run_of(avoid=links[7])) is as_link(links[8])
    links[8].places = 0
    assert chosen(pool, run_of(avoid=links[7])) is as_link(links[7])


def test_a_stream_that_lost_its_replica_may_begin_where_thresholds_keep_new_ones_out(
    pool: Pool, links: list[FakeLink]
) -> None:
    links[7].crowded = links[8].crowded = True
    links[7].load = 2
    assert chosen(pool, run_of()) is None
    assert chosen(pool, run_of(attempts=1, was_held=True)) is None, "it left its place by itself"
    assert chosen(pool, run_of(attempts=1)) is as_link(links[8])
    assert chosen(pool, run_of(attempts=1, avoid=links[8])) is as_link(links[7])
    links[7].crowded = links[8].crowded = False
    assert chosen(pool, run_of(attempts=1)) is None
    asked = sum(link.asked for link in links)
    assert chosen(pool, run_of(attempts=1)) is None
    assert sum(link.asked for link in links) == asked
