"""`holdfast requests` against a gateway that serves, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import pytest

from holdfast.gateway.app import App
from tests.unit.gateway.cancelling import Gateways, begin, running, site_of
from tests.unit.gateway.server import serving
from tests.unit.support.ports import free_port
from tests.unit.support.replicas import Site


@pytest.fixture
async def app() -> AsyncIterator[App]:
    """A gateway that asks for keys."""
    async with Site() as site:
        await site_of(site, itl_ms=100)  # its requests go on for longer than any command takes
        async with Gateways(site, api_keys=("a", "b"), admin_keys=("root",)) as gateways:
            yield await gateways.start("g")


async def holdfast(*arguments: str) -> tuple[int, str, str]:
    """The command's exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "holdfast.gateway.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def test_open_requests_are_shown_and_cancelled(app: App) -> None:
    pending = begin(app, "req/1", key="a")
    await running(app, "req/1")
    async with serving(app) as port:
        url = ("--gateway", f"http://127.0.0.1:{port}/")
        code, out, _ = await holdfast("requests", "ls", *url, "--api-key", "root")
        assert code == 0
        assert "req/1" in out
        assert "app.tiny.1" in out
        code, out, _ = await holdfast("requests", "ls", *url, "--api-key", "b", "--json")
        assert (code, json.loads(out)["data"]) == (0, [])
        code, _, error = await holdfast("requests", "cancel", "req/1", *url, "--api-key", "b")
        assert (code, "No request 'req/1' is open" in error) == (1, True)
        code, out, _ = await holdfast("requests", "cancel", "req/1", "--mode", "stop", *url, "--api-key", "a")
        assert code == 0
        assert out.startswith("req/1 ended by stop after ")
        assert (await pending.answer()).events[-1].data == "[DONE]"
        code, _, error = await holdfast("requests", "ls", *url)
        assert (code, "API key" in error) == (1, True)


async def test_the_next_gateway_is_asked_where_one_does_not_answer(app: App) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with serving(app) as port:
        urls = ("--gateway", dead, "--gateway", f"http://127.0.0.1:{port}")
        code, out, _ = await holdfast("requests", "ls", *urls, "--api-key", "a", "--json")
        assert (code, json.loads(out)["data"]) == (0, [])
    code, _, error = await holdfast("requests", "ls", "--gateway", dead)
    assert code == 1
    assert error.startswith(f"holdfast: no gateway answers ({dead}: ")
