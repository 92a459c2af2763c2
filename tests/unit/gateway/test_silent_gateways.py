"""A gateway that hangs holds up nobody: neither requests that begin, nor what others have to hear of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from holdfast.core.errors import DeadlineExceeded, RequestCancelled
from holdfast.gateway import telling
from holdfast.gateway.kinship import Adopted, Kinship
from holdfast.gateway.peers import CALL_TIMEOUT_S, CALLS_MAX, SILENT_S, Answer, Peers
from holdfast.gateway.requests import OpenRequest, Requests
from holdfast.gateway.telling import TOLD_S, TRIES_MAX
from tests.unit.gateway.cancelling import Gateways, begin, running, site_of
from tests.unit.support.replicas import Site, eventually
from tests.unit.support.virtual_time import now_s, settle, virtual_time

UNKNOWN = Answer(404, b"{}")
ANSWER_S = 0.01
"""So long a gateway that lives takes to answer."""


class Others:
    """Gateway `me` and those around it. `hung` never answer; `adopted` is what others say about parents."""

    def __init__(self, *names: str) -> None:
        self.urls = {name: f"http://{name}" for name in ("me", *names)}
        self.hung: set[str] = set()
        self.refusing: set[str] = set()
        self.adopted: dict[str, Adopted] = {}
        self.asked: list[tuple[float, str, str]] = []
        self.requests = Requests("me")
        self.peers = Peers("me", lambda: self.urls, cast(Any, self._ask))
        self.kinship = Kinship(self.requests, self.peers)

    async def _ask(self, method: str, url: str, _headers: Mapping[str, str], timeout_s: float) -> Answer:
        name, _, path = url.removeprefix("http://").partition("/")
        self.asked.append((now_s(), name, path))
        if name in self.refusing:
            raise ConnectionRefusedError
        if name in self.hung:
            await asyncio.sleep(timeout_s)
            raise TimeoutError
        told = self.adopted.get(name) if method == "POST" else None
        await asyncio.sleep(ANSWER_S)
        return UNKNOWN if told is None else Answer(200, msgspec.json.encode(told))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With its tellers and questions at work."""
        task = asyncio.create_task(self.kinship.run())
        yield
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    def calls(self, name: str) -> list[str]:
        """What this one was asked."""
        return [path for _at_s, one, path in self.asked if one == name]

    def cancel(self, id_: str, *elsewhere: str, answer: str = "") -> None:
        """A request with children there is open here, and its client leaves."""
        request = OpenRequest(id_, "", "", None, now_s(), 600.0)
        self.requests.opened(request, answer, "m", cast(Any, _session()))
        request.elsewhere.update(elsewhere)
        self.requests.ended(request, "cancelled")


def _session() -> SimpleNamespace:
    return SimpleNamespace(timeout_s=600.0, prompt_tokens=0, completion_tokens=0, replicas=[])


def _child(parent: str, timeout_s: float = 600.0) -> OpenRequest:
    request = OpenRequest("child", "", "", None, now_s(), timeout_s)
    request.parent = parent
    return request


async def _took(work: Coroutine[Any, Any, None]) -> float:
    """How long that took, in virtual seconds."""
    began_s = now_s()
    await work
    return now_s() - began_s


def _at_once(others: Others, parent: Callable[[int], str], timeout_s: float) -> asyncio.Future[list[float]]:
    """96 children come together: how long each waited to be adopted."""
    return asyncio.gather(*(_took(others.kinship.adopt(_child(parent(number), timeout_s))) for number in range(96)))


# --- children that begin --------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", [lambda _number: "task", lambda number: f"task-{number}"], ids=["one", "many"])
@virtual_time
async def test_children_wait_for_a_hung_gateway_no_longer_than_their_own_time(parent: Callable[[int], str]) -> None:
    others = Others("dead", "alive")
    others.hung.add("dead")
    async with others.running():
        took_s = await _at_once(others, parent, 0.5)
    assert max(took_s) == pytest.approx(0.5)
    assert 1 <= len(others.calls("dead")) <= CALLS_MAX


@virtual_time
async def test_a_child_without_time_is_not_held_up_to_hear_so() -> None:
    others = Others("dead")
    others.hung.add("dead")
    async with others.running():
        with pytest.raises(DeadlineExceeded):
            await others.kinship.adopt(_child("task", 0.0))
    assert now_s() == 0.0


@virtual_time
async def test_a_gateway_that_did_not_answer_is_left_alone_and_then_tried_by_one() -> None:
    others = Others("dead", "alive")
    others.hung.add("dead")
    async with others.running():
        assert max(await _at_once(others, lambda number: f"a{number}", 600)) == pytest.approx(CALL_TIMEOUT_S)
        before = len(others.calls("dead"))
        assert max(await _at_once(others, lambda number: f"b{number}", 600)) < CALL_TIMEOUT_S / 2
        assert len(others.calls("dead")) == before
        assert len([path for path in others.calls("alive") if "/b" in path]) == 96
        await asyncio.sleep(SILENT_S)
        took_s = sorted(await _at_once(others, lambda number: f"c{number}", 600))
    assert len(others.calls("dead")) == before + 1
    assert took_s[-1] == pytest.approx(CALL_TIMEOUT_S)
    assert took_s[-2] < CALL_TIMEOUT_S / 2


