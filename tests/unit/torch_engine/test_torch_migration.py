"""The real engine under the gateway's stream machine: what a client gets is the same wherever attempts break off.

Characters of two, three and four bytes are a token for each byte here, so that breaks fall within them, within stop
strings made of them, within JSON that a schema demands, and within tool calls.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest

from holdfast.actors.engines.torch.engine import TorchEngine
from holdfast.core.errors import StreamLost
from holdfast.core.requests import EngineRequest, Grammar, Sampling, ToolUse
from holdfast.core.stream import Piece, Stream
from holdfast.gateway.tool_calls import whole_message
from tests.unit.torch_engine.models import SHIPPED
from tests.unit.torch_engine.running import load

AT_ONCE = 32
TEXT = "aüß東☂🙂é."
STOP = "東☂🙂"
SCHEMA = Grammar(json.dumps({"const": [TEXT]}))
TOOLS = ToolUse([{"name": "moor", "parameters": {"const": {"a": "ü☂"}}}], forced=True, parallel=False)
SAILOR = [{"role": "user", "content": "Who?"}]


def _request(seed: int, **fields: Any) -> EngineRequest:
    sampling = fields.pop("sampling", Sampling(seed=seed, temperature=1.2))
    return EngineRequest(messages=SAILOR, max_tokens=60, logprobs=2, sampling=sampling, **fields)


CASES: dict[str, tuple[EngineRequest, list[str]]] = {
    "characters over several tokens": (_request(1, grammar=SCHEMA), []),
    "a stop string over several characters": (_request(2, grammar=SCHEMA), [STOP]),
    "all but a stop string": (_request(3, grammar=SCHEMA), [STOP + "!", "ß東é"]),
    "a tool call": (_request(4, tools=TOOLS), []),
    "penalties": (
        _request(5, sampling=Sampling(seed=5, presence_penalty=1.5, frequency_penalty=0.7), min_tokens=30),
        [],
    ),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    engine = load(SHIPPED, streams_max=AT_ONCE)
    yield engine
    asyncio.run(engine.close())


class Client:
    """What one client gets of a stream that breaks off after so many tokens, again and again."""

    def __init__(self, request: EngineRequest, stops: list[str], breaks: Iterable[int]) -> None:
        self.stream = Stream(request, stops)
        self.breaks = list(breaks)
        self.pieces: list[Piece] = []

    @property
    def told(self) -> tuple[list[Piece], str | None, list[int]]:
        """Everything: the pieces, why it ended, and the tokens, which are the usage."""
        return self.pieces, self.stream.finish_reason, self.stream.accepted

    def breaks_off(self) -> bool:
        """Whether the attempt breaks off now."""
        self.pieces += self.stream.take()
        if self.stream.ended or not self.breaks or self.breaks[0] != len(self.stream.accepted):
            return False
        self.breaks.pop(0)
        self.stream.lost(StreamLost("the replica is gone"))
        return True


async def _serve(engine: TorchEngine, clients: list[Client]) -> None:
    """Run the clients' streams to their ends, in as many attempts as it takes."""
    keys = iter(range(1 << 30))
    attempts: dict[int, Client] = {}

    async def begin(client: Client) -> None:
        key = next(keys)
        attempts[key] = client
        await engine.admit(key, client.stream.start())
        if client.breaks_off():
            await again(key)

    async def again(key: int) -> None:
        engine.drop(key)
        await begin(attempts.pop(key))

    for client in clients:
        await begin(client)
    while attempts:
        output = await engine.step()
        logprobs = output.logprobs or [None] * len(output.keys)
        for key, *token in zip(output.keys, output.positions, output.tokens, output.texts, logprobs, strict=True):
            attempts[key].stream.token(*token)  # type: ignore[arg-type]
        for key, reason in output.finished:
            attempts[key].stream.finished(reason)
        for key, client in list(attempts.items()):
            if client.breaks_off():
                await again(key)
            elif client.stream.ended:
                engine.drop(key)
                del attempts[key]


def serve(engine: TorchEngine, clients: list[Client]) -> None:
    for start in range(0, len(clients), AT_ONCE):
        asyncio.run(_serve(engine, clients[start : start + AT_ONCE]))


@pytest.mark.parametrize("name", CASES)
def test_a_client_gets_the_same_wherever_the_stream_breaks_off(engine: TorchEngine, name: str) -> None:
    """Once, twice or three times: at every position, and at others drawn with a seed."""
    request, stops = CASES[name]
    undisturbed = Client(request, stops, [])
    serve(engine, [undisturbed])
    tokens = len(undisturbed.stream.accepted)
    rng = random.Random(name)
    broken = [Client(request, stops, sorted([at, *rng.choices(range(tokens), k=at % 3)])) for at in range(tokens)]
    serve(engine, broken)
    for client in broken:
        assert client.told == undisturbed.told
        assert client.breaks == []


def test_the_cases_are_what_they_are_called(engine: TorchEngine) -> None:
    clients = {name: Client(*case, []) for name, case in CASES.items()}
    serve(engine, list(clients.values()))
    texts = {name: "".join(piece.text for piece in client.pieces) for name, client in clients.items()}
    whole, cut, nearly, call, penalties = CASES
    assert json.loads(texts[whole]) == [TEXT]
    assert len(clients[whole].stream.accepted) > len(texts[whole]), "characters take several tokens"
    assert texts[cut].endswith("ß")
    assert clients[cut].stream.finish_reason == "stop"
    assert json.loads(texts[nearly]) == [TEXT]
    content, calls, _ = whole_message([texts[call]], "stop", "id", 0)
    assert content is None
    assert [(one.name, json.loads(one.arguments)) for one in calls] == [("moor", {"a": "ü☂"})]
    free = Client(msgspec.structs.replace(CASES[penalties][0], sampling=Sampling(seed=5)), [], [])
    serve(engine, [free])
    assert free.stream.accepted != clients[penalties].stream.accepted, "penalties matter"
