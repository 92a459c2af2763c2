"""The torch engine: loads a model directory and generates tokens for many streams, a step at a time.

The tokens and logprobs of a stream are those of its request alone: whatever else runs, however its prompt was
chunked, and wherever it was resumed, they are bitwise the same (see `model` for how, and `EngineInfo.deterministic`
for whether this machine's kernels play along).

All torch work is done in one thread of its own, so that the process's event loop keeps turning meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from holdfast.actors.engines.base import FINISH_LENGTH, FINISH_STOP, StepOutput
from holdfast.actors.engines.torch.admission import Admission
from holdfast.actors.engines.torch.batch import Row, rows_of, tile_of
from holdfast.actors.engines.torch.cache import BlockPool, KvCache
from holdfast.actors.engines.torch.chat import ChatTemplate
from holdfast.actors.engines.torch.config import LlamaConfig, read_config
from holdfast.actors.engines.torch.grammars import Grammars
from holdfast.actors.engines.torch.invariance import rows_are_independent
from holdfast.actors.engines.torch.model import LlamaModel
from holdfast.actors.engines.torch.sampler import Draw, Drawn, draw_tokens
from holdfast.actors.engines.torch.scheduler import Scheduler, Stream
from holdfast.actors.engines.torch.settings import TorchSettings
from holdfast.actors.engines.torch.tokenizer import ModelTokenizer
from holdfast.actors.engines.torch.weights import read_weights
from holdfast.core.errors import InvalidConfig
from holdfast.core.requests import (
    FEATURE_JSON_SCHEMA,
    FEATURE_TOOLS,
    FEATURE_TOOLS_FORCED,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    TokenLogprob,
)
from holdfast.core.sampling import uniform

_Result = TypeVar("_Result")


async def load_engine(settings: TorchSettings) -> TorchEngine:
    """Load the model that the settings name. Raises `InvalidConfig` for what is wrong with it or with them."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch-engine")
    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, TorchEngine, settings, executor)
    except BaseException:
        executor.shutdown(wait=False)
        raise