@virtual_time
async def test_what_a_person_asks_goes_to_a_silent_gateway_too_and_finds_it_back() -> None:
    others = Others("dead")
    others.hung.add("dead")
    assert await others.peers.ask_all("GET", "/v1/requests", None) == {"dead": None}
    assert others.peers.silent_s("dead") == SILENT_S
    others.hung.clear()
    assert await others.peers.ask("dead", "POST", "/x", None, unless_silent=True) is None
    assert await others.peers.ask_all("GET", "/v1/requests", None) == {"dead": UNKNOWN}
    assert others.peers.silent_s("dead") == 0.0
    assert await others.peers.ask("dead", "POST", "/x", None, unless_silent=True) == UNKNOWN


@virtual_time
async def test_waiting_for_a_calls_turn_counts_as_its_time() -> None:
    others = Others("dead")
    others.hung.add("dead")
    calls = [_took(cast(Any, others.peers.ask("dead", "GET", "/x", None))) for _ in range(10 * CALLS_MAX)]
    began = asyncio.gather(*calls)
    await asyncio.sleep(CALL_TIMEOUT_S / 2)
    late = await _took(cast(Any, others.peers.ask("dead", "GET", "/late", None)))
    assert max(*await began, late) == pytest.approx(CALL_TIMEOUT_S)
    assert others.calls("dead")[-1] == "late"


@virtual_time
async def test_a_child_does_not_wait_for_calls_to_a_gateway_that_is_known_to_be_silent() -> None:
    others = Others("dead", "alive")
    others.hung.add("dead")
    async with others.running():
        first = asyncio.create_task(others.peers.ask("dead", "GET", "/first", None))
        await asyncio.sleep(CALL_TIMEOUT_S / 2)
        more = [asyncio.create_task(others.peers.ask("dead", "GET", "/x", None)) for _ in range(2 * CALLS_MAX)]
        await first
        assert await _took(others.kinship.adopt(_child("task"))) == pytest.approx(ANSWER_S)
        assert not any(call.done() for call in more)
        await asyncio.gather(*more)


@virtual_time
async def test_one_slow_answer_among_others_and_a_refused_connection_make_nobody_silent() -> None:
    others = Others("one")
    others.hung.add("one")
    slow = asyncio.create_task(others.peers.ask("one", "GET", "/slow", None))
    await settle()
    others.hung.clear()
    assert await others.peers.ask("one", "GET", "/quick", None) == UNKNOWN
    assert await slow is None
    others.refusing.add("one")
    assert await others.peers.ask("one", "GET", "/refused", None) is None
    assert others.peers.silent_s("one") == 0.0


@virtual_time
async def test_children_share_a_question_and_who_comes_later_gets_a_later_answer() -> None:
    others = Others("alive")
    async with others.running():
        first = [_child("task") for _ in range(20)]
        adopting = [asyncio.create_task(others.kinship.adopt(child)) for child in first]
        await settle()
        others.adopted["alive"] = Adopted(30.0, cancelled=False)  # the parent comes after the gateway looked
        later = [_child("task") for _ in range(20)]
        adopting += [asyncio.create_task(others.kinship.adopt(child)) for child in later]
        await asyncio.gather(*adopting)
    assert len(others.calls("alive")) == 2
    assert {child.deadline_s for child in first} == {600.0}
    assert [child.deadline_s for child in later] == [pytest.approx(30.0 + 2 * ANSWER_S)] * 20
    assert others.kinship._questions == {}


@virtual_time
async def test_the_one_that_asked_may_leave_and_the_others_hear_the_answer() -> None:
    others = Others("alive")
    others.adopted["alive"] = Adopted(0.0, cancelled=True)
    async with others.running():
        adopting = [asyncio.create_task(others.kinship.adopt(_child("task"))) for _ in range(3)]
        await settle()
        adopting[0].cancel()
        ends = await asyncio.gather(*adopting, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError, RequestCancelled, RequestCancelled]
    assert len(others.calls("alive")) == 1


@virtual_time
async def test_a_cancellation_that_is_told_while_another_gateway_is_waited_for_holds() -> None:
    others = Others("dead", "alive")
    others.hung.add("dead")
    others.adopted["alive"] = Adopted(30.0, cancelled=False)
    async with others.running():
        child = _child("task")
        adopting = asyncio.create_task(others.kinship.adopt(child))
        await asyncio.sleep(5 * ANSWER_S)
        others.requests.told("", "task", "kill", whole=True)
        await adopting
        with pytest.raises(RequestCancelled):
            others.requests.opened(child, "", "m", cast(Any, _session()))


@virtual_time
async def test_more_parents_than_may_be_asked_for_leave_children_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.gateway.kinship.QUESTIONS_MAX", 10)
    others = Others("alive")
    async with others.running():
        await _at_once(others, lambda number: f"task-{number}", 600)
    assert len(others.calls("alive")) == 10


