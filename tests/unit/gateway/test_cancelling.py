"""Requests that somebody cancels, leaves, or gives too little time: their ends, and those of what is below them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from holdfast.actors.engines.mock import mock_text
from holdfast.core.thresholds import Thresholds
from holdfast.gateway import requests as open_requests
from holdfast.gateway.exchange import tenant_of
from tests.unit.gateway.cancelling import (
    LONG,
    Gateways,
    Pending,
    begin,
    cancelled,
    listed,
    request_of,
    running,
    site_of,
)
from tests.unit.gateway.client import CHAT, COMPLETIONS, Answer, ask, chat, completion
from tests.unit.support.history import application
from tests.unit.support.replicas import Site, eventually

pytestmark = pytest.mark.memory_network


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as site:
        yield site


def text_of(answer: Answer) -> str:
    """All text of a streamed completion."""
    return "".join(choice["text"] for chunk in answer.chunks for choice in chunk.get("choices", []))


def code_of(answer: Answer) -> str:
    """The error's code, as an answer or as a stream's last event."""
    found = answer.error if answer.status != 200 else answer.chunks[-1]["error"]
    return str(found["code"])


# --- one request ----------------------------------------------------------------------------------------


async def test_an_open_request_is_listed_with_what_there_is_to_know(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = begin(app, "mine", key="k")
        await running(app, "mine")
        (one,) = await listed(app)
        assert (one["id"], one["object"], one["model"], one["gateway"]) == ("mine", "request", "tiny", "g")
        assert (one["state"], one["cause"], one["parent"]) == ("running", None, None)
        assert one["tenant"] == tenant_of(b"Bearer k")
        assert one["replicas"] == ["app.tiny.1"]
        assert one["prompt_tokens"] == 2
        assert one["completion_tokens"] >= 3
        assert 0 < one["timeout_left_s"] <= 600
        assert one["response_id"].startswith("cmpl-")
        pending.leave()
        await pending.answer()
        assert await listed(app) == []


@pytest.mark.parametrize("known_by", ["id", "response_id"])
async def test_a_stopped_stream_ends_well_with_what_there_was(site: Site, known_by: str) -> None:
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = begin(app, "mine", stream_options={"include_usage": True})
        await running(app, "mine")
        (one,) = await listed(app)
        final = (await cancelled(app, one[known_by], "stop")).json
        answer = await pending.answer()
        await eventually(lambda: replica.free)
    assert (final["id"], final["state"], final["cause"], final["cancelled"]) == ("mine", "cancelled", "stop", 1)
    assert answer.events[-1].data == "[DONE]"
    *_, finish, usage = answer.chunks
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == final["completion_tokens"] < 4000
    assert text_of(answer) == mock_text(request_of(), final["completion_tokens"])


@pytest.mark.parametrize("fields", [{}, {"logprobs": 0}])
async def test_a_stream_that_is_stopped_while_it_is_drawn_again_has_used_what_its_client_has(
    site: Site, fields: dict[str, int]
) -> None:
    replica = await site_of(site, itl_ms=20)
    event_id = "cmpl-0123456789abcdef0000000000000007:1000"
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        body = completion(stream=True, max_tokens=LONG, stream_options={"include_usage": True}, **fields)
        headers = {"x-request-id": "mine", "last-event-id": event_id}
        pending = Pending(app, body, headers, COMPLETIONS)
        await eventually(lambda: [one.replicas for one in app.requests.seen(None, 1)] == [["app.tiny.1"]])
        final = (await cancelled(app, "mine", "stop")).json
        answer = await pending.answer()
        await eventually(lambda: replica.free)
        text = app.metrics.text().decode()
    finish, usage = answer.chunks
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == final["completion_tokens"] == 1000
    assert [event.id for event in answer.events] == [event_id] * 3
    (generated,) = re.findall(r'^holdfast_generation_tokens_total\{model="tiny"\} (\S+)', text, re.M)
    assert float(generated) < 1000, "whoever resumes says what it has, and that was not generated here"


async def test_a_killed_stream_ends_in_an_error_event_and_no_done(site: Site) -> None:
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = begin(app, "mine")
        await running(app, "mine")
        assert (await cancelled(app, "mine")).json["cause"] == "kill"
        answer = await pending.answer()
        await eventually(lambda: replica.free)
        text = app.metrics.text().decode()
    assert code_of(answer) == "request_cancelled"
    assert "[DONE]" not in answer.body.decode()
    assert 'outcome="cancelled"' in text


@pytest.mark.parametrize(("mode", "status"), [("stop", 200), ("kill", 499)])
async def test_an_answer_that_is_not_streamed_is_whole_or_a_499(site: Site, mode: str, status: int) -> None:
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = begin(app, "mine", stream=False)
        await running(app, "mine")
        final = (await cancelled(app, "mine", mode)).json
        answer = await pending.answer()
        await eventually(lambda: replica.free)
    assert answer.status == status
    if mode == "stop":
        assert answer.json["choices"][0]["finish_reason"] == "stop"
        assert answer.json["usage"]["completion_tokens"] == final["completion_tokens"]
        assert answer.json["choices"][0]["text"] == mock_text(request_of(), final["completion_tokens"])
    else:
        assert answer.error["code"] == "request_cancelled"


@pytest.mark.parametrize(("mode", "status"), [("stop", 200), ("kill", 499)])
async def test_a_request_that_waits_for_a_replica_can_be_cancelled(site: Site, mode: str, status: int) -> None:
    replica = await site_of(site, streams_max=1)
    site.deploy(application(thresholds=Thresholds(requests_in_flight_threshold=2)))
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        first = begin(app, "first")
        await running(app, "first")
        second = begin(app, "second")
        await eventually(lambda: replica.engine.load().waiting == 1)
        await cancelled(app, "second", mode)
        answer = await second.answer()
        await eventually(lambda: replica.engine.load().waiting == 0)
        assert answer.status == status
        assert not first.task.done()
        first.leave()
        await first.answer()


async def test_cancelling_again_tells_the_same_end(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = begin(app, "mine")
        await running(app, "mine")
        first = await cancelled(app, "mine", "stop")
        again = await cancelled(app, "mine", "kill")
        await pending.answer()
        late = await cancelled(app, "mine")
        assert first.json == again.json == late.json
        assert app.requests.cancellations == {("tiny", "stop"): 1}


async def test_what_is_not_open_is_a_404_and_a_wrong_mode_a_400(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        assert (await ask(app, COMPLETIONS, completion(max_tokens=3), {"x-request-id": "done"})).status == 200
        for id_ in ("done", "never", "with/slash", "with%2Fslash%20and%20more"):
            answer = await cancelled(app, id_)
            assert (answer.status, answer.error["code"]) == (404, "request_not_found")
        answer = await cancelled(app, "done", "gently")
        assert (answer.status, answer.error["param"]) == (400, "mode")
        for limit in ("0", "x", "10001", "99999999999"):
            answer = await ask(app, f"/v1/requests?limit={limit}", method="GET")
            assert (answer.status, answer.error["param"]) == (400, "limit")


async def test_an_id_may_hold_any_visible_character(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = begin(app, "a/b?c=%2F#&")
        await running(app, "a/b?c=%2F#&")
        assert (await cancelled(app, "a%2Fb%3Fc=%252F%23&", "stop")).json["id"] == "a/b?c=%2F#&"
        assert (await pending.answer()).events[-1].data == "[DONE]"


async def test_all_choices_of_a_request_end_together(site: Site) -> None:
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = begin(app, "mine", prompt=["one", "two"], n=2)
        await eventually(lambda: replica.engine.load().running == 4)
        await cancelled(app, "mine", "stop")
        answer = await pending.answer()
        await eventually(lambda: replica.free)
    ends = [choice["index"] for chunk in answer.chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1, 2, 3]


async def test_a_client_that_leaves_frees_the_engine_and_its_request_is_remembered(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="holdfast.gateway.requests")
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = begin(app, "mine")
        await running(app, "mine")
        pending.leave()
        await eventually(lambda: replica.free)
        await pending.answer()
        assert (await cancelled(app, "mine")).json["cause"] == "client"
        assert app.requests.cancellations == {("tiny", "client"): 1}
    assert "request mine: 499 (client) after " in caplog.text


# --- whose they are -------------------------------------------------------------------------------------


async def test_a_key_sees_and_cancels_its_own_requests_only_and_an_admins_all(site: Site) -> None:
    await site_of(site)
    async with Gateways(site, api_keys=("a", "b"), admin_keys=("root",)) as gateways:
        app = await gateways.start("g")
        pending = {key: begin(app, f"of-{key}", key=key) for key in ("a", "b")}
        await running(app, "of-a", "of-b")
        assert [one["id"] for one in await listed(app, "a")] == ["of-a"]
        assert sorted(one["id"] for one in await listed(app, "root")) == ["of-a", "of-b"]
        assert (await cancelled(app, "of-b", key="a")).status == 404
        assert (await cancelled(app, "of-b")).status == 401
        assert (await ask(app, "/v1/requests", method="GET")).status == 401
        assert (await cancelled(app, "of-b", key="root")).status == 200
        assert (await cancelled(app, "of-a", "stop", key="a")).status == 200
        assert code_of(await pending["b"].answer()) == "request_cancelled"
        assert (await pending["a"].answer()).events[-1].data == "[DONE]"


# --- time -----------------------------------------------------------------------------------------------


async def test_a_request_may_ask_for_less_time_and_gets_what_came_in_it(site: Site) -> None:
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        answer = await begin(app, "mine", timeout_s=0.2).answer()
        await eventually(lambda: replica.free)
        assert app.requests.cancellations == {("tiny", "deadline"): 1}
        assert 'outcome="deadline"' in app.metrics.text().decode()
    assert answer.status == 200
    assert code_of(answer) == "deadline_exceeded"
    text = text_of(Answer(200, {}, [answer.body[: answer.body.rindex(b"id: ")]]))
    assert text == mock_text(request_of(), len(text.split()))


async def test_without_a_token_in_its_time_it_is_a_504(site: Site) -> None:
    replica = await site_of(site, ttft_ms=60_000)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        answer = await begin(app, "mine", timeout_s=0.1).answer()
        await eventually(lambda: replica.free)
    assert (answer.status, code_of(answer)) == (504, "deadline_exceeded")


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon", "", "1e400"])
async def test_a_time_that_is_none_is_refused(site: Site, given: str) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        answer = await ask(app, CHAT, chat(max_tokens=1), {"x-request-timeout-seconds": given})
    assert (answer.status, answer.error["param"]) == (400, "x-request-timeout-seconds")


async def test_the_setting_bounds_what_a_request_may_ask_for(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g", request_timeout_s=0.2)
        pending = begin(app, "mine", timeout_s=500)
        await running(app, "mine")
        assert (await listed(app))[0]["timeout_left_s"] <= 0.2
        assert code_of(await pending.answer()) == "deadline_exceeded"


# --- parents and children -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stop", "kill"])
async def test_what_is_below_a_cancelled_request_ends_with_it_to_any_depth(site: Site, mode: str) -> None:
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        chain = [begin(app, f"r{depth}", parent=f"r{depth - 1}" if depth else "") for depth in range(12)]
        other = begin(app, "other", parent="elsewhere")
        await running(app, "other", *(f"r{depth}" for depth in range(12)))
        final = (await cancelled(app, "r0", mode)).json
        answers = [await one.answer() for one in chain]
        await eventually(lambda: replica.engine.load().running == 1)
        assert final["cancelled"] == 12
        assert app.requests.cancellations == {("tiny", mode): 1, ("tiny", "parent"): 11}
        if mode == "stop":
            assert [answer.events[-1].data for answer in answers] == ["[DONE]"] * 12
        else:
            assert [code_of(answer) for answer in answers] == ["request_cancelled"] + ["parent_cancelled"] * 11
        other.leave()
        await other.answer()


async def test_children_may_name_their_parent_by_its_answer_too(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        parent = begin(app, "p")
        await running(app, "p")
        child = begin(app, "c", parent=(await listed(app))[0]["response_id"])
        await running(app, "c")
        await cancelled(app, "p")
        assert code_of(await child.answer()) == "parent_cancelled"
        await parent.answer()


async def test_children_end_when_the_parents_client_leaves_or_its_time_is_over(site: Site) -> None:
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        parents = [begin(app, "leaves"), begin(app, "late", timeout_s=0.3)]
        await running(app, "leaves", "late")
        children = [begin(app, "c1", parent="leaves"), begin(app, "c2", parent="late", timeout_s=400)]
        await running(app, "c1", "c2")
        left = {one["id"]: one["timeout_left_s"] for one in await listed(app)}
        assert left["c2"] == left["late"]
        parents[0].leave()
        answers = [await child.answer() for child in children]
        assert code_of(answers[0]) == "parent_cancelled"
        assert code_of(answers[1]) in ("deadline_exceeded", "parent_cancelled")
        await asyncio.gather(*(parent.answer() for parent in parents))
        await eventually(lambda: replica.free)


async def test_a_parent_that_ends_well_leaves_its_children_alone(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        assert (await begin(app, "p", max_tokens=3).answer()).events[-1].data == "[DONE]"
        assert (await begin(app, "c", parent="p", max_tokens=3).answer()).events[-1].data == "[DONE]"


async def test_a_child_that_comes_after_its_parents_cancellation_is_refused(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        parent = begin(app, "p")
        await running(app, "p")
        await cancelled(app, "p")
        await parent.answer()
        answer = await begin(app, "c", parent="p").answer()
        assert (answer.status, code_of(answer)) == (499, "parent_cancelled")
        again = begin(app, "p")
        await running(app, "p")
        child = begin(app, "c", parent="p")
        await running(app, "c")
        again.leave()
        assert code_of(await child.answer()) == "parent_cancelled"
        await again.answer()


async def test_requests_that_are_each_others_children_end_once(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        pending = [begin(app, "a", parent="b"), begin(app, "b", parent="a")]
        await running(app, "a", "b")
        assert (await cancelled(app, "a")).json["cancelled"] == 2
        await asyncio.gather(*(one.answer() for one in pending))
        answer = await ask(app, CHAT, chat(), {"x-request-id": "x", "x-holdfast-parent": "x"})
        assert (answer.status, answer.error["param"]) == (400, "x-holdfast-parent")


async def test_an_id_that_only_children_name_cancels_those(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        children = [begin(app, f"c{number}", parent="task") for number in range(3)]
        await running(app, "c0", "c1", "c2")
        assert (await cancelled(app, "task", "stop")).json["cancelled"] == 3
        assert {(await child.answer()).events[-1].data for child in children} == {"[DONE]"}
        assert (await begin(app, "c3", parent="task").answer()).status == 499


# --- several gateways -----------------------------------------------------------------------------------


async def test_requests_are_listed_and_cancelled_at_any_gateway(site: Site) -> None:
    await site_of(site)
    async with Gateways(site, api_keys=("a", "b")) as gateways:
        g, h = await gateways.start("g"), await gateways.start("h")
        pending = begin(g, "mine", key="a")
        await running(g, "mine")
        assert [(one["id"], one["gateway"]) for one in await listed(h, "a")] == [("mine", "g")]
        assert await listed(h, "b") == []
        assert (await cancelled(h, "mine", "stop", key="b")).status == 404
        final = await cancelled(h, "mine", "stop", key="a")
        assert (final.json["gateway"], final.json["cause"]) == ("g", "stop")
        assert (await pending.answer()).events[-1].data == "[DONE]"
        assert (await cancelled(h, "never", key="a")).status == 404
        assert not [call for call in gateways.asked if call[0] == call[1]]


async def test_a_gateway_that_does_not_answer_may_have_it(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        g = await gateways.start("g")
        await gateways.start("h")
        gateways.deaf.add("h")
        answer = await cancelled(g, "mine")
        assert (answer.status, answer.error["code"]) == (503, "gateway_unreached")
        assert "retry-after" in answer.headers
        listing = await ask(g, "/v1/requests", method="GET")
        assert listing.json["unreached"] == ["h"]


@pytest.mark.parametrize("way", ["stop", "kill", "leave"])
async def test_children_at_other_gateways_end_with_their_parent(site: Site, way: str) -> None:
    replica = await site_of(site)
    async with Gateways(site) as gateways:
        apps = [await gateways.start(name) for name in ("g", "h", "i")]
        parent = begin(apps[0], "p", timeout_s=50)
        await running(apps[0], "p")
        child = begin(apps[1], "c", parent="p")
        await running(apps[1], "c")
        assert apps[1].requests.seen(None, 1)[0].timeout_left_s <= 50
        grandchild = begin(apps[2], "d", parent="c")
        await running(apps[2], "d")
        if way == "leave":
            parent.leave()
        else:
            await cancelled(apps[2], "p", way)
        answers = [await one.answer() for one in (parent, child, grandchild)]
        await eventually(lambda: replica.free)
        if way == "stop":
            assert [answer.events[-1].data for answer in answers] == ["[DONE]"] * 3
        else:
            assert [code_of(answer) for answer in answers[1:]] == ["parent_cancelled"] * 2
        assert (await begin(apps[1], "late", parent="p").answer()).status == 499


async def test_a_parent_whose_client_came_back_at_another_gateway_lives(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        g, h = await gateways.start("g"), await gateways.start("h")
        left = begin(g, "p")
        await running(g, "p")
        left.leave()
        await left.answer()
        back = begin(h, "p")
        await running(h, "p")
        child = begin(g, "c", parent="p")
        await running(g, "c")
        assert (await cancelled(g, "p", "stop")).status == 200
        assert (await child.answer()).events[-1].data == "[DONE]"
        assert (await back.answer()).events[-1].data == "[DONE]"


# --- bounds ---------------------------------------------------------------------------------------------


async def test_what_is_remembered_and_what_is_open_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_requests, "REMEMBERED_MAX", 4)
    await site_of(site)
    async with Gateways(site) as gateways:
        app = await gateways.start("g")
        app.requests._open_max = 1
        for number in range(5):
            pending = begin(app, f"r{number}")
            await running(app, f"r{number}")
            refused = await begin(app, "more").answer()
            assert (refused.status, refused.error["code"]) == (503, "overloaded")
            await cancelled(app, f"r{number}")
            await pending.answer()
        assert len(app.requests._remembered) <= 4
        assert (app.requests._by_id, app.requests._children, len(app.requests)) == ({}, {}, 0)
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 1e9)
        assert app.requests.remembered("", "r4") is None
