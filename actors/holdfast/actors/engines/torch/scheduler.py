"""Which rows each step computes: continuous batching, as plain bookkeeping without tensors.

A stream is its token ids and how many of them the KV cache has seen (`computed`). What is missing is the work:
one row for a stream that decodes, many for one whose prompt isn't through yet. The row of a stream's last token
gives its next one. So a new, a half-prefilled, a decoding and a resumed stream are all the same thing.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.actors.engines.base import ENGINE_OVERLOADED
from holdfast.actors.engines.torch.cache import BlockPool
from holdfast.actors.engines.torch.grammars import Guide
from holdfast.actors.engines.torch.tokenizer import StreamDecoder
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineRequest


@dataclass(slots=True)
class Stream:
    """An admitted stream. `tokens` are prompt, accepted and generated ids; it ends at `tokens_max` of them."""

    key: int
    request: EngineRequest
    tokens: list[int]
    prompt_tokens: int
    tokens_max: int
    decoder: StreamDecoder
    counts: Counter[int] | None = None
    guide: Guide | None = None
    computed: int = 0
    slot: int = -1
    blocks: list[int] = field(default_factory=list)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def is_full(self) -> bool:
        return len(self.tokens) >= self.tokens_max


class Span(NamedTuple):
    """Consecutive rows of one stream: `rows` of them from position `start`."""

    stream: Stream
    start: int
    rows: int


class Scheduler:
    """Streams in order of admission: some run, the rest wait for a slot and for blocks.

    First come, first served, without exceptions: a stream that needs many blocks is not overtaken by smaller
    ones, so it can't starve.
    """

    def __init__(self, pool: BlockPool, *, streams_max: int, waiting_max: int, prefill_tokens_max: int) -> None:
        self._pool = pool
        self._streams_max = streams_max
        self._waiting_max = waiting_max
        self._prefill_tokens_max = prefill_tokens_max
        self._free_slots = list(range(streams_max - 1, -1, -1))
        self._waiting: deque[Stream] = deque()
        self._running: dict[int, Stream] = {}

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def prefill_tokens_waiting(self) -> int:
        """Tokens of prompts, and of earlier attempts, that the KV cache has not seen."""
        running = sum(stream.missing for stream in self._running.values() if stream.missing > 1)
        return running + sum(stream.missing for stream in self._waiting)

    def check_room(self, arriving: int = 0) -> None:
        """Raises `RequestRefused` (`engine_overloaded`) when no further stream may wait beside those `arriving`."""
        if self.running + self.waiting + arriving >= self._streams_max + self._waiting_max:
            raise RequestRefused(
                f"The engine has {self.running} streams running and {self.waiting} waiting, which is its limit. "
                "Try again later.",
                code=ENGINE_OVERLOADED,
            )

    def admit(self, stream: Stream) -> None:
        """Queue the stream. Raises `RequestRefused` (`engine_overloaded`)."""
        self.check_room()
        assert stream.key not in self._running, "a stream's key is in use"
        self._waiting.append(stream)

    def drop(self, key: int) -> None:
        """Forget the stream wherever it is; unknown keys are no error."""
        stream = self._running.pop(key, None)
        if stream is None:
            self._waiting = deque(other for other in self._waiting if other.key != key)
            return
        self._pool.release(stream.blocks)
        self._free_slots.append(stream.slot)

    def take_full(self) -> list[Stream]:
        """Remove and return the waiting streams that were resumed at their very end: there is nothing to do."""
        full = [stream for stream in self._waiting if stream.is_full]
        if full:
            self._waiting = deque(stream for stream in self._waiting if not stream.is_full)
        return full

    def start(self) -> list[Stream]:
        """Move waiting streams to running, as far as slots and blocks go; those that moved."""
        started: list[Stream] = []
        while self._waiting and self._free_slots:
            stream = self._waiting[0]
            # The last token's keys and values are never needed: nothing comes after it.
            blocks = self._pool.reserve(stream.tokens_max - 1)
            if blocks is None:
                break
            self._waiting.popleft()
            stream.slot, stream.blocks = self._free_slots.pop(), blocks
            self._running[stream.key] = stream
            started.append(stream)
        return started

    def plan(self) -> list[Span]:
        """The next step's rows: every decoding stream's one, and prompt rows up to the limit, oldest first."""
        spans: list[Span] = []
        prefill_left = self._prefill_tokens_max
        for stream in self._running.values():
            count = stream.missing
            if count > 1:
                count = min(count, prefill_left)
                prefill_left -= count
            if count:
                spans.append(Span(stream, stream.computed, count))
        return spans
