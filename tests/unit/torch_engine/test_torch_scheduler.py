"""KV blocks are accounted for exactly, and streams run in the order in which they came."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.actors.engines.torch.cache import ZERO_BLOCK, BlockPool
from holdfast.actors.engines.torch.scheduler import Scheduler, Stream
from holdfast.actors.engines.torch.tokenizer import StreamDecoder
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineRequest

BLOCKS, BLOCK_TOKENS, STREAMS_MAX, WAITING_MAX, PREFILL_MAX = 7, 4, 3, 4, 5


def stream_of(key: int, prompt: int, completion: int) -> Stream:
    return Stream(
        key=key,
        request=EngineRequest(),
        tokens=[0] * prompt,
        prompt_tokens=prompt,
        tokens_max=prompt + completion,
        decoder=StreamDecoder([]),
    )


def new_scheduler() -> tuple[BlockPool, Scheduler]:
    pool = BlockPool(BLOCKS, BLOCK_TOKENS)
    scheduler = Scheduler(pool, streams_max=STREAMS_MAX, waiting_max=WAITING_MAX, prefill_tokens_max=PREFILL_MAX)
    return pool, scheduler


class SchedulerMachine(RuleBasedStateMachine):
    """Streams come, step and go at random; the accounts must be right after each of it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.scheduler = new_scheduler()
        self.running: dict[int, Stream] = {}
        self.waiting: list[Stream] = []
        self.keys = 0

    @rule(prompt=st.integers(1, 20), completion=st.integers(1, 8))
    def admit(self, prompt: int, completion: int) -> None:
        self.keys += 1
        stream = stream_of(self.keys, prompt, completion)
        if len(self.running) + len(self.waiting) == STREAMS_MAX + WAITING_MAX:
            with pytest.raises(RequestRefused):
                self.scheduler.admit(stream)
            return
        self.scheduler.admit(stream)
        self.waiting.append(stream)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(1, self.keys + 1))
        self.scheduler.drop(key)
        self._forget(key)

    @rule()
    def step(self) -> None:
        self._start()
        spans = self.scheduler.plan()
        assert sum(span.rows for span in spans if span.stream.missing > 1) <= PREFILL_MAX
        decoding = {stream.key for stream in self.running.values() if stream.missing == 1}
        assert decoding <= {span.stream.key for span in spans}
        assert bool(spans) == bool(self.running), "a step with streams always makes progress"
        for stream, start, rows in spans:
            assert start == stream.computed
            stream.computed += rows
            if stream.missing == 0:
                self._give_token(stream)

    def _start(self) -> None:
        for stream in self.scheduler.start():
            assert stream is self.waiting.pop(0), "a stream was overtaken"
            self.running[stream.key] = stream
        if self.waiting and len(self.running) < STREAMS_MAX:
            needed = self.pool.blocks_for(self.waiting[0].tokens_max - 1)
            assert needed > BLOCKS - self.pool.used, "a stream waits for no reason"

    def _give_token(self, stream: Stream) -> None:
        stream.tokens.append(0)
        if stream.is_full:
            self.scheduler.drop(stream.key)
            self._forget(stream.key)

    def _forget(self, key: int) -> None:
        self.running.pop(key, None)
        self.waiting = [stream for stream in self.waiting if stream.key != key]

    @invariant()
    def blocks_and_slots_belong_to_one_stream_each(self) -> None:
        held = [block for stream in self.running.values() for block in stream.blocks]
        slots = [stream.slot for stream in self.running.values()]
        assert len(held) == len(set(held)) == self.pool.used
        assert ZERO_BLOCK not in held
        assert len(slots) == len(set(slots))
        assert set(slots) <= set(range(STREAMS_MAX))
        assert (self.scheduler.running, self.scheduler.waiting) == (len(self.running), len(self.waiting))

    @invariant()
    def every_running_stream_has_room_for_its_end(self) -> None:
        for stream in self.running.values():
            assert len(stream.blocks) * BLOCK_TOKENS >= stream.tokens_max - 1


TestScheduler = SchedulerMachine.TestCase


def test_prefill_is_shared_out_oldest_first_and_leaves_decoding_alone() -> None:
    _, scheduler = new_scheduler()
    for key, prompt in ((1, 4), (2, 3), (3, 1)):
        scheduler.admit(stream_of(key, prompt, 2))
    scheduler.start()
    assert [(span.stream.key, span.start, span.rows) for span in scheduler.plan()] == [
        (1, 0, 4),
        (2, 0, 1),
        (3, 0, 1),
    ]


def test_a_stream_resumed_at_its_end_needs_no_blocks() -> None:
    pool, scheduler = new_scheduler()
    stream = stream_of(1, 3, 2)
    stream.tokens += [0, 0]
    scheduler.admit(stream)
    assert scheduler.take_full() == [stream]
    assert (scheduler.start(), scheduler.waiting, pool.used) == ([], 0, 0)


def test_releasing_a_block_twice_is_a_bug() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.reserve(8)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(blocks)
