"""Any faults at any time: replicas that are cut off, that freeze and come back with what they had still to say.

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
from tests.unit.gateway.client import CHAT, COMPLETIONS, Answer, ask, chat, completion
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
