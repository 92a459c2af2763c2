"""Which event loop a test runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tests.unit.support.memory_network import MemoryNetworkLoop


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests that are marked so have virtual time and a network in memory: how busy the machine is changes nothing."""
    if item.get_closest_marker("memory_network"):
        return {"memory": MemoryNetworkLoop}
    return {"real": asyncio.new_event_loop}
