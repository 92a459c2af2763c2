"""Clients that connect and vanish at random moments leave nothing behind: the quick size of `make bench-vanish`."""

from __future__ import annotations

import asyncio

import psutil

from examples.bench.vanish import ENGINE_ARGS, Moment, measure, watched_below
from tests.acceptance.conftest import Start

CLIENTS = 300
GROWTH_MAX_MIB = 24.0
"""Memory that an allocator keeps for next time; 300 answers or prompts that were kept would be more."""


async def test_nothing_is_left_of_clients_that_vanish(start_cluster: Start) -> None:
    cluster = start_cluster(engine_args=ENGINE_ARGS)
    watched = watched_below(psutil.Process(cluster.process.pid))
    assert len(watched) == 3
    report = await asyncio.to_thread(measure, watched, cluster.port, "mock", CLIENTS, 1)
    assert sum(report.moments.values()) == CLIENTS
    assert all(report.moments[moment] > 0 for moment in Moment)
    gateway, *replicas = report.rows
    assert gateway.peak.requests > 0
    assert any(row.peak.kv_blocks > 0 for row in replicas)
    for row in report.rows:
        assert row.after.is_back(row.before), row
        assert row.grown_mib < GROWTH_MAX_MIB, row
