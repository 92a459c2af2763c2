"""Streams are served in virtual time and over a network in memory, but where a test is about sockets themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tests.unit.support.memory_network import MemoryNetworkLoop


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """As for all tests, with the other default."""
    if item.get_closest_marker("real_sockets"):
        return {"real": asyncio.new_event_loop}
    return {"memory": MemoryNetworkLoop}
