"""A gateway that can't read the log any more serves on and says so; one that never could ends with one line."""

from __future__ import annotations

import asyncio
import logging

import pytest

from holdfast.core.errors import CorruptLog
from holdfast.gateway.cli.running import first_known
from tests.unit.gateway.client import CHAT, chat, connected
from tests.unit.gateway.processes import gateway_on
from tests.unit.support.history import application
from tests.unit.support.replicas import PATIENCE_S, Site


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application())
    return site


@pytest.mark.parametrize("subject", ["facts.operator.stray", "facts.gateway.g"])
async def test_a_gateway_serves_on_with_what_it_knows_and_says_why_it_is_unhealthy(
    site: Site, subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with site:
        await site.replica(itl_ms=5)
        async with gateway_on(site) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                await connection.post(CHAT, chat(stream=True, max_tokens=200))
                await connection.reader.readuntil(b"\n\n")
                last = site.server.last_on(subject)
                sequence = site.server.append(subject, b"hello", "stray", last.sequence if last else 0)
                body = await gateway.until(503)
                assert f"beyond sequence {sequence - 1}" in body["reasons"][0]
                assert f"event at sequence {sequence} on {subject} is not an event" in body["reasons"][0]
                assert "Repairing the log" in body["reasons"][0]
                assert b"[DONE]" in await connection.reader.readuntil(b"[DONE]")
            async with connected(gateway.port) as connection:
                await connection.post(CHAT, chat())
                assert b" 200 " in await connection.reader.readline()
    (said,) = [record for record in caplog.records if "can't be read beyond" in record.getMessage()]
    assert said.levelno == logging.ERROR
    assert "serves on" in said.getMessage()


async def test_a_gateway_that_starts_on_such_a_log_ends_with_one_line(site: Site) -> None:
    async with site:
        sequence = site.server.append("facts.operator.stray", b"hello", "stray", 0)
        with pytest.raises(BaseExceptionGroup) as caught:
            async with gateway_on(site) as gateway, asyncio.timeout(PATIENCE_S):
                await asyncio.wait([gateway.stopped])
    error = first_known(caught.value)
    assert isinstance(error, CorruptLog)
    assert f"sequence {sequence}" in str(error)
    assert "Repairing the log" in str(error)
