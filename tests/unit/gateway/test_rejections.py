"""What a client is told that is turned away, and what it may say about its request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from holdfast.core.admission import Priority, Reason
from holdfast.core.errors import NoReplica, Overloaded, StreamLost
from holdfast.core.thresholds import NONE_SET
from holdfast.gateway.app import App, HttpSettings, create_app
from holdfast.gateway.backend import Claim
from holdfast.gateway.bodies import Bodies
from holdfast.gateway.claims import model_of
from holdfast.gateway.generate import Meter
from holdfast.gateway.machine import Machine
from holdfast.gateway.tracing import UNTRACED
from tests.unit.gateway.client import CHAT, ask, chat, converse
from tests.unit.gateway.fakes import FakeBackend
from tests.unit.support.replicas import eventually

FULL = Overloaded("no room", 7.25, Reason.KV_BLOCKS)


@pytest.mark.parametrize("status", [503, 429, 529])
async def test_a_rejection_has_the_status_that_is_set_a_reason_and_when_to_come_again(status: int) -> None:
    backend = FakeBackend(refuse_open=FULL)
    app = create_app(backend, HttpSettings(overload_status=status))
    answer = await ask(app, CHAT, chat(stream=True))
    assert answer.status == status
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("8", "7250")
    assert answer.headers["x-holdfast-reason"] == "kv_blocks"
    assert answer.error == {"message": "no room", "type": "server_error", "param": None, "code": "overloaded"}
    metrics = await ask(app, "/metrics", method="GET")
    assert b'outcome="overloaded"' in metrics.body


async def test_a_model_without_replicas_is_unavailable_whatever_the_status_of_rejections() -> None:
    app = create_app(
        FakeBackend(refuse_first=NoReplica("none", 1, Reason.NO_REPLICA)), HttpSettings(overload_status=429)
    )
    answer = await ask(app, CHAT, chat())
    assert (answer.status, answer.error["code"]) == (503, "no_replica")


@pytest.mark.parametrize(
    ("given", "priority"),
    [("critical", Priority.CRITICAL), ("Default", Priority.DEFAULT), (" batch ", Priority.BATCH)],
)
async def test_a_request_says_how_important_it_is(given: str, priority: Priority) -> None:
    backend = FakeBackend()
    app = create_app(backend)
    await ask(app, CHAT, chat(), {"x-holdfast-priority": given})
    await ask(app, CHAT, chat())
    assert backend.claims == [Claim(priority), Claim()]


@pytest.mark.parametrize("given", ["", "urgent", "2"])
async def test_a_priority_that_there_is_not_is_an_error(given: str) -> None:
    answer = await ask(create_app(FakeBackend()), CHAT, chat(), {"x-holdfast-priority": given})
    assert (answer.status, answer.error["param"]) == (400, "x-holdfast-priority")
    assert "critical, default, batch" in answer.error["message"]


async def test_a_priority_that_is_for_admins_is_refused_to_others() -> None:
    backend = FakeBackend()
    keys = HttpSettings(api_keys=(SecretStr("user"),), admin_keys=(SecretStr("boss"),), priority_max="default")
    app = create_app(backend, keys)
    user, boss = ({"authorization": f"Bearer {key}"} for key in ("user", "boss"))
    refused = await ask(app, CHAT, chat(), {**user, "x-holdfast-priority": "critical"})
    assert (refused.status, refused.error["code"]) == (403, "priority_not_allowed")
    assert refused.error["param"] == "x-holdfast-priority"
    assert not backend.claims
    assert (await ask(app, CHAT, chat(), user)).status == 200
    assert (await ask(app, CHAT, chat(), {**boss, "x-holdfast-priority": "critical"})).status == 200
    assert [claim.priority for claim in backend.claims] == [Priority.DEFAULT, Priority.CRITICAL]


async def test_who_says_no_priority_gets_no_higher_one_than_it_may_claim() -> None:
    backend = FakeBackend()
    app = create_app(backend, HttpSettings(priority_max="batch"))
    assert (await ask(app, CHAT, chat())).status == 200
    assert (await ask(app, CHAT, chat(), {"x-holdfast-priority": "default"})).status == 403
    assert backend.claims == [Claim(Priority.BATCH)]


async def test_tenants_are_told_apart_by_their_keys_where_keys_are_asked_for() -> None:
    backend = FakeBackend()
    app = create_app(backend, HttpSettings(api_keys=(SecretStr("one"), SecretStr("two"))))
    for key in ("one", "two", "one"):
        await ask(app, CHAT, chat(), {"authorization": f"Bearer {key}"})
    first, second, third = (claim.tenant for claim in backend.claims)
    assert first == third != second
    assert "one" not in first
    backend.claims.clear()
    await ask(create_app(backend), CHAT, chat(), {"authorization": "Bearer anything"})
    assert backend.claims == [Claim()]


async def test_a_full_gateway_says_when_to_come_again_and_counts_it() -> None:
    app = create_app(FakeBackend(), HttpSettings(requests_max=1))
    app.metrics.in_flight = 1
    answer = await ask(app, CHAT, chat())
    assert (answer.status, answer.headers["x-holdfast-reason"]) == (503, "gateway_full")
    assert int(answer.headers["retry-after"]) >= 1
    metrics = await ask(app, "/metrics", method="GET")
    assert b'holdfast_rejections_total{model="",reason="gateway_full"} 1' in metrics.body


def with_small_bodies(backend: FakeBackend) -> tuple[App, Bodies]:
    app = create_app(backend, HttpSettings(body_bytes_max=1_000, bodies_bytes_max=1_000))
    return app, app._generator._bodies


async def test_bodies_in_hand_are_bounded_together_and_more_is_not_kept() -> None:
    app, bodies = with_small_bodies(FakeBackend())
    bodies.take(900)
    parts = [b"{" + b" " * 59] * 5
    answer = await converse(app, CHAT, parts)
    assert (answer.status, answer.headers["x-holdfast-reason"]) == (503, "gateway_full")
    assert "1000 bytes of request bodies" in answer.error["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert bodies.held == 900
    metrics = await ask(app, "/metrics", method="GET")
    assert b'holdfast_rejections_total{model="",reason="gateway_full"} 1' in metrics.body
    bodies.give(900)
    assert (await ask(app, CHAT, chat())).status == 200


@pytest.mark.parametrize(("stream", "held"), [(False, len(json.dumps(chat(stream=False)))), (True, 0)])
async def test_a_body_counts_until_its_answer_begins(stream: bool, held: int) -> None:
    backend = FakeBackend(gate=asyncio.Event())
    app, bodies = with_small_bodies(backend)
    assert backend.gate is not None
    asking = asyncio.create_task(ask(app, CHAT, chat(stream=stream)))
    await eventually(lambda: backend.chunks > 0 and bodies.held == held)
    assert not asking.done()
    backend.gate.set()
    assert (await asking).status == 200
    assert bodies.held == 0


@pytest.mark.parametrize("body", [b"{", b" " * 1_001, json.dumps(chat(model="none")).encode()])
async def test_a_body_that_brings_nothing_counts_no_longer(body: bytes) -> None:
    app, bodies = with_small_bodies(FakeBackend())
    assert (await ask(app, CHAT, body)).status >= 400
    assert bodies.held == 0


async def test_a_client_that_leaves_amid_its_body_counts_no_longer() -> None:
    app, bodies = with_small_bodies(FakeBackend())
    held = []

    async def receive() -> dict[str, Any]:
        held.append(bodies.held)
        if len(held) < 3:
            return {"type": "http.request", "body": b" " * 10, "more_body": True}
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        raise AssertionError("nobody is there to be told")

    await app({"type": "http", "path": CHAT, "method": "POST", "headers": []}, receive, send)
    assert (held, bodies.held) == ([0, 10, 20], 0)


def test_the_longest_body_fits_among_those_in_hand() -> None:
    with pytest.raises(ValidationError, match="the longest body has to fit"):
        HttpSettings(body_bytes_max=1_001, bodies_bytes_max=1_000)


async def test_a_full_gateway_of_long_requests_is_to_be_asked_again_when_one_will_have_ended() -> None:
    now_s = 0.0
    app = create_app(FakeBackend(), HttpSettings(requests_max=1), machine=Machine(monotonic_s=lambda: now_s))
    meters = [Meter(lambda: now_s, UNTRACED) for _ in range(2)]
    app.metrics.in_flight = 1
    app._generator._enter(meters[0])
    now_s = 20.0
    app._generator._leave(meters[0])
    app.metrics.in_flight = 2
    with pytest.raises(Overloaded) as rejection:
        app._generator._enter(meters[1])
    assert 20.0 <= rejection.value.retry_after_s <= 30.0
    app._generator._leave(meters[1])
    assert app._generator._service.stay_s == 20.0, "who was not let in tells nothing"


async def test_who_lost_the_last_replica_is_told_when_there_should_be_another() -> None:
    app = create_app(FakeBackend(refuse_first=StreamLost("it is gone", retry_after_s=6.5)))
    answer = await ask(app, CHAT, chat())
    assert (answer.error["code"], answer.headers["retry-after"]) == ("stream_lost", "7")


async def test_a_request_that_lost_its_replicas_says_when_to_come_again_and_counts_as_failed() -> None:
    app = create_app(FakeBackend(refuse_first=StreamLost("it is gone")))
    answer = await ask(app, CHAT, chat())
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "stream_lost", "1")
    metrics = await ask(app, "/metrics", method="GET")
    assert b'outcome="failed"' in metrics.body


async def test_while_requests_are_turned_away_they_are_not_read_first() -> None:
    backend = FakeBackend(refuse_open=FULL, is_crowded=True)
    app = create_app(backend)
    body = {**chat(), "temperature": "hot"}
    assert (await ask(app, CHAT, body)).status == 503
    backend.is_crowded = False
    assert (await ask(app, CHAT, body)).status == 400


async def test_a_gateway_with_all_the_requests_that_it_can_take_reads_no_more() -> None:
    backend = FakeBackend()
    app = create_app(backend, HttpSettings(requests_max=1))
    app.metrics.in_flight += 1
    answer = await ask(app, CHAT, chat())
    assert (answer.status, answer.headers["x-holdfast-reason"]) == (503, "gateway_full")
    app.metrics.in_flight -= 1
    assert (await ask(app, CHAT, chat())).status == 200


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"messages": [{"model": "x"}], "model": "m"}', "m"),
        (b'{"model": 5}', ""),
        (b"{", ""),
        (b"[]", ""),
        (b"\xff", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_a_model_is_found_without_reading_the_rest(body: bytes, model: str) -> None:
    assert model_of(body) == model


# --- thresholds -----------------------------------------------------------------------------------------

NULL = {
    "model": "tiny",
    "active_decode_blocks_threshold": None,
    "active_prefill_tokens_threshold": None,
    "active_prefill_tokens_threshold_frac": None,
    "requests_in_flight_threshold": None,
    "queue_age_threshold_s": None,
}


async def test_thresholds_are_told_and_changed() -> None:
    app = create_app(FakeBackend())
    assert (await ask(app, "/busy_threshold", method="GET")).json == {"thresholds": [NULL]}
    assert (await ask(app, "/busy_threshold", {"model": "tiny"})).json == NULL
    changes = {"active_decode_blocks_threshold": 0.85, "active_prefill_tokens_threshold": 1000}
    assert (await ask(app, "/busy_threshold", {"model": "tiny", **changes})).json == {**NULL, **changes}
    back = {"active_decode_blocks_threshold": None, "queue_age_threshold_s": 2}
    after = {**NULL, "active_prefill_tokens_threshold": 1000, "queue_age_threshold_s": 2.0}
    assert (await ask(app, "/busy_threshold", {"model": "tiny", **back})).json == after
    assert (await ask(app, "/busy_threshold", method="GET")).json == {"thresholds": [after]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "other"}, 404),
        ({"model": "other", "queue_age_threshold_s": 1}, 404),
        ({}, 400),
        ({"model": "tiny", "active_decode_blocks_threshold": 1.5}, 400),
        ({"model": "tiny", "active_prefill_tokens_threshold": -1}, 400),
        ({"model": "tiny", "active_prefill_tokens_threshold": 0.5}, 400),
        ({"model": "tiny", "unheard_of": 1}, 400),
        (b"{", 400),
        (b"x" * 100_000, 413),
    ],
)
async def test_thresholds_that_cannot_be_are_refused(body: dict[str, object] | bytes, status: int) -> None:
    backend = FakeBackend()
    answer = await ask(create_app(backend), "/busy_threshold", body)
    assert answer.status == status
    assert answer.error["message"]
    assert backend.busy == NONE_SET


@pytest.mark.parametrize(("body", "code"), [(b"{", "invalid_json"), (b'{"model": 1}', "invalid_value")])
async def test_thresholds_that_are_no_json_are_told_apart(body: bytes, code: str) -> None:
    assert (await ask(create_app(FakeBackend()), "/busy_threshold", body)).error["code"] == code


async def test_a_client_that_leaves_amid_its_thresholds_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    came: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return came.pop(0)

    statuses = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "path": "/busy_threshold", "method": "POST", "headers": [], "query_string": b""}
    await create_app(FakeBackend())(scope, receive, send)
    assert (statuses[0], came) == (499, [])
    assert not caplog.records


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_thresholds_need_a_key_where_one_is_asked_for(method: str) -> None:
    app = create_app(FakeBackend(), HttpSettings(api_keys=(SecretStr("key"),)))
    assert (await ask(app, "/busy_threshold", {"model": "tiny"}, method=method)).status == 401
    headers = {"authorization": "Bearer key"}
    assert (await ask(app, "/busy_threshold", {"model": "tiny"}, headers, method=method)).status == 200


async def test_thresholds_are_changed_by_admins_only_where_there_are_any() -> None:
    backend = FakeBackend()
    app = create_app(backend, HttpSettings(api_keys=(SecretStr("user"),), admin_keys=(SecretStr("boss"),)))
    user, boss = ({"authorization": f"Bearer {key}"} for key in ("user", "boss"))
    change = {"model": "tiny", "requests_in_flight_threshold": 1}
    refused = await ask(app, "/busy_threshold", change, user)
    assert (refused.status, refused.error["code"]) == (403, "admin_key_required")
    assert refused.error["type"] == "invalid_request_error"
    assert (await ask(app, "/busy_threshold", change)).status == 401
    assert backend.busy == NONE_SET
    assert (await ask(app, "/busy_threshold", headers=user, method="GET")).json == {"thresholds": [NULL]}
    assert (await ask(app, "/busy_threshold", change, boss)).json["requests_in_flight_threshold"] == 1
