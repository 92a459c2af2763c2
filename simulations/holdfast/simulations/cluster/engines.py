"""The replicas' engine in a simulation: the mock engine, which breaks in the ways in which engines do."""

from __future__ import annotations

import asyncio

from holdfast.actors.engines.base import StepOutput
from holdfast.actors.engines.mock import MockEngine, prompt_text
from holdfast.core.requests import EngineInfo, EngineLoad, EngineRequest
from holdfast.simulations.history import History
from holdfast.simulations.world.process import SimProcess


class OutOfMemory(RuntimeError):
    """As a GPU's allocator says it."""


class BreakableEngine:
    """As `Engine`. What it took in is noted in the history. `ran_out` and `cut` tell whether these faults showed."""

    def __init__(self, engine: MockEngine, process: SimProcess, replica: str, history: History) -> None:
        self._engine = engine
        self._process = process
        self._replica = replica
        self._history = history
        self.slow_s = 0.0
        self.out_of_memory = False
        self.cuts_answers = False
        self.ran_out = False
        self.cut = False

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def admit(self, key: int, request: EngineRequest) -> int:
        """As `Engine.admit`."""
        tokens = await self._engine.admit(key, request)
        self._history.attempt(self._process.world.now_s, self._replica, prompt_text(request), len(request.accepted))
        return tokens

    def drop(self, key: int) -> None:
        """As `Engine.drop`."""
        self._engine.drop(key)

    async def step(self) -> StepOutput:
        """As `Engine.step`; or what is wrong with it."""
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        output = await self._engine.step()
        if self.out_of_memory:
            self.ran_out = True
            raise OutOfMemory("out of memory: tried to allocate 2.00 GiB")
        if self.cuts_answers and output.tokens:
            self.cut = True
            # A driver's bug: something of the last stream is missing where its key is not.
            self._process.rng.choice((output.tokens, output.texts, output.positions)).pop()
        return output

    def load(self) -> EngineLoad:
        """As `Engine.load`."""
        return self._engine.load()

    async def close(self) -> None:
        """As `Engine.close`."""
        await self._engine.close()

    def hang(self) -> None:
        """Stand still from the next step on."""
        self._engine.hang()

    def resume(self) -> None:
        """Go on."""
        self._engine.resume()
