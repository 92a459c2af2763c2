"""Any faults at any time: replicas that are cut off, that freeze and come back with what they had still to say,
gateways that are lost with their clients' streams, which resume at others.

As in `test_migration`, from the client's bytes to the engines; here two gateways serve several clients at once, and
what breaks, and when, is drawn by hypothesis.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.actors.engines.mock import mock_text
from holdfast.core.requests import EngineRequest, Sampling
from holdfast.core.stream import BARREN_ATTEMPTS_MAX
from holdfast.gateway.app import App, create_app
from holdfast.gateway.backend import Resumption
from holdfast.gateway.serving import Serving
from tests.unit.gateway.client import CHAT, COMPLETIONS, Answer, ask, chat, completion
from tests.unit.support import replicas as support
from tests.unit.support.answers import assert_given_up, by_choice
from tests.unit.support.history import application
from tests.unit.support.memory_network import MemoryNetworkLoop, MemoryServer
from tests.unit.support.replicas import LocalReplica, Site, eventually, replicas_ready

REPLICAS = 3
FREEZE_MAX_S = 1.7
"""A replica's watch on its engine, which is not frozen here with the rest, ends it after 2 s."""

TOKENS = 40
WHOLE = mock_text(EngineRequest(prompt="hold fast", sampling=Sampling(seed=7)), TOKENS)
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": TOKENS}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, completion(logprobs=2, **STREAM)),
    (CHAT, chat(n=2, logprobs=True, top_logprobs=1, **STREAM)),
    (COMPLETIONS, completion(stop=[WHOLE[60:80], WHOLE[20:40] + "@"], **STREAM)),
    (CHAT, chat(**STREAM)),
]


class Fault(NamedTuple):
    """A replica is frozen for a while; or its connections are cut, where it lasts no time. Times in seconds."""

    at_s: float
    replica: int
    lasts_s: float


faults = st.builds(
    Fault,
    at_s=st.floats(0.0, 1.5),
    replica=st.integers(0, REPLICAS - 1),
    lasts_s=st.just(0.0) | st.floats(0.1, FREEZE_MAX_S),
)


async def befalls(fault: Fault, replica: LocalReplica) -> None:
    """Let it happen in its time."""
    await asyncio.sleep(fault.at_s)
    if not fault.lasts_s:
        replica.cut()
        return
    assert isinstance(replica._server, MemoryServer)
    replica._server.freeze()
    replica.engine.hang()
    await asyncio.sleep(fault.lasts_s)
    replica._server.thaw()
    replica.engine.resume()


async def answers(schedule: list[Fault]) -> list[Answer]:
    """What clients get while all that happens. Afterwards all replicas serve again, and hold nothing."""
    site = Site()
    site.deploy(application(replicas=REPLICAS))
    async with site:
        replicas = [await site.replica(itl_ms=20, ttft_ms=30) for _ in range(REPLICAS)]
        gateways = [await site.gateway(name, migration_limit=100, heartbeat_timeout_s=1.0) for name in ("g", "h")]
        apps: list[App] = [create_app(gateway) for gateway in gateways]
        async with asyncio.TaskGroup() as group:
            for fault in schedule:
                group.create_task(befalls(fault, replicas[fault.replica]))
            sent = [
                group.create_task(ask(apps[number % 2], path, body)) for number, (path, body) in enumerate(REQUESTS)
            ]
        await eventually(lambda: all(replicas_ready(gateway) == REPLICAS for gateway in gateways))
        await eventually(lambda: all(replica.free for replica in replicas))
        return [task.result() for task in sent]


def run(schedule: list[Fault]) -> list[Answer]:
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        return runner.run(answers(schedule))


@cache
def undisturbed() -> list[dict[int, list[str]]]:
    return [by_choice(answer) for answer in run([])]


