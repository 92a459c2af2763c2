"""Clients that connect and vanish at random moments leave nothing behind: the quick size of `make bench-vanish`."""

from __future__ import annotations

import asyncio

import psutil

from examples.bench.vanish import ENGINE_ARGS, Moment, measure, watched_below
from tests.acceptance.conftest import Start

CLIENTS = 300


async def test_nothing_is_left_of_clients_that_vanish(start_cluster: Start) -> None:
    cluster = start_cluster(engine_args=ENGINE_ARGS)
    watched = watched_below(psutil.Process(cluster.process.pid))
    assert len(watched) == 4
    report = await asyncio.to_thread(measure, watched, cluster.port, "mock", CLIENTS, 1)
    assert [sum(moments.values()) for moments in report.moments] == [CLIENTS, CLIENTS]
    assert all(moments[moment] > 0 for moments in report.moments for moment in Moment)
    by_name = {row.process.split()[0]: row for row in report.rows}
    assert by_name["gateway"].peak.requests > 0
    assert any(row.peak.kv_blocks > 0 for row in report.rows)
    assert {name: row.before.tasks > 0 for name, row in by_name.items()} == dict.fromkeys(by_name, True)
    assert set(by_name) == {"gateway", "node", "replica"}
    assert report.failures() == []
