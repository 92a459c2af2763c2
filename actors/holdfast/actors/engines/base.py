"""The engine port: what a replica needs from whatever generates its tokens.

The replica calls `step` in a loop while there is work, and `drop` only between two steps. `admit` and `load` may be
called while a step is awaited: an engine whose steps run in another thread lets new streams in when the next
one begins. All calls come from the event loop's thread, and one `admit` at a time.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from holdfast.core.requests import EngineInfo, EngineLoad, EngineRequest, TokenLogprob
from holdfast.core.stream import FINISH_LENGTH, FINISH_STOP

__all__ = ["ENGINE_OVERLOADED", "FINISH_LENGTH", "FINISH_STOP", "Engine", "StepOutput"]

ENGINE_OVERLOADED = "engine_overloaded"
"""The code of a refusal that is about the engine's queue, not about the request: another engine may take it."""


class StepOutput(msgspec.Struct):
    """One step's tokens, as parallel lists: stream `keys[i]` got `tokens[i]` at `positions[i]`.

    A position counts the stream's generated tokens from 0 (accepted ones of earlier attempts included).
    `texts[i]` is what the token adds to the visible text; empty while a character is still incomplete, and
    empty for special tokens. `logprobs` is None, or has an entry (or None) per token. `finished` names the
    streams whose last token this was, with the reason; the engine has already forgotten them.
    A stream may finish without a token in this step (an end-of-sequence token is not reported).
    """

    keys: list[int] = msgspec.field(default_factory=list)
    positions: list[int] = msgspec.field(default_factory=list)
    tokens: list[int] = msgspec.field(default_factory=list)
    texts: list[str] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprob | None] | None = None
    finished: list[tuple[int, str]] = msgspec.field(default_factory=list)


class Engine(Protocol):
    """Generates tokens for several streams at once, a step at a time."""

    @property
    def info(self) -> EngineInfo: ...

    async def admit(self, key: int, request: EngineRequest) -> int:
        """Take in a stream under `key`; its prompt's length in tokens.

        Prompt work (tokenizing) happens here, prefill in the next steps.
        Raises `RequestRefused` when it can never be served (too long, bad token id, no such feature).
        """
        ...

    def drop(self, key: int) -> None:
        """Forget a stream and free its KV blocks; unknown keys are no error."""
        ...

    async def step(self) -> StepOutput:
        """Do one step for all admitted streams: at most one token each."""
        ...

    def load(self) -> EngineLoad:
        """How busy it is.

        An engine that takes many steps to read a prompt shows that by fewer `prefill_tokens_waiting`, or by more
        `kv_blocks_used`, after each: one that ever showed it, and then neither reads nor makes a token, is taken for
        sick within seconds. One that never showed any of it has two minutes.
        """
        ...

    async def close(self) -> None: ...