async def test_a_child_whose_client_leaves_while_its_parent_is_looked_for_never_begins() -> None:
    async with Site() as site:
        await site_of(site)
        async with Gateways(site) as gateways:
            g = await gateways.start("g")
            await gateways.start("h")
            gateways.hung.add("h")
            child = begin(g, "child", parent="task")
            await eventually(lambda: gateways.asked != [])
            child.leave()
            await child.answer()
            assert 'model="",outcome="cancelled"' in g.metrics.text().decode()
            assert g.requests.cancellations == {}


# --- who has to hear of an end --------------------------------------------------------------------------


@virtual_time
async def test_gateways_that_live_hear_of_all_cancellations_while_one_hangs() -> None:
    others = Others("dead", "alive", "well")
    others.hung.add("dead")
    async with others.running():
        for number in range(500):
            others.cancel(f"p{number}", "dead", "alive", "well")
        await asyncio.sleep(500 * ANSWER_S)
        expected = [f"v1/requests/p{number}?mode=kill&told=children" for number in range(500)]
        assert others.calls("alive") == others.calls("well") == expected
        await asyncio.sleep(TOLD_S)
    assert len(others.calls("dead")) <= 2 * TOLD_S
    assert others.kinship.tellings.untold == {("unreached",): 500}
    assert others.kinship.tellings._lines == {}


@virtual_time
async def test_a_gateway_that_answers_again_hears_of_what_it_missed() -> None:
    others = Others("back")
    others.hung.add("back")
    async with others.running():
        for number in range(50):
            others.cancel(f"p{number}", "back")
        await asyncio.sleep(CALL_TIMEOUT_S + 1.0)
        others.hung.clear()
        before = len(others.asked)
        await asyncio.sleep(TOLD_S - 3.0)
    assert {path.partition("?")[0] for _at_s, _name, path in others.asked[before:]} == {
        f"v1/requests/p{number}" for number in range(50)
    }
    assert others.kinship.tellings.untold == {}


@virtual_time
async def test_nothing_is_told_too_late_nor_to_who_is_gone() -> None:
    others = Others("dead", "gone")
    others.hung |= {"dead", "gone"}
    async with others.running():
        others.cancel("p", "dead", "gone")
        await asyncio.sleep(0.5)
        del others.urls["gone"]
        await asyncio.sleep(TOLD_S)
        others.hung.clear()
        before = len(others.asked)
        await asyncio.sleep(10 * TOLD_S)
    assert len(others.asked) == before
    assert others.kinship.tellings.untold == {("unreached",): 1}


@virtual_time
async def test_a_gateway_that_refuses_is_told_a_few_times() -> None:
    others = Others("down")
    others.refusing.add("down")
    async with others.running():
        others.cancel("p", "down")
        await asyncio.sleep(TOLD_S)
    assert len(others.calls("down")) == TRIES_MAX
    assert others.kinship.tellings.untold == {("unreached",): 1}


@virtual_time
async def test_a_full_queue_drops_the_oldest_of_its_own_gateway_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telling, "TOLD_MAX", 5)
    others = Others("dead", "alive")
    others.hung.add("dead")
    async with others.running():
        for number in range(40):
            others.cancel(f"p{number}", "dead", "alive")
            await asyncio.sleep(ANSWER_S)
        waiting = others.kinship.tellings._lines["dead"].waiting
        assert [one.ids[0] for one in waiting] == [f"p{number}" for number in range(35, 40)]
        await asyncio.sleep(2 * ANSWER_S)
        assert len(others.calls("alive")) == 40
        assert others.kinship.tellings.untold == {("full",): 40 - 5 - telling.TELLERS_MAX}
        await asyncio.sleep(2 * TOLD_S)
    assert others.kinship.tellings.untold.total() == 40
    assert sum(record.args[1] for record in caplog.records if record.name == telling.__name__) == 40  # type: ignore
    assert len(caplog.records) < 5


@virtual_time
async def test_both_ids_go_in_one_call() -> None:
    others = Others("alive")
    async with others.running():
        others.cancel("p", "alive", answer="cmpl-1")
        await asyncio.sleep(ANSWER_S)
    assert others.calls("alive") == ["v1/requests/p?mode=kill&told=children&also=cmpl-1"]


async def test_children_elsewhere_that_name_their_parent_by_its_answer_end_with_it() -> None:
    async with Site() as site:
        await site_of(site)
        async with Gateways(site) as gateways:
            g, h = await gateways.start("g"), await gateways.start("h")
            parent = begin(g, "p")
            await running(g, "p")
            (request,) = g.requests.find(None, "p")
            children = [begin(h, "c1", parent="p"), begin(h, "c2", parent=request.response_id)]
            await running(h, "c1", "c2")
            parent.leave()
            answers = [await child.answer() for child in children]
            assert [b"parent_cancelled" in answer.body for answer in answers] == [True, True]
            await parent.answer()
            assert len([call for call in gateways.asked if call[2] == "DELETE"]) == 1
