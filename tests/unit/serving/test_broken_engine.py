"""An engine whose answers make no sense ends its replica: its tokens would go to other streams."""

from __future__ import annotations

import asyncio
import random

import pytest

from holdfast.actors.engines.base import StepOutput
from holdfast.actors.engines.mock import MockEngine, parse_settings
from holdfast.actors.replica import EngineBroken
from tests.unit.support.history import application
from tests.unit.support.memory_network import MemoryNetworkLoop
from tests.unit.support.replicas import Site, answer_to, ask

LISTS = ("keys", "positions", "tokens", "texts", "logprobs")


class ShortEngine(MockEngine):
    """From its third step on, something of the last stream is missing."""

    def __init__(self, what: str) -> None:
        super().__init__(parse_settings({}), "tiny", random.Random(1))
        self._what = what
        self._made = 0

    async def step(self) -> StepOutput:
        output = await super().step()
        self._made += 1
        if self._made > 2:
            getattr(output, self._what).pop()
        return output


async def loses_its_engine(what: str) -> None:
    site = Site()
    site.deploy(application(replicas=2))
    async with site:
        broken = await site.replica(engine=ShortEngine(what))
        gateway = await site.gateway()
        asking = asyncio.create_task(answer_to(gateway, ask(logprobs=1)))
        await asyncio.wait([broken._running])
        error = broken._running.exception()
        assert isinstance(error, BaseExceptionGroup)
        assert error.subgroup(EngineBroken) is not None
        broken.cut()
        await site.replica()
        (await asking).check(ask(logprobs=1))


@pytest.mark.parametrize("what", LISTS)
def test_it_ends_and_the_stream_goes_on_elsewhere(what: str) -> None:
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(loses_its_engine(what))
