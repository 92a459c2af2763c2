"""A log that runs full: told in time by `doctor` and `status`, and fatal for `up`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.actors.clock import SystemClock
from holdfast.actors.identity import Identity
from holdfast.actors.writer import EventAppender
from holdfast.core.cluster import Head
from holdfast.core.entries import GENESIS
from holdfast.core.errors import LogFull
from holdfast.core.events import DeleteRequested
from holdfast.gateway.settings import load_settings
from holdfast.store.embedded import free_port, nats_server
from holdfast.store.jetstream import JetStreamLog
from tests.acceptance.conftest import holdfast, run_holdfast

LIMIT_BYTES = 1 << 16
SMALL = {"HOLDFAST_NATS__MAX_BYTES": str(LIMIT_BYTES)}
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A log server of one small stream, which is filled to the brim."""
    async with nats_server(tmp_path / "nats") as server:
        settings = load_settings(nats={"urls": (server.url,), "max_bytes": LIMIT_BYTES})
        log = await JetStreamLog.open(settings.log_settings())
        identity = Identity("holdfast", "operator", "filler", "1", "host", 1)
        appender = EventAppender(log, SystemClock(), identity, identity.fact_subject, waits_when_full=False)
        with pytest.raises(LogFull, match="HOLDFAST_NATS__MAX_BYTES"):
            await _fill(appender)
        await log.close()
        yield server.url


async def _fill(appender: EventAppender) -> None:
    head = Head(0, GENESIS)
    while True:
        head = await appender.append(appender.event(DeleteRequested("nothing"), None), head)


async def test_a_full_log_is_told_and_ends_up_with_the_setting_to_raise(url: str, tmp_path: Path) -> None:
    there = ["--nats", url, "--etcd", NOWHERE]
    shown = holdfast("status", *there, environment=SMALL)
    assert shown.exit_code == 1
    assert "the log is full" in shown.stdout
    rows = json.loads(holdfast("doctor", "--json", *there, environment=SMALL).stdout)
    (room,) = [row for row in rows if row["check"] == "room in log"]
    assert room["result"] == "fail"
    ended = run_holdfast(
        *("up", "--engine", "mock", "--port", str(free_port()), "--data-dir", str(tmp_path / "d"), "--nats", url),
        environment=SMALL,
    )
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "HOLDFAST_NATS__MAX_BYTES" in ended.stderr
    assert "snapshot" not in ended.stdout
