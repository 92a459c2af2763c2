"""A backend without replicas: the same words for the same request, and faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from holdfast.core.errors import UnknownModel
from holdfast.core.requests import EngineRequest, TokenLogprob
from holdfast.core.status import GatewayStatus
from holdfast.core.stream import FINISH_LENGTH, FINISH_STOP, Stream
from holdfast.core.thresholds import NONE_SET, ThresholdChanges, Thresholds
from holdfast.gateway.backend import DEFAULT_CLAIM, Claim, Delta, Health, ModelInfo, Resumption, Session
from holdfast.gateway.tracing import UNTRACED, RequestTrace

MODEL = "tiny"
NATURAL_END = 24
WORDS = ("the", "keep", "holds", "fast", "über", "naïve", "☂", "a\nb", '"q"', "\\")


def word(seed: int, position: int) -> str:
    """The text of the token at `position` of the stream with `seed`."""
    return f" {WORDS[(seed % 9973 + position * 7) % len(WORDS)]}"


def text_of(seed: int, tokens: int) -> str:
    """All of a stream's text."""
    return "".join(word(seed, position) for position in range(tokens))


def prompt_tokens(request: EngineRequest) -> int:
    """A token per word of the prompt."""
    if request.prompt_tokens is not None:
        return len(request.prompt_tokens)
    if request.prompt is not None:
        return len(request.prompt.split())
    return sum(len(str(message.get("content")).split()) for message in request.messages or ())


@dataclass
class FakeBackend:
    """Serves one model in chunks of `chunk` tokens.

    `refuse_open` and `refuse_first` are raised at once and before the first delta; `break_after` tokens of the
    first choice `broken` is raised. With a `gate`, no chunk after the first comes until it is set.
    `open_sessions` counts those entered and not left, `chunks` the times that any was asked for more.
    """

    chunk: int = 4
    refuse_open: Exception | None = None
    refuse_first: Exception | None = None
    broken: Exception | None = None
    break_after: int = 4
    gate: asyncio.Event | None = None
    unhealthy: list[str] = field(default_factory=list)
    model: str = MODEL
    context_tokens_max: int = 2048
    open_sessions: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[EngineRequest] = field(default_factory=list)
    chunks: int = 0
    is_crowded: bool = False
    busy: Thresholds = NONE_SET
    claims: list[Claim] = field(default_factory=list)

    def models(self) -> Sequence[ModelInfo]:
        created = datetime(2026, 1, 1, tzinfo=UTC)
        return [ModelInfo(self.model, "default", created, self.context_tokens_max, 2, 2)]

    def open(
        self,
        model: str,
        choices: Sequence[EngineRequest],
        *,
        stops: Sequence[str],
        timeout_s: float | None = None,
        name: str = "",
        resumption: Resumption | None = None,
        trace: RequestTrace = UNTRACED,
        claim: Claim = DEFAULT_CLAIM,
    ) -> Session:
        self.claims.append(claim)
        if self.refuse_open is not None:
            raise self.refuse_open
        if model != self.model:
            raise UnknownModel(model)
        self.seen = list(choices)
        return FakeSession(self, choices, stops, delivered_of(resumption, len(choices)))

    def check_open(self, model: str, claim: Claim) -> None:
        if self.refuse_open is not None:
            raise self.refuse_open

    def thresholds(self, model: str) -> Thresholds:
        if model != self.model:
            raise UnknownModel(model)
        return self.busy

    async def set_thresholds(self, model: str, changes: ThresholdChanges) -> None:
        self.busy = changes.made_to(self.thresholds(model))

    def crowded(self) -> bool:
        return self.is_crowded

    def health(self) -> Health:
        return Health(
            not self.unhealthy,
            self.unhealthy,
            {"replicas": 2},
            GatewayStatus.UNHEALTHY if self.unhealthy else GatewayStatus.HEALTHY,
        )


def delivered_of(resumption: Resumption | None, choices: int) -> Sequence[int]:
    """How many tokens of each choice a session need not hand out."""
    return resumption.counts if resumption is not None and not resumption.replay else [0] * choices


class FakeSession:
    """Runs each choice's stream on the product's own stream machine."""

    def __init__(
        self, backend: FakeBackend, choices: Sequence[EngineRequest], stops: Sequence[str], delivered: Sequence[int]
    ) -> None:
        self._backend = backend
        self._streams = [
            Stream(choice, stops, delivered=count) for choice, count in zip(choices, delivered, strict=True)
        ]
        self._told = [False] * len(choices)
        self._calls = 0

    async def __aenter__(self) -> FakeSession:
        self._backend.open_sessions += 1
        for stream in self._streams:
            stream.start()
            stream.admitted(prompt_tokens(stream.request))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._backend.open_sessions -= 1
        self._backend.left.set()

    async def next(self) -> list[Delta]:
        if self._calls == 0 and self._backend.refuse_first is not None:
            raise self._backend.refuse_first
        if self._calls > 0 and self._backend.gate is not None:
            await self._backend.gate.wait()
        self._calls += 1
        self._backend.chunks += 1
        if self._backend.broken is not None and len(self._streams[0].accepted) >= self._backend.break_after:
            raise self._backend.broken
        return [delta for i in range(len(self._streams)) if (delta := self._advance(i)) is not None]

    @property
    def prompt_tokens(self) -> int:
        return self.prompt_tokens_of(0)

    def prompt_tokens_of(self, choice: int) -> int:
        return self._streams[choice].prompt_tokens or 0

    @property
    def completion_tokens(self) -> int:
        return sum(len(stream.accepted) for stream in self._streams)

    @property
    def drawn_tokens(self) -> int:
        return self.completion_tokens

    @property
    def timeout_s(self) -> float:
        return 600.0

    @property
    def replicas(self) -> list[str]:
        return ["fake.1"]

    def stop(self) -> None:
        raise AssertionError("the fake backend's requests are not cancelled")

    def fail(self, cause: Exception) -> None:
        raise AssertionError("the fake backend's requests are not cancelled")

    def _advance(self, choice: int) -> Delta | None:
        stream = self._streams[choice]
        if self._told[choice]:
            return None
        for _ in range(self._backend.chunk):
            self._token(stream)
        self._told[choice] = stream.ended
        return Delta(choice, stream.take(), stream.finish_reason)

    def _token(self, stream: Stream) -> None:
        request, position = stream.request, len(stream.accepted)
        if stream.ended:
            return
        text = word(request.sampling.seed, position)
        logprob = _logprob(text, request.logprobs) if request.logprobs >= 0 else None
        stream.token(position, position, text, logprob)
        if request.max_tokens and position + 1 >= request.max_tokens:
            stream.finished(FINISH_LENGTH)
        elif position + 1 >= max(NATURAL_END, request.min_tokens) and not request.ignore_eos:
            stream.finished(FINISH_STOP)


def _logprob(text: str, alternatives: int) -> TokenLogprob:
    top = [(n, f"{text}{n}".encode(), -1.0 - n) for n in range(alternatives)]
    return TokenLogprob(-0.5, text.encode(), top)