@settings(max_examples=40, deadline=None)
@given(st.lists(faults, max_size=8))
def test_clients_get_the_right_answers_whatever_breaks_and_comes_back(schedule: list[Fault]) -> None:
    for answer, right in zip(run(schedule), undisturbed(), strict=True):
        if answer.status != 200 or '"error"' in answer.events[-1].data:
            # So many attempts in a row were taken in and broke off without a token.
            assert len(schedule) >= BARREN_ATTEMPTS_MAX
            check_given_up(answer, right)
        else:
            assert by_choice(answer) == right


def check_given_up(answer: Answer, right: dict[int, list[str]]) -> None:
    if answer.status == 200:
        assert_given_up(answer, right, "stream_lost")
    else:
        assert (answer.status, answer.error["code"]) == (503, "stream_lost")


class Gateways:
    """Gateways that are lost one after the other, and the clients that read from them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._count = 0
        self.alive: list[Serving] = []
        self._readers: dict[asyncio.Task[support.Answer], Serving] = {}

    async def add(self) -> None:
        """Start one more."""
        self._count += 1
        self.alive.append(await self._site.gateway(f"g{self._count}", ready=0, migration_limit=100))

    async def lose(self, at_s: float) -> None:
        """The gateway that has been there longest is lost at its time, after another has come."""
        await asyncio.sleep(at_s)
        await self.add()
        gateway = self.alive.pop(0)
        for link in gateway._links.values():
            link._on_orphans = lambda _runs, _cause: None
            link._contact.cut()
            link.retire()
        for reader, owner in self._readers.items():
            if owner is gateway:
                reader.cancel()

    async def ask(self, number: int, request: EngineRequest) -> support.Answer:
        """Read the whole answer, wherever that takes; what a client has got it tells the next gateway."""
        answer, resumption = support.Answer(), None
        while True:
            gateway = self.alive[number % len(self.alive)]
            reader = asyncio.create_task(self._read(gateway, answer, f"cmpl-{number}", request, resumption))
            self._readers[reader] = gateway
            try:
                return await reader
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    raise
                resumption = Resumption((len(answer.counts.get(0, [])),), replay=False)
            finally:
                del self._readers[reader]

    async def _read(
        self, gateway: Serving, answer: support.Answer, name: str, request: EngineRequest, resumption: Resumption | None
    ) -> support.Answer:
        async with gateway.open("tiny", [request], stops=[], name=name, resumption=resumption) as session:
            return await answer.read(session)


async def resumes(schedule: list[Fault], losses_s: list[float]) -> None:
    """Clients that resume at other gateways get each token once, whatever befalls replicas meanwhile."""
    site = Site()
    site.deploy(application(replicas=REPLICAS))
    async with site:
        replicas = [await site.replica(itl_ms=20, ttft_ms=30) for _ in range(REPLICAS)]
        gateways = Gateways(site)
        for _ in range(2):
            await gateways.add()
        await eventually(lambda: all(replicas_ready(gateway) == REPLICAS for gateway in gateways.alive))
        requests = [support.ask(f"prompt {number}", TOKENS, logprobs=number - 1) for number in range(4)]
        async with asyncio.TaskGroup() as group:
            for fault in schedule:
                group.create_task(befalls(fault, replicas[fault.replica]))
            for at_s in losses_s:
                group.create_task(gateways.lose(at_s))
            readers = [group.create_task(gateways.ask(*asked)) for asked in enumerate(requests)]
        for reader, request in zip(readers, requests, strict=True):
            reader.result().check(request)
        await eventually(lambda: all(replica.free for replica in replicas))


@settings(max_examples=30, deadline=None)
@given(st.lists(faults, max_size=2), st.lists(st.floats(0.0, 1.5), min_size=1, max_size=4))
def test_clients_of_lost_gateways_get_the_right_answers_from_others(
    schedule: list[Fault], losses_s: list[float]
) -> None:
    """Fewer faults of replicas than it takes for a stream to be given up."""
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(resumes(schedule, losses_s))
