"""An engine of your own, as small as it gets: it says the prompt's words back, one a step.

    cd examples
    holdfast up --engine class --engine-args '{"import_path": "engine_class:Echo", "greeting": "You said:"}'

The class must be importable where the node runs. Holdfast makes it with the arguments other than `import_path`, and
calls its methods in one event loop (`holdfast.actors.engines.base.Engine` says when). `check_health` is optional: it is
called every `health_check_period_s`, and a replica whose engine raises there `health_check_failures` times in a row is
replaced. This one fails while a file named by `sick_while` exists, to try that out.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from holdfast.actors.engines.base import FINISH_LENGTH, FINISH_STOP, StepOutput
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineInfo, EngineLoad, EngineRequest

CONTEXT_TOKENS = 4096
STREAMS = 64


class Echo:
    """Its tokens are the numbers of the words that it will say."""

    def __init__(self, greeting: str = "", pace_s: float = 0.01, sick_while: str = "") -> None:
        self._greeting = greeting.split()
        self._pace_s = pace_s
        self._sick_while = sick_while
        self._streams: dict[int, tuple[list[str], int, int]] = {}
        self._steps = 0

    @property
    def info(self) -> EngineInfo:
        """What it serves. The same prompt always gives the same words, so a stream can go on at any replica."""
        return EngineInfo("echo", CONTEXT_TOKENS, CONTEXT_TOKENS, STREAMS, True, "none")

    async def admit(self, key: int, request: EngineRequest) -> int:
        """Take a stream in, after the tokens that an earlier attempt brought."""
        words = self._greeting + _text(request).split()
        if len(words) > CONTEXT_TOKENS:
            raise RequestRefused("The prompt is too long.", code="context_length_exceeded", param="prompt")
        self._streams[key] = (words, len(request.accepted), request.max_tokens or len(words))
        return len(words)

    def drop(self, key: int) -> None:
        """Forget a stream."""
        self._streams.pop(key, None)

    async def step(self) -> StepOutput:
        """The next word of each stream."""
        await asyncio.sleep(self._pace_s)
        self._steps += 1
        output = StepOutput()
        for key, (words, position, end) in list(self._streams.items()):
            word = words[position % len(words)] if words else ""
            output.keys.append(key)
            output.positions.append(position)
            output.tokens.append(position)
            output.texts.append(f" {word}")
            self._streams[key] = (words, position + 1, end)
            if position + 1 >= end:
                output.finished.append((key, FINISH_STOP if end == len(words) else FINISH_LENGTH))
                del self._streams[key]
        return output

    def load(self) -> EngineLoad:
        """How busy it is.

        It has no prompts to read. An engine that has, and can tell, adds `prefill_tokens_waiting`: the prompt tokens
        that it has not read yet, fewer after each step. One that steps without a token and without reading is then
        found within `canary_wait_s` + `canary_timeout_s`. One that always says 0 here, for instance since another
        server reads, is given 120 s for a first token.
        """
        return EngineLoad(len(self._streams), 0, len(self._streams), STREAMS, self._steps)

    def check_health(self) -> None:
        """Raises while it is sick. It may be a coroutine function, too."""
        if self._sick_while and Path(self._sick_while).exists():
            raise RuntimeError(f"{self._sick_while} is there")

    async def close(self) -> None:
        """Nothing to free."""


def _text(request: EngineRequest) -> str:
    if request.messages is not None:
        return " ".join(str(message.get("content", "")) for message in request.messages)
    return request.prompt if request.prompt is not None else " ".join(map(str, request.prompt_tokens or []))
