"""Simulated clients before real serving: two gateways and two replicas in one process, their log written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest

from holdfast.gateway.app import create_app
from holdfast.gateway.machine import Machine
from holdfast.gateway.settings import GatewayProcessSettings
from holdfast.simulations.checkers import check_all
from holdfast.simulations.cluster.door import SimDoor, cut_client
from holdfast.simulations.history import History
from holdfast.simulations.plan import SCENARIOS
from holdfast.simulations.records import CANCELLED, COMPLETE, ERROR, UNREACHED, Request
from holdfast.simulations.work.clients import LOGPROBS, Client
from holdfast.simulations.work.items import CLIENTS, Ask, draw_work
from holdfast.simulations.world.process import SimClock, SimProcess
from holdfast.simulations.world.world import World
from tests.unit.support.history import application
from tests.unit.support.replicas import Site

PORTS = (8000, 8001)
REPLICAS = 2
LASTS_S = 14.0
DRAWN_LASTS_S = 62.0


class Town:
    """A world with everything that clients can see; what they got is in `history`."""

    def __init__(self, seed: str = "1", **engine: Any) -> None:
        self.world = World(seed)
        self.history = History()
        self.world.on_unhandled = lambda process, text: self.history.not_handled(self.world.now_s, process.name, text)
        self._engine = {"itl_ms": 20.0, **engine}
        self.busy: list[bool] = []
        self.doors: list[asyncio.Task[None]] = []
        self.process = self.world.spawn("g", "g", self._gateways)

    async def _gateways(self, process: SimProcess) -> None:
        site = Site()
        site.deploy(application(replicas=REPLICAS))
        self.replicas = [await site.replica(**self._engine) for _ in range(REPLICAS)]
        machine = Machine(
            clock=SimClock(process),
            monotonic_s=process.loop.time,
            entropy=process.rng.randbytes,
            rng=process.rng,
            cut_client=cut_client,
        )
        for number, port in enumerate(PORTS):
            serving = await site.gateway(f"g{number + 1}", migration_limit=100)
            app = create_app(serving, gateway=f"g{number + 1}", machine=machine)
            self.doors.append(asyncio.create_task(SimDoor(process, app, settings(port)).run()))
        await asyncio.get_running_loop().create_future()

    def live(self, *asks: Ask, until_s: float = LASTS_S) -> list[Request]:
        """Let clients ask, and time pass; what became of the requests, each held against what it must be."""
        for number in range(CLIENTS):
            mine = [ask for ask in asks if ask.client == number]
            self.world.spawn(f"c{number}", f"c{number}", partial(self._client, mine, number))
        self.world.scheduler.run(until_s)
        self.history.ended_s = self.world.now_s
        self.busy = [not replica.free for replica in self.replicas]
        violations, unhandled = check_all(self.history), list(self.history.unhandled)
        self.replicas.clear()
        self.doors.clear()
        self.world.on_unhandled = lambda _process, _text: None
        self.world.close()
        assert unhandled == []
        assert violations == []
        assert len(self.history.requests) == len(asks)
        return self.history.requests

    async def _client(self, asks: list[Ask], number: int, process: SimProcess) -> None:
        gateways = {f"http://g:{port}": f"g{at + 1}" for at, port in enumerate(PORTS)}
        await Client(process, self.history, gateways, sticky=number == 0).run(asks)


def settings(port: int) -> GatewayProcessSettings:
    return GatewayProcessSettings(host="g", port=port)


def ask(number: int = 0, **more: Any) -> Ask:
    """A streamed completion of ten tokens, if nothing else is said."""
    fields: dict[str, Any] = {
        "at_s": 2.0 + number / 10,
        "client": number % CLIENTS,
        "model": "tiny",
        "prompt": f"request {number}: hold fast",
        "chat": False,
        "streamed": True,
        "deadline_s": 10.0,
        "max_tokens": 10,
        **more,
    }
    return Ask(number, **fields)


def asks_of(seed: int, count: int = 60) -> list[Ask]:
    """What clients of the standard scenario might ask, of the one model here."""
    work = (item for run in range(3) for item in draw_work(Random(f"{seed}/{run}"), SCENARIOS["standard"]))
    drawn = [item for item in work if isinstance(item, Ask)][:count]
    return [
        changed(item, number=number, parent=-1, model="tiny", prompt=f"{number} {item.prompt}", stops=())
        for number, item in enumerate(drawn)
    ]


def changed(item: Ask, **fields: Any) -> Ask:
    return msgspec.structs.replace(item, **fields)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 2}, {"seed": -5}, {"max_tokens": 0}, {"logprobs": 0}, {"logprobs": 2, "n": 2}, {"wants_usage": True}],
    ids=str,
)
def test_every_form_of_request_gets_the_right_answer(chat: bool, streamed: bool, fields: dict[str, Any]) -> None:
    told = {**fields, "wants_usage": streamed and fields.get("wants_usage", False)}
    (request,) = Town().live(ask(chat=chat, streamed=streamed, **told))
    assert request.how == COMPLETE
    assert len(request.tries) == 1


def test_a_stop_string_ends_a_stream_early() -> None:
    drawn = [item for run in range(20) for item in draw_work(Random(run), SCENARIOS["standard"])]
    stopped = [item for item in drawn if isinstance(item, Ask) and item.stops]
    # Prompt and seed are what the stop strings were made of.
    asks = [changed(item, number=number, model="tiny", pauses=0) for number, item in enumerate(stopped[:10])]
    assert len({item.prompt for item in asks}) == len(asks)
    requests = Town().live(*asks, until_s=DRAWN_LASTS_S)
    ends = [text for request in requests for kind, _, text, _ in request.events if kind == "finish"]
    assert "stop" in ends


def test_a_client_that_leaves_is_cancelled_and_its_stream_ends_at_the_replica() -> None:
    town = Town()
    ways = ("close", "reset")
    requests = town.live(
        *(ask(number, leaves_after=3, leaving=way, max_tokens=1_000) for number, way in enumerate(ways)),
        *(ask(9 + number, leaves_after_s=1.0, leaving=way, max_tokens=1_000) for number, way in enumerate(ways)),
    )
    assert [request.how for request in requests] == [CANCELLED] * 4
    assert all(request.ended_s is not None and request.ended_s < 6.0 for request in requests)
    assert [len(request.events) for request in requests[:2]] == [3, 3]
    assert town.busy == [False, False]


@pytest.mark.parametrize("way", ["close", "reset", "vanish"])
def test_a_client_that_comes_back_goes_on_where_it_was(way: str) -> None:
    (request,) = Town().live(ask(leaves_after=4, leaving=way, returns_after_s=0.5, max_tokens=30))
    assert request.how == COMPLETE
    assert [sent.resumes for sent in request.tries] == ["", f"{request.response_id}:4"]


@pytest.mark.parametrize(("returns_after_s", "ended_s"), [(0.5, None), (100.0, 5.0)])
def test_the_time_that_a_client_is_away_is_noted_and_ends_at_its_deadline(
    returns_after_s: float, ended_s: float | None
) -> None:
    (request,) = Town().live(ask(leaves_after=4, returns_after_s=returns_after_s, max_tokens=30, deadline_s=5.0))
    if ended_s is None:
        assert (request.how, request.paused_s) == (COMPLETE, 0.5)
    else:
        assert request.how == CANCELLED
        assert request.ended_s == pytest.approx(request.deadline_s)
        assert 0.0 < request.paused_s < ended_s


def test_what_a_client_takes_nothing_for_is_noted() -> None:
    (request,) = Town().live(ask(pauses=3, pause_s=0.25))
    assert (request.how, request.paused_s) == (COMPLETE, 0.75)


def test_cut_connections_cost_nobody_a_token() -> None:
    town = Town()
    cuts = [3.0 + number * 0.7 for number in range(10)]

    def cut() -> None:
        for end in town.world.network.ends():
            end.lose(ConnectionResetError("cut"))

    for at_s in cuts:
        town.world.scheduler.call_at(at_s, cut)
    # Whom every cut befalls pauses for some seconds in the end.
    patient = [ask(number, max_tokens=40, deadline_s=30.0) for number in range(40)]
    requests = town.live(*patient, until_s=DRAWN_LASTS_S)
    assert {request.how for request in requests} == {COMPLETE}
    assert sum(bool(sent.resumes) for request in requests for sent in request.tries) > 10
    assert {sent.gateway for request in requests for sent in request.tries} == {"g1", "g2"}


def test_a_gateway_that_closes_sends_its_clients_to_the_other() -> None:
    town = Town()
    town.world.scheduler.call_at(3.0, lambda: town.process.call(town.doors[0].cancel))
    requests = town.live(*(ask(number, max_tokens=300, deadline_s=20.0) for number in range(12)), until_s=25.0)
    assert {request.how for request in requests} == {COMPLETE}
    assert all(request.tries[-1].gateway == "g2" for request in requests)


def test_who_reads_slowly_gets_everything_all_the_same() -> None:
    (request,) = Town().live(ask(pauses=100, pause_s=0.2, max_tokens=30))
    assert request.how == COMPLETE
    assert request.last_s is not None
    assert request.last_s - request.asked_s > 5.0


def test_a_deadline_ends_the_wait_for_gateways_that_say_nothing() -> None:
    town = Town()
    town.world.scheduler.call_at(1.5, town.process.freeze)
    requests = town.live(ask(), ask(1, streamed=False, deadline_s=4.0))
    assert [request.how for request in requests] == [UNREACHED, UNREACHED]
    assert [round(request.ended_s or 0.0) for request in requests] == [12, 6]


def test_what_the_api_refuses_is_noted_with_its_code() -> None:
    town = Town()
    town.world.scheduler.run(1.0)
    requests = town.live(ask(model="tiny"), ask(1, model="none"))
    assert [(request.how, request.code, request.status) for request in requests] == [
        (COMPLETE, "", 0),
        (ERROR, "model_not_found", 404),
    ]


def test_wrong_log_probabilities_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.simulations.work.clients.MOCK_LOGPROB", -1.0)
    town = Town()
    with pytest.raises(AssertionError):
        town.live(ask(logprobs=0))
    assert LOGPROBS in {kind for kind, *_ in town.history.requests[0].events}


def snapshot(seed: str, breaks: Callable[[Town], None]) -> tuple[int, list[Any]]:
    town = Town(seed)
    breaks(town)
    requests = town.live(*asks_of(3), until_s=DRAWN_LASTS_S)
    return town.world.scheduler.trace, [(r.id, r.ended_s, r.how, r.code, r.events, r.tries) for r in requests]


def cutting(town: Town) -> None:
    rng = town.world.rng("cuts")

    def cut() -> None:
        ends = town.world.network.ends()
        if ends:
            end = rng.choice(ends)
            for side in (end, end.other):
                side.lose(ConnectionResetError("cut"))

    for number in range(100):
        town.world.scheduler.call_at(2.0 + number / 3, cut)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_drawn_work_ends_well_whatever_connections_do(seed: str) -> None:
    _trace, requests = snapshot(seed, cutting)
    hows = [how for _, _, how, *_ in requests]
    assert set(hows) <= {COMPLETE, CANCELLED, UNREACHED}
    # What is cut more often than it takes to draw it again, or read too slowly, does not get to its end in time.
    assert hows.count(UNREACHED) < 6
    assert hows.count(COMPLETE) > len(hows) * 3 / 4


def test_a_seed_gives_the_same_run_again() -> None:
    assert snapshot("7", cutting) == snapshot("7", cutting)
    assert snapshot("7", cutting)[0] != snapshot("8", cutting)[0]
