"""The replicas' engine in a simulation: the mock engine, which breaks in the ways in which engines do."""

from __future__ import annotations

import asyncio
from collections.abc import Set

import msgspec

from holdfast.actors.devices import InjectedEvents
from holdfast.actors.engines.base import StepOutput
from holdfast.actors.engines.mock import MockEngine, prompt_text
from holdfast.core.requests import EngineInfo, EngineLoad, EngineRequest
from holdfast.simulations.history import History
from holdfast.simulations.records import POISONED, Attempt
from holdfast.simulations.work.items import POISON
from holdfast.simulations.world.process import SimProcess

BARREN_STEP_S = 0.02
"""How long a step takes that brings nothing, in seconds."""


class OutOfMemory(RuntimeError):
    """As a GPU's allocator says it."""


class Poisoned(RuntimeError):
    """A request that the engine can't bear."""


class BreakableEngine:
    """As `Engine`. What it took in is noted in the history. `ran_out` and `cut` tell whether these faults showed."""

    def __init__(self, engine: MockEngine, process: SimProcess, replica: str, history: History) -> None:
        self._engine = engine
        self._process = process
        self._replica = replica
        self._history = history
        self._attempts: dict[int, Attempt] = {}
        self.hangs = False
        self.slow_s = 0.0
        self.out_of_memory = False
        self.cuts_answers = False
        self.sick = False
        self.barren = False
        self._barren_steps = 0
        self.ran_out = False
        self.cut = False
        self._prompts: dict[int, str] = {}
        self._poison: set[int] = set()
        self._begun: dict[int, None] = {}
        self._lost: set[int] = set()

    @property
    def device_events(self) -> InjectedEvents:
        """Where errors of its device are heard."""
        return self._engine.device_events

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def admit(self, key: int, request: EngineRequest) -> int:
        """As `Engine.admit`."""
        tokens = await self._engine.admit(key, request)
        prompt, now_s = prompt_text(request), self._process.world.now_s
        self._attempts[key] = self._history.attempt(now_s, self._replica, prompt, len(request.accepted))
        if POISON in prompt:
            self._poison.add(key)
        self._prompts[key] = prompt
        return tokens

    def drop(self, key: int) -> None:
        """As `Engine.drop`."""
        self._forget(key)
        self._engine.drop(key)

    async def step(self) -> StepOutput:
        """As `Engine.step`; or what is wrong with it."""
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        if self.barren:
            await asyncio.sleep(BARREN_STEP_S)
            self._barren_steps += 1
            return StepOutput()
        output = await self._engine.step()
        self._note(output)
        if not self._poison.isdisjoint(output.keys):
            now_s = self._process.world.now_s
            self._history.fault(now_s, POISONED, self._replica, until_s=now_s)
            raise Poisoned("an illegal memory access was encountered")
        if self.out_of_memory:
            self.ran_out = True
            raise OutOfMemory("out of memory: tried to allocate 2.00 GiB")
        self._begun.update(dict.fromkeys(output.keys))
        if self._lost:
            output = _without(output, self._lost)
        for key, _reason in output.finished:
            self._forget(key)
        if self.cuts_answers and output.tokens:
            self.cut = True
            # A driver's bug: something of the last stream is missing where its key is not.
            self._process.rng.choice((output.tokens, output.texts, output.positions)).pop()
        return output

    @property
    def begun(self) -> list[int]:
        """The streams that have had a token, and go on."""
        return [key for key in self._begun if key not in self._lost]

    def lose_stream(self, pick: float) -> None:
        """Make no more tokens for one of those that have begun, and say nothing of it. There must be one."""
        begun = self.begun
        key = begun[int(pick * len(begun))]
        self._lost.add(key)
        self._history.stream_stands_still(self._process.world.now_s, self._replica, self._prompts[key])

    def _forget(self, key: int) -> None:
        self._prompts.pop(key, None)
        self._attempts.pop(key, None)
        self._begun.pop(key, None)
        self._poison.discard(key)
        self._lost.discard(key)

    def _note(self, output: StepOutput) -> None:
        now_s = self._process.world.now_s
        for key in output.keys:
            attempt = self._attempts.get(key)
            if attempt is not None:
                attempt.last_s = now_s
        for key, _reason in output.finished:
            if key in self._attempts:
                self._attempts[key].finished = True

    def load(self) -> EngineLoad:
        """As `Engine.load`."""
        load = self._engine.load()
        return msgspec.structs.replace(load, step=load.step + self._barren_steps)

    async def check_health(self) -> None:
        """What a user's own class may have."""
        if self.sick:
            raise RuntimeError("a shard of the weights is gone")

    async def close(self) -> None:
        """As `Engine.close`."""
        await self._engine.close()

    def hang(self) -> None:
        """Stand still from the next step on."""
        self.hangs = True
        self._engine.hang()

    def resume(self) -> None:
        """Go on."""
        self.hangs = False
        self._engine.resume()


def _without(output: StepOutput, lost: Set[int]) -> StepOutput:
    """The step without what belongs to these streams."""
    kept = [at for at, key in enumerate(output.keys) if key not in lost]
    return StepOutput(
        [output.keys[at] for at in kept],
        [output.positions[at] for at in kept],
        [output.tokens[at] for at in kept],
        [output.texts[at] for at in kept],
        None if output.logprobs is None else [output.logprobs[at] for at in kept],
        [(key, reason) for key, reason in output.finished if key not in lost],
    )
