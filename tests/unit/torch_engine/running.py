"""Runs requests through a real engine and records what each stream got."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.actors.engines.base import StepOutput
from holdfast.actors.engines.torch.engine import TorchEngine, load_engine
from holdfast.actors.engines.torch.settings import read_settings
from holdfast.core.requests import EngineRequest, TokenLogprob

STEPS_MAX = 2000


@dataclass
class Recorded:
    """What one stream was given."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Recorder:
    """Collects step outputs by stream."""

    def __init__(self) -> None:
        self.streams: dict[int, Recorded] = {}

    def take(self, output: StepOutput) -> None:
        for n, key in enumerate(output.keys):
            stream = self.streams.setdefault(key, Recorded())
            assert stream.finish is None, "a token after the end"
            stream.tokens.append(output.tokens[n])
            stream.positions.append(output.positions[n])
            stream.texts.append(output.texts[n])
            stream.logprobs.append(output.logprobs[n] if output.logprobs is not None else None)
        for key, reason in output.finished:
            self.streams.setdefault(key, Recorded()).finish = reason


def load(directory: Path, **settings: Any) -> TorchEngine:
    return asyncio.run(load_engine(read_settings({"model": str(directory), **settings})))


async def run(engine: TorchEngine, requests: Mapping[int, EngineRequest]) -> dict[int, Recorded]:
    """Admit all at once and step until all have ended."""
    recorder = Recorder()
    for key, request in requests.items():
        await engine.admit(key, request)
    await run_to_end(engine, recorder)
    return recorder.streams


async def run_to_end(engine: TorchEngine, recorder: Recorder) -> None:
    for _ in range(STEPS_MAX):
        load = engine.load()
        if not load.running and not load.waiting:
            return
        recorder.take(await engine.step())
    raise AssertionError(f"streams still run after {STEPS_MAX} steps")


def run_one(engine: TorchEngine, request: EngineRequest) -> Recorded:
    return asyncio.run(run(engine, {1: request}))[1]


def run_alone(directory: Path, request: EngineRequest, **settings: Any) -> Recorded:
    """The request by itself in an engine of its own."""

    async def alone() -> Recorded:
        engine = await load_engine(read_settings({"model": str(directory), **settings}))
        try:
            return (await run(engine, {1: request}))[1]
        finally:
            await engine.close()

    return asyncio.run(alone())
