"""Figures for docs/decisions/004: `python -m tests.unit.gateway.bench [decode|encode|http]`.

`decode` compares msgspec and pydantic on one chat request. `encode` times the event encoder per token. `http`
serves prepared tokens through Granian to 32 connections from a second process: what the HTTP side alone can do.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import timeit
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import pydantic
import uvloop

from holdfast.core.requests import EngineRequest
from holdfast.core.status import GatewayStatus
from holdfast.core.stream import Piece
from holdfast.core.thresholds import NONE_SET, ThresholdChanges, Thresholds
from holdfast.gateway.app import create_app
from holdfast.gateway.asking import ask_chat
from holdfast.gateway.backend import DEFAULT_CLAIM, Claim, Delta, Health, ModelInfo, Resumption, Session
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.openai import ChatRequest
from holdfast.gateway.sse import ChatEncoder, Head
from holdfast.gateway.tracing import UNTRACED, RequestTrace
from tests.unit.gateway.server import serving
from tests.unit.support.ports import free_port

CONNECTIONS = 32
SECONDS = 5.0
CHUNK = 8
BODY = {
    "model": "tiny",
    "messages": [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Say hello. " * 20}],
    "stream": True,
    "max_tokens": 64,
    "temperature": 0.7,
    "seed": 7,
}
TEXTS = (" the", " keep", " holds", " fast", ",", " and", " naïve", ".\n")


def pieces(tokens: int) -> list[Piece]:
    """Tokens as a stream hands them out."""
    return [Piece(n + 1, TEXTS[n % len(TEXTS)], None) for n in range(tokens)]


class PydanticMessage(pydantic.BaseModel):
    """As `ChatMessage`."""

    model_config = pydantic.ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, str]]
    name: str | None = None


class PydanticChat(pydantic.BaseModel):
    """The part of `ChatRequest` that the benchmark's body uses, as it would be in pydantic."""

    model_config = pydantic.ConfigDict(extra="forbid")

    model: str
    messages: list[PydanticMessage] = pydantic.Field(min_length=1)
    stream: bool | None = None
    max_tokens: int | None = pydantic.Field(default=None, ge=1)
    temperature: float | None = pydantic.Field(default=None, ge=0, le=2)
    seed: int | None = None


def _time(name: str, call: Any, per: int = 1) -> None:
    timer = timeit.Timer(call)
    number, _ = timer.autorange()
    best = min(timer.repeat(5, number)) / number / per
    print(f"{name:<52} {best * 1e9:10,.0f} ns")


def decode() -> None:
    """One chat request's body, by both libraries, and all the way to what is asked of the engine."""
    body = json.dumps(BODY).encode()
    decoder = msgspec.json.Decoder(ChatRequest)
    settings = HttpSettings()
    print(f"a body of {len(body)} bytes")
    _time("json.loads alone", lambda: json.loads(body))
    _time("pydantic model_validate_json (6 fields)", lambda: PydanticChat.model_validate_json(body))
    _time("msgspec Decoder (all 38 fields)", lambda: decoder.decode(body))
    _time("ask_chat: msgspec, checks, EngineRequest", lambda: ask_chat(body, settings))


def encode() -> None:
    """The event encoder, per token, for some numbers of tokens that wait together."""
    head = Head("chatcmpl-" + "0" * 32, 1_800_000_000, "tiny", False, -1)
    for waiting in (1, 4, 16, 64, 256):
        encoder = ChatEncoder(head, 1)
        deltas = [Delta(0, pieces(waiting), None)]
        encoder.encode(deltas)
        _time(f"encode, {waiting} tokens at once, per token", lambda e=encoder, d=deltas: e.encode(d), waiting)
    whole = [Delta(0, pieces(1), "stop")]
    _time("encode, a whole answer of 1 token, per answer", lambda: ChatEncoder(head, 1).encode(whole))


class PreparedBackend:
    """Hands out prepared deltas, `CHUNK` tokens at a time with a turn of the loop between them."""

    def __init__(self) -> None:
        self._pieces = pieces(4096)

    def models(self) -> Sequence[ModelInfo]:
        """One model."""
        return [ModelInfo("tiny", "default", datetime(2026, 1, 1, tzinfo=UTC), 4096, 1, 1)]

    def health(self) -> Health:
        """Always well."""
        return Health(True, [], {}, GatewayStatus.HEALTHY)

    def check_open(self, model: str, claim: Claim) -> None:
        """There is always room."""

    def thresholds(self, model: str) -> Thresholds:
        """None are set."""
        return NONE_SET

    async def set_thresholds(self, model: str, changes: ThresholdChanges) -> None:
        """They stay as they are."""

    def crowded(self) -> bool:
        """Never."""
        return False

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
        """A session of the first choice."""
        return PreparedSession(self._pieces, choices[0].max_tokens)


class PreparedSession:
    """One choice's prepared deltas."""

    def __init__(self, prepared: list[Piece], tokens: int) -> None:
        self._prepared = prepared
        self._tokens = tokens
        self.prompt_tokens = 9
        self.completion_tokens = 0
        self.timeout_s = 600.0
        self.replicas: list[str] = []

    @property
    def drawn_tokens(self) -> int:
        return self.completion_tokens

    def stop(self) -> None:
        """Nobody does."""

    def fail(self, cause: Exception) -> None:
        """Nobody does."""

    def prompt_tokens_of(self, choice: int) -> int:
        """As `prompt_tokens`: there is one prompt."""
        return self.prompt_tokens

    async def __aenter__(self) -> PreparedSession:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    async def next(self) -> list[Delta]:
        """The next few tokens."""
        await asyncio.sleep(0)
        begin = self.completion_tokens
        end = self.completion_tokens = min(begin + CHUNK, self._tokens)
        return [Delta(0, self._prepared[begin:end], "length" if end == self._tokens else None)]


async def _serve(port: int) -> None:
    async with serving(create_app(PreparedBackend()), port):
        print("serving", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _client(port: int, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    answers = 0
    while time.monotonic() < until:
        writer.write(request)
        await reader.readuntil(b"[DONE]\n\n")
        answers += 1
    writer.close()
    return answers


async def _load(port: int, tokens: int) -> None:
    body = json.dumps({**BODY, "max_tokens": tokens}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    began = time.monotonic()
    clients = [_client(port, head % len(body) + body, began + SECONDS) for _ in range(CONNECTIONS)]
    answers = sum(await asyncio.gather(*clients))
    rate = answers / (time.monotonic() - began)
    print(f"{tokens:>4} tokens per answer: {rate:8,.0f} req/s {rate * tokens:10,.0f} tok/s")


def http() -> None:
    """Requests and tokens per second over 32 connections; server and load generator share the machine."""
    port = free_port()
    command = [sys.executable, "-m", "tests.unit.gateway.bench", "serve", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        for tokens in (1, 64, 256):
            uvloop.run(_load(port, tokens))


def main() -> None:
    """Run what the arguments name, or everything."""
    if sys.argv[1:2] == ["serve"]:
        uvloop.run(_serve(int(sys.argv[2])))
        return
    for name in sys.argv[1:] or ["decode", "encode", "http"]:
        {"decode": decode, "encode": encode, "http": http}[name]()


if __name__ == "__main__":
    main()
