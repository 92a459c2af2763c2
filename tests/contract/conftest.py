"""Real servers for the suite: one pair shared by all tests, and worlds over them or over the in-memory twins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from holdfast.store.embedded import etcd_server, nats_server
from tests.contract.worlds import (
    EtcdWorld,
    JetStreamWorld,
    LeasesWorld,
    LogWorld,
    MemoryLeasesWorld,
    MemoryLogWorld,
)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server.url


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=["memory", "jetstream"])
def log_world(request: pytest.FixtureRequest, stack: AsyncExitStack) -> LogWorld:
    """A log whose server stays up."""
    if request.param == "memory":
        return MemoryLogWorld()
    return JetStreamWorld(stack, request.getfixturevalue("nats_url"))


@pytest_asyncio.fixture(params=["memory", "jetstream"])
async def frail_log_world(request: pytest.FixtureRequest, stack: AsyncExitStack, tmp_path: Path) -> LogWorld:
    """A log with a server of its own, which can crash and recover."""
    if request.param == "memory":
        return MemoryLogWorld()
    return await JetStreamWorld.with_own_server(stack, tmp_path)


@pytest.fixture(params=["memory", "etcd"])
def leases_world(request: pytest.FixtureRequest, stack: AsyncExitStack) -> LeasesWorld:
    """Leases whose server stays up."""
    if request.param == "memory":
        return MemoryLeasesWorld()
    return EtcdWorld(stack, request.getfixturevalue("etcd_url"))


@pytest_asyncio.fixture(params=["memory", "etcd"])
async def frail_leases_world(request: pytest.FixtureRequest, stack: AsyncExitStack, tmp_path: Path) -> LeasesWorld:
    """Leases with a server of their own, which can crash, recover and compact."""
    if request.param == "memory":
        return MemoryLeasesWorld()
    return await EtcdWorld.with_own_server(stack, tmp_path)
