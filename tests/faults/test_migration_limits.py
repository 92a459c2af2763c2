"""Streams that may not move, or have nowhere to go: they end in one error event, with no token that is not theirs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import NO_CANARY, PATIENCE, Cluster, clusters
from tests.faults.exactness import migrations, send, wait_for_full_strength
from tests.faults.test_replica_faults import ready, running
from tests.unit.gateway.client import COMPLETIONS, Answer, completion
from tests.unit.support.answers import assert_given_up, by_choice

PACE = {"itl_ms": 10, "faults": True}
PROMPT = "hold fast"
LONGEST = 160
"""Streams of more tokens, the prompt's two included, don't migrate here."""

REPLICA_WAIT_S = 6
LIMITS = {
    **PATIENCE,
    "HOLDFAST_SERVING__HEARTBEAT_TIMEOUT_S": "5",
    "HOLDFAST_SERVING__MIGRATION_LIMIT": "1",
    "HOLDFAST_SERVING__MIGRATION_MAX_SEQ_LEN": str(LONGEST),
    "HOLDFAST_SERVING__REPLICA_WAIT_S": f"{REPLICA_WAIT_S}",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas, between which a stream may move once while it is short."""
    with clusters(tmp_path_factory) as start:
        yield start(*NO_CANARY, engine_args=PACE, replicas=2, environment=LIMITS)


async def ask(cluster: Cluster, tokens: int, kills: str = "", **how: Any) -> Answer:
    """A stream of so many tokens; its replicas are killed when it has as many as `kills` says."""
    mark = f"[[fault:kill {kills}]]" if kills else ""
    body = completion(model="mock", max_tokens=tokens, stream=True, logprobs=1) | {"prompt": PROMPT + mark}
    return await send(cluster, COMPLETIONS, body, **how)


async def assert_error_after(cluster: Cluster, tokens: int, kills: str, code: str) -> str:
    """The stream ends in one error after as many tokens as it had at its last kill; the error's message."""
    undisturbed = by_choice(await ask(cluster, tokens))
    answer = await ask(cluster, tokens, kills)
    assert assert_given_up(answer, undisturbed, code) == int(kills.split()[-1])
    message: str = answer.chunks[-1]["error"]["message"]
    return message


async def test_a_stream_that_may_not_migrate_ends_in_an_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    # The first test here, so that the others' cluster doesn't run yet.
    with clusters(tmp_path_factory) as start:
        cluster = start(engine_args=PACE, replicas=2, environment={**LIMITS, "HOLDFAST_SERVING__MIGRATION_LIMIT": "0"})
        await assert_error_after(cluster, 30, "7", "stream_lost")
        assert migrations(cluster) == 0


async def test_a_stream_over_the_limit_of_migrations_ends_in_an_error(cluster: Cluster) -> None:
    wait_for_full_strength(cluster, 2)
    undisturbed = by_choice(await ask(cluster, 40))
    assert by_choice(await ask(cluster, 40, "7")) == undisturbed
    wait_for_full_strength(cluster, 2)
    before = migrations(cluster)
    await assert_error_after(cluster, 40, "7 21", "stream_lost")
    assert migrations(cluster) == before + 1


async def test_a_stream_that_is_too_long_to_migrate_ends_in_an_error(cluster: Cluster) -> None:
    wait_for_full_strength(cluster, 2)
    undisturbed = by_choice(await ask(cluster, LONGEST))
    assert by_choice(await ask(cluster, LONGEST, str(LONGEST - 2))) == undisturbed
    wait_for_full_strength(cluster, 2)
    before = migrations(cluster)
    message = await assert_error_after(cluster, LONGEST, str(LONGEST - 1), "stream_lost")
    assert "migration_max_seq_len" in message
    assert migrations(cluster) == before


async def test_a_stream_without_a_replica_waits_so_long_and_ends_in_an_error(cluster: Cluster) -> None:
    wait_for_full_strength(cluster, 2)
    status = cluster.status()
    node = status["nodes"][0]["pid"]
    os.kill(node, signal.SIGSTOP)
    try:
        os.kill(running(status)[0]["pid"], signal.SIGKILL)
        cluster.wait_health(lambda health: ready(health) == 1)
        began_s = asyncio.get_running_loop().time()
        undisturbed = by_choice(await ask(cluster, 30))
        message = await assert_error_after(cluster, 30, "9", "no_replica")
        assert f"within {REPLICA_WAIT_S} seconds" in message
        assert asyncio.get_running_loop().time() - began_s >= REPLICA_WAIT_S
        refused = await ask(cluster, 30)
        assert (refused.status, refused.error["code"]) == (503, "no_replica")
    finally:
        os.kill(node, signal.SIGCONT)
    wait_for_full_strength(cluster, 2)
    assert by_choice(await ask(cluster, 30)) == undisturbed


async def test_a_stream_without_a_replica_goes_on_when_one_is_back_in_time(cluster: Cluster) -> None:
    wait_for_full_strength(cluster, 2)
    undisturbed = by_choice(await ask(cluster, LONGEST - 10))
    began = asyncio.Event()
    replicas = [one["pid"] for one in running(cluster.status())]
    sent = asyncio.create_task(ask(cluster, LONGEST - 10, on_event=lambda _events: began.set()))
    await began.wait()
    for pid in replicas:
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.to_thread(cluster.wait_health, lambda health: queued(health) == 1)
    finally:
        for pid in replicas:
            os.kill(pid, signal.SIGCONT)
    assert by_choice(await sent) == undisturbed


def queued(health: dict[str, Any]) -> int:
    return sum(model["queued"] for model in health["details"]["models"].values()) if health else 0
