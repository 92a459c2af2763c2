"""Whatever a client sends, the gateway answers with something that the client can act on, and does not grow."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.acceptance.conftest import HTTP_TIMEOUT_S, Cluster

BODIES = 10_000
GROWTH_BYTES_MAX = 50 * 1024 * 1024
CONTEXT_TOKENS = 256
"""Small, so that a generated body that happens to be valid costs little."""

FIELDS = (
    "messages",
    "prompt",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
    "user",
    "tools",
    "tool_choice",
    "response_format",
    "logit_bias",
    "echo",
    "suffix",
    "best_of",
    "nonsense",
)

PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 8),
    "max_completion_tokens": st.integers(1, 8),
    "min_tokens": st.integers(0, 2),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.1, 1),
    "n": st.integers(1, 3),
    "seed": st.integers(0, 2**31),
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=4),
    "stream": st.booleans(),
    "presence_penalty": st.floats(-2, 2),
    "user": st.text(max_size=5),
    "ignore_eos": st.booleans(),
    "prompt": st.text(max_size=20) | st.lists(st.text(max_size=5), min_size=1, max_size=3),
}
"""What a client may well send, so that many bodies are served, too."""

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**40])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=12)
    | st.sampled_from(["mock", "user", "assistant", "", "\x00", "\ud800", "🙂"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
    ),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "system", "assistant", "tool", "x"]) | values,
            "content": st.text(max_size=20) | values,
            "name": values,
        },
    ),
    max_size=3,
)


@st.composite
def near_valid(draw: st.DrawFn) -> dict[str, Any]:
    """A good request with a few fields replaced: the inputs that get furthest into the gateway."""
    body: dict[str, Any] = {
        "model": "mock",
        "messages": [{"role": "user", "content": "hi"}],
        "prompt": "hi",
        "max_tokens": 2,
    }
    body.pop(draw(st.sampled_from(["messages", "prompt"])), None)
    for field in draw(st.lists(st.sampled_from(sorted(PLAUSIBLE)), max_size=3)):
        body[field] = draw(PLAUSIBLE[field])
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        body[field] = draw(messages if field == "messages" and draw(st.booleans()) else values)
    return body


bodies = st.one_of(
    near_valid().map(lambda body: json.dumps(body).encode("utf-8", "surrogatepass")),
    near_valid().map(lambda body: json.dumps(body).encode("utf-8", "surrogatepass")),
    values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    st.integers(1, 3000).map(lambda depth: b"[" * depth),
    st.integers(1, 500).map(lambda depth: b'{"messages":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"),
)


@pytest.fixture(scope="module")
def small_cluster(start_cluster: Any) -> Cluster:
    """A cluster whose model has a short context."""
    cluster: Cluster = start_cluster(engine_args={"context_tokens_max": CONTEXT_TOKENS})
    return cluster


@pytest.mark.timeout(900)
def test_ten_thousand_generated_bodies_give_no_5xx_and_no_growth(small_cluster: Cluster) -> None:
    status = small_cluster.status()
    gateway = psutil.Process(status["gateways"][0]["pid"])
    codes: dict[int, int] = {}
    # Much faster than httpx, and here are thousands.
    client = http.client.HTTPConnection("127.0.0.1", small_cluster.port, timeout=HTTP_TIMEOUT_S)

    def post(path: str, body: bytes) -> tuple[int, bytes]:
        client.request("POST", path, body, {"content-type": "application/json"})
        answer = client.getresponse()
        return answer.status, answer.read()

    with contextlib.closing(client):

        @settings(
            max_examples=BODIES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]), body=bodies)
        def send(path: str, body: bytes) -> None:
            status, answer = post(path, body)
            codes[status] = codes.get(status, 0) + 1
            assert status < 500, (body, answer)
            if status >= 400:
                error = json.loads(answer)["error"]
                assert error["message"]
                assert set(error) == {"message", "type", "param", "code"}

        for number in range(500):  # buffers, caches and pools reach their size first
            post("/v1/completions", b'{"model":"mock","prompt":"%d"}' % number)
        before = gateway.memory_info().rss
        send()
        grown = gateway.memory_info().rss - before
    assert sum(codes.values()) >= BODIES * 0.9, codes
    assert codes.get(200, 0) > 100, codes
    assert codes.get(400, 0) > 1000, codes
    assert grown < GROWTH_BYTES_MAX
    assert small_cluster.status()["gateways"][0]["pid"] == gateway.pid
