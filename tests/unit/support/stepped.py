"""Engines whose steps a test lets through one by one, and what is left in them after each."""

from __future__ import annotations

import asyncio

from holdfast.actors.engines.base import Engine, StepOutput
from holdfast.core.requests import EngineInfo, EngineLoad, EngineRequest
from tests.unit.support.replicas import LocalReplica, eventually


class Stepped:
    """As `Engine`: a step begins, and does its work only once it is let through.

    `steps` are those done, `admitted` the streams taken in.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.steps = 0
        self.admitted = 0
        self.under_way = False
        self._permits = asyncio.Semaphore(0)

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    async def admit(self, key: int, request: EngineRequest) -> int:
        prompt_tokens = await self.engine.admit(key, request)
        self.admitted += 1
        return prompt_tokens

    def drop(self, key: int) -> None:
        self.engine.drop(key)

    async def step(self) -> StepOutput:
        self.under_way = True
        await self._permits.acquire()
        output = await self.engine.step()
        self.under_way = False
        self.steps += 1
        return output

    def load(self) -> EngineLoad:
        return self.engine.load()

    async def close(self) -> None:
        await self.engine.close()

    @property
    def blocks(self) -> int:
        """KV blocks in use."""
        return self.engine.load().kv_blocks_used

    async def let(self, steps: int = 1) -> None:
        """Let so many steps through, one after the other."""
        for due in range(self.steps + 1, self.steps + steps + 1):
            await eventually(lambda: self.under_way)
            self._permits.release()
            await self._have_been(due)

    async def _have_been(self, steps: int) -> None:
        await eventually(lambda: self.steps >= steps)


async def freed_after_one_step(replica: LocalReplica, stepped: Stepped) -> None:
    """Nobody wants anything of the replica any more: its engine has no block in use after the step under way."""
    await eventually(lambda: stepped.under_way)
    await eventually(lambda: not replica.replica._held.by_key)
    assert stepped.blocks > 0
    done = stepped.steps
    await stepped.let()
    await eventually(lambda: stepped.blocks == 0)
    assert stepped.steps == done + 1
    assert not stepped.under_way
    load = stepped.load()
    assert (load.running, load.waiting, load.prefill_tokens_waiting) == (0, 0, 0)