class TorchEngine:
    """Implements `holdfast.actors.engines.base.Engine`. Made by `load_engine`."""

    def __init__(self, settings: TorchSettings, executor: ThreadPoolExecutor) -> None:
        """Loads the model: slow, so that it runs in the executor's thread, which torch is set up for."""
        torch.set_num_threads(settings.threads)
        directory = Path(settings.model)
        device, dtype = _device(settings.device), getattr(torch, settings.dtype)
        self._executor = executor
        # Prompts are read in a thread of their own: a long one must not hold up the streams that run.
        self._readers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch-prompts")
        self._arrivals: list[Stream] = []
        self._tile_tokens = settings.tile_tokens
        self._steps = 0
        self._prefill_tokens = 0
        self._config = read_config(directory)
        self._tokenizer = ModelTokenizer(directory / "tokenizer.json")
        context = min(self._config.context_tokens_max, settings.kv_blocks * settings.block_tokens)
        chat = ChatTemplate(directory)
        self._grammars = Grammars(self._tokenizer, self._config.eos_token_ids, self._config.vocab_size)
        self._admission = Admission(
            self._tokenizer,
            chat,
            self._grammars,
            vocab_size=self._config.vocab_size,
            context_tokens_max=context,
        )
        self._pool = BlockPool(settings.kv_blocks, settings.block_tokens)
        self._scheduler = Scheduler(
            self._pool,
            streams_max=settings.streams_max,
            waiting_max=settings.waiting_max,
            prefill_tokens_max=settings.prefill_tokens_max,
        )
        self._model = LlamaModel(self._config, read_weights(directory, self._config, device, dtype))
        self._cache = _cache(settings, self._config, self._pool.blocks_for(context), device, dtype)
        self._info = EngineInfo(
            model=settings.model_name or directory.resolve().name,
            context_tokens_max=context,
            kv_blocks=settings.kv_blocks,
            streams_max=settings.streams_max,
            deterministic=rows_are_independent(self._model, settings.tile_tokens, settings.block_tokens, dtype),
            device=str(device),
            features=_features(self._grammars, chat),
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def admit(self, key: int, request: EngineRequest) -> int:
        """Take in a stream; its prompt's length in tokens.

        Raises `RequestRefused`: `context_length_exceeded`, `invalid_token`, `invalid_value`, `empty_prompt`,
        `unsupported_content`, `invalid_messages`, `no_chat_template`, `unsupported_value`, `invalid_json_schema`,
        or `engine_overloaded` when as many streams wait as may.
        """
        self._scheduler.check_room(len(self._arrivals))
        stream = await self._in_thread(lambda: self._admission.stream(key, request), self._readers)
        self._scheduler.check_room(len(self._arrivals))
        self._arrivals.append(stream)
        return stream.prompt_tokens

    def drop(self, key: int) -> None:
        """Forget a stream and free its KV blocks; unknown keys are no error."""
        self._arrivals = [stream for stream in self._arrivals if stream.key != key]
        self._scheduler.drop(key)
        self._prefill_tokens = self._scheduler.prefill_tokens_waiting

    async def step(self) -> StepOutput:
        """One token for each stream whose prompt is through, and some prefill for the others.

        What goes wrong in it (out of memory, a device error) is raised here; the streams are then as before.
        """
        arrivals, self._arrivals = self._arrivals, []
        for stream in arrivals:
            self._scheduler.admit(stream)
            self._prefill_tokens += stream.missing
        return await self._in_thread(self._step)

    def load(self) -> EngineLoad:
        return EngineLoad(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting + len(self._arrivals),
            kv_blocks_used=self._pool.used,
            kv_blocks=self._pool.blocks,
            step=self._steps,
            prefill_tokens_waiting=self._prefill_tokens + sum(stream.missing for stream in self._arrivals),
        )

    async def close(self) -> None:
        """Wait for a step in progress and end the engine's threads. The engine is of no use afterwards."""
        await asyncio.to_thread(self._executor.shutdown)
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._grammars.close)

    async def _in_thread(self, work: Callable[[], _Result], thread: ThreadPoolExecutor | None = None) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(thread or self._executor, work)

    def _step(self) -> StepOutput:
        output = StepOutput()
        output.finished.extend((stream.key, FINISH_LENGTH) for stream in self._scheduler.take_full())
        for stream in self._scheduler.start():
            self._cache.assign(stream.slot, stream.blocks)
        spans = self._scheduler.plan()
        drawn = self._compute(rows_of(spans)) if spans else []
        for span in spans:
            span.stream.computed += span.rows
        if any(stream.request.logprobs >= 0 for stream, _ in drawn):
            output.logprobs = []
        for stream, one in drawn:
            self._deliver(stream, one, output)
        # The scheduler is this thread's while a step is done: others read what it came to.
        self._prefill_tokens = self._scheduler.prefill_tokens_waiting
        self._steps += 1
        return output

    def _compute(self, rows: Iterator[Row]) -> list[tuple[Stream, Drawn]]:
        """Run the rows through the model tile by tile, and draw where a row ends its stream."""
        drawn: list[tuple[Stream, Drawn]] = []
        while batch := list(islice(rows, self._tile_tokens)):
            hidden = self._model.forward(tile_of(batch, self._tile_tokens, self._cache), self._cache)
            ends = [(n, row.ends) for n, row in enumerate(batch) if row.ends is not None]
            if ends:
                draws = [self._draw(row, stream) for row, stream in ends]
                tokens = draw_tokens(self._model.logits(hidden), draws)
                drawn.extend((stream, token) for (_, stream), token in zip(ends, tokens, strict=True))
        return drawn

    def _draw(self, row: int, stream: Stream) -> Draw:
        request = stream.request
        sampling = request.sampling
        allowed, may_end = None, stream.generated >= request.min_tokens
        if stream.guide is not None:
            allowed = stream.guide.allowed(stream.tokens, stream.prompt_tokens)
            may_end = may_end or not stream.guide.may_go_on
        return Draw(
            row=row,
            sampling=sampling,
            uniform=uniform(sampling.seed, stream.generated) if sampling.temperature > 0 else 0.5,
            banned=() if may_end else self._config.eos_token_ids,
            counts=stream.counts,
            logprobs=request.logprobs,
            allowed=allowed,
        )

    def _deliver(self, stream: Stream, drawn: Drawn, output: StepOutput) -> None:
        """Append the token to its stream and to the output, unless it ends the text.

        With `ignore_eos` an end-of-sequence token is one like any other, as in vLLM: it is reported, with no
        text, and generation goes on.
        """
        token = drawn.token
        if token in self._config.eos_token_ids and not stream.request.ignore_eos:
            is_whole = stream.guide is None or not stream.guide.broken
            self._finish(stream, FINISH_STOP if is_whole else FINISH_LENGTH, output)
            return
        output.keys.append(stream.key)
        output.positions.append(stream.generated)
        output.tokens.append(token)
        output.texts.append(stream.decoder.feed(token))
        if output.logprobs is not None:
            output.logprobs.append(self._logprob(drawn))
        stream.tokens.append(token)
        if stream.counts is not None:
            stream.counts[token] += 1
        if stream.guide is not None:
            stream.guide.accept((token,))
        if stream.is_full:
            self._finish(stream, FINISH_LENGTH, output)

    def _finish(self, stream: Stream, reason: str, output: StepOutput) -> None:
        self._scheduler.drop(stream.key)
        output.finished.append((stream.key, reason))

    def _logprob(self, drawn: Drawn) -> TokenLogprob | None:
        if drawn.logprob is None:
            return None
        text = self._tokenizer.token_bytes
        top = [(token, text(token), logprob) for token, logprob in drawn.top]
        return TokenLogprob(logprob=drawn.logprob, text=text(drawn.token), top=top)


def _features(grammars: Grammars, chat: ChatTemplate) -> list[str]:
    if not grammars.available:
        return []
    return [FEATURE_JSON_SCHEMA, FEATURE_TOOLS_FORCED, *([FEATURE_TOOLS] if chat.writes_calls else [])]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidConfig(f"torch engine settings: device: {name!r} is no device of PyTorch's") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("torch engine settings: device: no CUDA device was found; use 'auto' or 'cpu'")
    return device


def _cache(
    settings: TorchSettings,
    config: LlamaConfig,
    slot_blocks_max: int,
    device: torch.device,
    dtype: torch.dtype,
) -> KvCache:
    return KvCache(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        blocks=settings.kv_blocks,
        block_tokens=settings.block_tokens,
        slots=settings.streams_max,
        slot_blocks_max=slot_blocks_max,
        device=device,
        dtype=dtype,
    )
