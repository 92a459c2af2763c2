"""An engine without a model: words that follow from the prompt alone, at a set pace.

For tests, benchmarks and trying out a cluster. Its tokens are a function of (prompt, seed, position), so any
replica continues any stream exactly, and a test can compute what a stream must say (`mock_text`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import signal
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from holdfast.actors.devices import InjectedEvents
from holdfast.actors.engines.base import FINISH_LENGTH, FINISH_STOP, StepOutput
from holdfast.actors.engines.words import WORDS
from holdfast.core.errors import InvalidConfig, RequestRefused
from holdfast.core.requests import EngineInfo, EngineLoad, EngineRequest, TokenLogprob

assert len(WORDS) == 256

_TEXTS = tuple(f" {word}" for word in WORDS)
_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15
_MIX = 0xBF58476D1CE4E5B9
TOKENS_WITHOUT_LIMIT = 64
"""What a stream without `max_tokens` gets before the engine ends it by itself."""

POLL_MS = 5.0
"""While nothing is due the engine looks for work this often, in milliseconds."""

CRASH_MARKER = "[[fault:crash]]"
XID_MARKER = re.compile(r"\[\[fault:xid (\d{1,4})\]\]")
KILL_MARKER = re.compile(r"\[\[fault:kill((?: \d{1,9})+)\]\]")
STALL_MARKER = "[[fault:stall]]"
FAULT_POSITION = 2
"""Where the faults happen that a prompt asks for."""


class MockSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mock engine's arguments. Times in milliseconds; `jitter` is the part of `itl_ms` that varies.

    `ttft_ms`: from admission to the first token; with one beyond `canary_timeout_s` the engine is taken for sick.
    `itl_ms`: between two steps, 0 for as fast as it goes.
    `prefill_tokens_per_s`: how fast prompts are read, one after the other and some of it in each step, before the first
    token; 0 for at once.
    `kv_blocks` of `block_tokens` tokens each bound what runs at once, with `streams_max`; the rest waits.
    `faults`: SIGUSR1 makes the engine hang until SIGUSR2; the text `[[fault:crash]]` in a prompt ends the replica at
    that stream's third token; `[[fault:stall]]` gives the stream no third token where it began; `[[fault:kill 5 9]]`,
    which is no part of the prompt itself, kills it (SIGKILL) when the stream has 5 tokens, and the next one when it
    has 9; `[[fault:xid 79]]` has a GPU report that error at the stream's third token where it began. Off by default,
    since a client could use all but the first.
    """

    ttft_ms: Annotated[float, msgspec.Meta(ge=0, le=600_000)] = 0.0
    itl_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    prefill_tokens_per_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    kv_blocks: Annotated[int, msgspec.Meta(ge=1)] = 16_384
    block_tokens: Annotated[int, msgspec.Meta(ge=1)] = 16
    streams_max: Annotated[int, msgspec.Meta(ge=1)] = 1_024
    context_tokens_max: Annotated[int, msgspec.Meta(ge=2)] = 32_768
    faults: bool = False


class _Stream:
    """One admitted stream. `base` is the hash that its words follow from."""

    __slots__ = (
        "base",
        "blocks",
        "crashes",
        "due_s",
        "end",
        "finish",
        "kills",
        "logprobs",
        "position",
        "prefill",
        "stalls",
        "xids",
    )

    def __init__(self, base: int, request: EngineRequest, end: int, finish: str, blocks: int, due_s: float) -> None:
        self.base = base
        self.position = len(request.accepted)
        self.end = end
        self.finish = finish
        self.blocks = blocks
        self.due_s = due_s
        self.prefill = 0
        self.logprobs = request.logprobs
        self.crashes = False
        self.kills: frozenset[int] = frozenset()
        self.stalls = False
        self.xids: tuple[int, ...] = ()


def parse_settings(arguments: dict[str, Any]) -> MockSettings:
    """The settings in `arguments`. Raises `InvalidConfig` naming the argument."""
    try:
        return msgspec.convert(arguments, MockSettings)
    except msgspec.ValidationError as error:
        raise InvalidConfig(f"mock engine arguments: {error}") from error


def prompt_text(request: EngineRequest) -> str:
    """What the mock sees of a prompt."""
    if request.messages is not None:
        return msgspec.json.encode(request.messages).decode()
    if request.prompt is not None:
        return request.prompt
    return " ".join(map(str, request.prompt_tokens or []))


def base_hash(text: str, seed: int) -> int:
    """What a stream's words follow from."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest())


def token_at(base: int, position: int) -> int:
    """The token at a position, from 0 to 255 (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = (base + position * _ODD) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * _MIX) & _MASK
    return (mixed ^ (mixed >> 31)) >> 56


def mock_text(request: EngineRequest, tokens: int) -> str:
    """The text that a stream of this many tokens must have."""
    base = base_hash(prompt_text(request), request.sampling.seed)
    return "".join(_TEXTS[token_at(base, position)] for position in range(tokens))


def kill_this_process() -> None:
    """End it without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


class MockEngine:
    """Gives every running stream one token a step."""

    def __init__(
        self, settings: MockSettings, model: str, rng: random.Random, kill: Callable[[], None] = kill_this_process
    ) -> None:
        """`kill` is how a prompt that asks for it ends the process."""
        self._settings = settings
        self._model = model
        self._rng = rng
        self._kill = kill
        self.device_events = InjectedEvents()
        self._running: dict[int, _Stream] = {}
        self._waiting: deque[tuple[int, _Stream]] = deque()
        self._blocks_used = 0
        self._prefill_tokens = 0
        self._read_s: float | None = None
        self._steps = 0
        self._going = asyncio.Event()
        self._going.set()

    @property
    def info(self) -> EngineInfo:
        """What it serves."""
        settings = self._settings
        return EngineInfo(
            self._model, settings.context_tokens_max, settings.kv_blocks, settings.streams_max, True, "none"
        )

    async def admit(self, key: int, request: EngineRequest) -> int:
        """As `Engine.admit`. A prompt's tokens are its words, or the ids given."""
        if request.grammar is not None or request.tools is not None:
            param = "response_format" if request.grammar is not None else "tools"
            message = f"Unsupported: '{param}' needs a model; the mock engine has none."
            raise RequestRefused(message, code="unsupported_value", param=param)
        text, kills = prompt_text(request), frozenset[int]()
        if self._settings.faults:
            text, kills = _without_kills(text)
        prompt_tokens = len(request.prompt_tokens) if request.prompt_tokens is not None else max(1, len(text.split()))
        end, finish = self._extent(request, prompt_tokens)
        blocks = -(-(prompt_tokens + end) // self._settings.block_tokens)
        if blocks > self._settings.kv_blocks:
            raise RequestRefused(
                f"The request needs {blocks} KV blocks; the engine has {self._settings.kv_blocks}.",
                code="context_length_exceeded",
                param=_prompt_field(request),
            )
        due_s = asyncio.get_running_loop().time() + self._settings.ttft_ms / 1000
        stream = _Stream(base_hash(text, request.sampling.seed), request, end, finish, blocks, due_s)
        stream.crashes = self._settings.faults and CRASH_MARKER in text
        stream.kills = frozenset(at for at in kills if at > stream.position)
        stream.stalls = self._settings.faults and STALL_MARKER in text and not request.accepted
        if self._settings.faults and not request.accepted:
            stream.xids = tuple(map(int, XID_MARKER.findall(text)))
        stream.prefill = prompt_tokens + stream.position
        self._prefill_tokens += stream.prefill
        self._waiting.append((key, stream))
        self._promote()
        return prompt_tokens

    def drop(self, key: int) -> None:
        """As `Engine.drop`."""
        stream = self._running.pop(key, None)
        if stream is not None:
            self._blocks_used -= stream.blocks
            self._prefill_tokens -= stream.prefill
        else:
            self._prefill_tokens -= sum(stream.prefill for other, stream in self._waiting if other == key)
            self._waiting = deque(item for item in self._waiting if item[0] != key)
        self._promote()

    async def step(self) -> StepOutput:
        """As `Engine.step`, after the time between two tokens."""
        await self._pace()
        self._steps += 1
        now_s = asyncio.get_running_loop().time()
        output = StepOutput()
        if self._settings.prefill_tokens_per_s:
            self._read(now_s)
        for key, stream in self._running.items():
            if stream.due_s <= now_s and not (stream.prefill and self._settings.prefill_tokens_per_s):
                self._advance(output, key, stream)
        for key, _reason in output.finished:
            self.drop(key)
        return output

    def load(self) -> EngineLoad:
        """As `Engine.load`."""
        return EngineLoad(
            len(self._running),
            len(self._waiting),
            self._blocks_used,
            self._settings.kv_blocks,
            self._steps,
            self._prefill_tokens,
        )

    async def close(self) -> None:
        """Nothing to free."""

    def hang(self) -> None:
        """Stand still from the next step on, as a stuck GPU would."""
        self._going.clear()

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    def _extent(self, request: EngineRequest, prompt_tokens: int) -> tuple[int, str]:
        """How many tokens the stream gets in all, and why it ends there. Raises `RequestRefused`."""
        context = self._settings.context_tokens_max
        room = context - prompt_tokens
        if room < 1 or request.max_tokens > room:
            asked = f"{request.max_tokens} for the completion" if request.max_tokens else "at least one more"
            raise RequestRefused(
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{prompt_tokens} in the prompt and {asked}.",
                code="context_length_exceeded",
                param=_prompt_field(request),
            )
        if request.max_tokens:
            return request.max_tokens, FINISH_LENGTH
        if request.ignore_eos or request.min_tokens > TOKENS_WITHOUT_LIMIT:
            return room, FINISH_LENGTH
        return min(room, TOKENS_WITHOUT_LIMIT), FINISH_STOP

    def _promote(self) -> None:
        """Let waiting streams run, first come first served, while there is room."""
        settings = self._settings
        while self._waiting and len(self._running) < settings.streams_max:
            key, stream = self._waiting[0]
            if self._blocks_used + stream.blocks > settings.kv_blocks:
                return
            self._waiting.popleft()
            self._blocks_used += stream.blocks
            self._running[key] = stream

    def _read(self, now_s: float) -> None:
        """Read as much of the prompts, in their order, as there was time for since the last step that had some."""
        since_s = now_s if self._read_s is None else self._read_s
        left = int((now_s - since_s) * self._settings.prefill_tokens_per_s)
        self._read_s = since_s + left / self._settings.prefill_tokens_per_s
        for stream in self._running.values():
            part = min(stream.prefill, left)
            stream.prefill -= part
            self._prefill_tokens -= part
            left -= part
            if stream.prefill:
                return
        self._read_s = None

    async def _pace(self) -> None:
        """Wait as long as a step takes; at least let the rest of the process run."""
        await self._going.wait()
        settings = self._settings
        wait_s = settings.itl_ms / 1000
        if settings.jitter:
            wait_s *= 1 + settings.jitter * self._rng.uniform(-1, 1)
        if self._read_s is not None:
            wait_s = max(wait_s, POLL_MS / 1000)
        if settings.ttft_ms:
            now_s = asyncio.get_running_loop().time()
            due_s = min((stream.due_s for stream in self._running.values()), default=now_s)
            wait_s = max(wait_s, min(due_s - now_s, POLL_MS / 1000))
        await asyncio.sleep(wait_s)

    def _advance(self, output: StepOutput, key: int, stream: _Stream) -> None:
        position = stream.position
        if stream.prefill:
            self._prefill_tokens -= stream.prefill
            stream.prefill = 0
        if position >= stream.end:
            output.finished.append((key, stream.finish))
            return
        if stream.crashes and position == FAULT_POSITION:
            raise RuntimeError("the prompt asked for a crash")
        if position in stream.kills:
            self._kill()
        if stream.stalls and position == FAULT_POSITION:
            return
        if stream.xids and position == FAULT_POSITION:
            for xid in stream.xids:
                self.device_events.inject(xid)
        token = token_at(stream.base, position)
        output.keys.append(key)
        output.positions.append(position)
        output.tokens.append(token)
        output.texts.append(_TEXTS[token])
        if stream.logprobs >= 0 or output.logprobs is not None:
            _add_logprob(output, token, stream.logprobs)
        stream.position = position = position + 1
        if position >= stream.end:
            output.finished.append((key, stream.finish))


def load_mock(arguments: dict[str, Any], model: str, rng: random.Random) -> MockEngine:
    """An engine; with `faults`, SIGUSR1 and SIGUSR2 hang and resume it. Raises `InvalidConfig`."""
    settings = parse_settings(arguments)
    engine = MockEngine(settings, model, rng)
    if settings.faults:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, engine.hang)
        loop.add_signal_handler(signal.SIGUSR2, engine.resume)
    return engine


def _without_kills(text: str) -> tuple[str, frozenset[int]]:
    """The text without its `[[fault:kill ...]]`, and after how many tokens that kills."""
    found = KILL_MARKER.search(text)
    return (text.replace(found[0], ""), frozenset(map(int, found[1].split()))) if found else (text, frozenset())


def _prompt_field(request: EngineRequest) -> str:
    return "messages" if request.messages is not None else "prompt"


def _add_logprob(output: StepOutput, token: int, alternatives: int) -> None:
    """Log probabilities that follow from the token: the chosen one first, its neighbours less and less likely."""
    if output.logprobs is None:
        output.logprobs = [None] * (len(output.tokens) - 1)
    if alternatives < 0:
        output.logprobs.append(None)
        return
    neighbours = [(token + step) % len(WORDS) for step in range(alternatives)]
    top = [(other, _TEXTS[other].encode(), -0.25 * (step + 1)) for step, other in enumerate(neighbours)]
    output.logprobs.append(TokenLogprob(-0.25, _TEXTS[token].encode(), top))
