"""The log on JetStream while connections, acknowledgements and servers fail."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from holdfast.core.errors import CorruptLog, LogUnavailable, WrongLastSequence
from holdfast.store.embedded import ChildProcess, nats_server
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.jetstream_api import API
from holdfast.store.settings import JetStreamSettings
from tests.contract.helpers import PATIENCE_S, Reading, eventually
from tests.contract.proxy import TcpProxy
from tests.contract.worlds import CALL_TIMEOUT_S, jetstream_settings

DIAL_TRIES = 70


class Rig:
    """A log through a proxy, and a witness with a connection of its own, on one stream."""

    def __init__(self, proxy: TcpProxy, log: JetStreamLog, witness: JetStreamLog, settings: JetStreamSettings) -> None:
        self.proxy, self.log, self.witness, self.settings = proxy, log, witness, settings

    async def open(self, **changes: Any) -> JetStreamLog:
        """One more log through the proxy."""
        return await JetStreamLog.open(self.settings.model_copy(update=changes))

    async def landed(self) -> int:
        return (await self.witness.status()).last_sequence

    async def consumers(self) -> dict[str, Any]:
        """The consumers of the stream, as the server names and counts them."""
        return await self.witness._api.call(f"CONSUMER.NAMES.{self.settings.stream}", timeout_s=PATIENCE_S)


@pytest_asyncio.fixture
async def rig(nats_url: str, stack: AsyncExitStack) -> AsyncIterator[Rig]:
    proxy = await stack.enter_async_context(TcpProxy(nats_url))
    settings = jetstream_settings(proxy.url, duplicate_window_s=0.2)
    witness = await JetStreamLog.open(settings.model_copy(update={"urls": (nats_url,)}))
    stack.push_async_callback(witness.close)
    log = await JetStreamLog.open(settings)
    stack.push_async_callback(log.close)
    yield Rig(proxy, log, witness, settings)


async def test_an_append_whose_acknowledgement_is_lost_returns_its_sequence(rig: Rig) -> None:
    rig.proxy.hold_answers()
    appending = asyncio.create_task(rig.log.append("facts.a", b"x", message_id="m", expected_last=0))
    await eventually(rig.landed)
    rig.proxy.cut()
    assert await appending == 1
    assert await rig.landed() == 1


async def test_it_finds_itself_though_another_appended_behind_it(rig: Rig) -> None:
    rig.proxy.hold_answers()
    appending = asyncio.create_task(rig.log.append("facts.a", b"x", message_id="m", expected_last=0))
    await eventually(rig.landed)
    assert await rig.witness.append("facts.a", b"y", message_id="behind", expected_last=1) == 2
    rig.proxy.cut()
    assert await appending == 1
    assert await rig.landed() == 2


async def test_it_finds_itself_after_the_server_forgot_its_message_id(rig: Rig) -> None:
    rig.proxy.hold_answers()
    appending = asyncio.create_task(rig.log.append("facts.a", b"x", message_id="m", expected_last=0))
    await eventually(rig.landed)
    forgotten = await eventually(lambda: _id_is_free(rig))
    rig.proxy.cut()
    assert await appending == 1
    assert await rig.landed() == forgotten


async def _id_is_free(rig: Rig) -> int:
    """The sequence of an append elsewhere under the same message id, once the duplicate window has passed."""
    connection = await rig.witness._session.connection(PATIENCE_S)
    headers = {"Nats-Msg-Id": "m"}
    answer = await connection.request(f"{rig.settings.subject_prefix}.facts.elsewhere", b"", PATIENCE_S, headers)
    return 0 if b"duplicate" in answer.data else 2


async def test_when_another_got_in_first_the_retry_is_refused(rig: Rig) -> None:
    rig.proxy.freeze()
    appending = asyncio.create_task(rig.log.append("facts.a", b"x", message_id="m", expected_last=0))
    assert await rig.witness.append("facts.a", b"y", message_id="other", expected_last=0) == 1
    rig.proxy.cut()
    with pytest.raises(WrongLastSequence):
        await appending
    assert await rig.landed() == 1


async def test_a_half_open_connection_is_replaced_and_the_append_goes_on(rig: Rig) -> None:
    rig.proxy.freeze()
    assert await rig.log.append("facts.a", b"x", message_id="m", expected_last=0) == 1
    assert rig.log.connected


async def test_a_half_open_connection_is_noticed_without_traffic(rig: Rig) -> None:
    before = rig.proxy.accepted
    rig.proxy.freeze()
    await eventually(lambda: rig.proxy.accepted > before and rig.log.connected)


async def test_a_follower_on_a_half_open_connection_goes_on(rig: Rig) -> None:
    async with Reading(rig.log.follow()) as reading:
        await rig.witness.append("facts.a", b"1", message_id="1", expected_last=0)
        await reading.count(1)
        rig.proxy.freeze()
        await rig.witness.append("facts.a", b"2", message_id="2", expected_last=1)
        assert [entry.sequence for entry in await reading.count(2)] == [1, 2]


async def test_a_follower_whose_connections_are_cut_again_and_again_misses_nothing(rig: Rig) -> None:
    async with Reading(rig.log.follow()) as reading:
        last = 0
        for number in range(400):
            if number % 50 == 0:
                rig.proxy.cut()
            last = await rig.witness.append("facts.a", bytes(2000), message_id=str(number), expected_last=last)
        entries = await reading.count(400)
    assert [entry.sequence for entry in entries] == list(range(1, 401))


async def test_a_follower_whose_consumer_is_deleted_goes_on(rig: Rig) -> None:
    async with Reading(rig.log.follow()) as reading:
        await rig.witness.append("facts.a", b"1", message_id="1", expected_last=0)
        await reading.count(1)
        names = (await rig.witness._api.call(f"CONSUMER.NAMES.{rig.settings.stream}", timeout_s=PATIENCE_S))[
            "consumers"
        ]
        assert len(names) == 1
        await rig.witness._api.call(f"CONSUMER.DELETE.{rig.settings.stream}.{names[0]}", timeout_s=PATIENCE_S)
        await rig.witness.append("facts.a", b"2", message_id="2", expected_last=1)
        assert [entry.sequence for entry in await reading.count(2)] == [1, 2]


async def test_a_follower_leaves_no_consumer_behind(rig: Rig) -> None:
    async def consumers() -> int:
        return int(
            (await rig.witness._api.call(f"CONSUMER.NAMES.{rig.settings.stream}", timeout_s=PATIENCE_S))["total"]
        )

    async def none_left() -> bool:
        return await consumers() == 0

    async with Reading(rig.log.follow()) as reading:
        await rig.witness.append("facts.a", b"1", message_id="1", expected_last=0)
        await reading.count(1)
        assert await consumers() == 1
    await eventually(none_left)


async def test_an_entry_missing_from_the_middle_is_told(nats_url: str, stack: AsyncExitStack) -> None:
    log = await JetStreamLog.open(jetstream_settings(nats_url))
    stack.push_async_callback(log.close)
    for number in range(3):
        await log.append("facts.a", b"", message_id=str(number), expected_last=number)
    # The stream denies single deletions; purging the middle subject makes the same hole.
    await log.append("facts.b", b"", message_id="facts.b", expected_last=0)
    await log.append("facts.a", b"", message_id="after", expected_last=3)
    purge = {"filter": log._api.wire("facts.b")}
    await log._api.call(f"STREAM.PURGE.{log._settings.stream}", purge, timeout_s=PATIENCE_S)
    with pytest.raises(CorruptLog, match="sequence 4 is missing from the middle"):
        async with Reading(log.follow()) as reading:
            await reading.count(5)


async def test_a_follower_ahead_of_the_stream_is_told_that_history_was_lost(
    nats_url: str, stack: AsyncExitStack
) -> None:
    log = await JetStreamLog.open(jetstream_settings(nats_url, read_timeout_s=1))
    stack.push_async_callback(log.close)
    await log.append("facts.a", b"", message_id="1", expected_last=0)
    with pytest.raises(CorruptLog, match="ends at sequence 1, but 5 was read before"):
        async with Reading(log.follow(after=5)) as reading:
            await reading.count(1)


async def test_it_reconnects_after_more_tries_than_the_client_library_would_make(rig: Rig) -> None:
    log = await rig.open(reconnect_wait_max_s=0.01)
    rig.proxy.refusing = True
    rig.proxy.cut()
    await eventually(lambda: not log.connected)
    assert log.down_since is not None
    tries = rig.proxy.accepted
    await eventually(lambda: rig.proxy.accepted - tries > 2 * DIAL_TRIES)  # the other log tries less often
    assert log.down_since <= asyncio.get_running_loop().time()
    rig.proxy.refusing = False
    assert await log.append("facts.a", b"x", message_id="m", expected_last=0) == 1
    assert log.down_since is None
    await log.close()


async def test_what_was_not_appended_in_time_does_not_land_later(rig: Rig) -> None:
    impatient = await rig.open(append_timeout_s=0.5)
    rig.proxy.refusing = True
    rig.proxy.cut()
    with pytest.raises(LogUnavailable):
        await impatient.append("facts.a", b"x", message_id="m", expected_last=0)
    rig.proxy.refusing = False
    # The reconnected client's own next append comes after whatever it might have kept back.
    await eventually(lambda: impatient.connected)
    assert await impatient.append("facts.b", b"y", message_id="n", expected_last=0) == 1
    assert await rig.witness.last_on("facts.a") is None
    await impatient.close()


async def test_an_append_of_unknown_outcome_says_so_within_its_bound(rig: Rig) -> None:
    impatient = await rig.open(append_timeout_s=0.6)
    rig.proxy.hold_answers()
    rig.proxy.refusing = True
    start = asyncio.get_running_loop().time()
    with pytest.raises(LogUnavailable):
        await impatient.append("facts.a", b"x", message_id="m", expected_last=0)
    assert asyncio.get_running_loop().time() - start < CALL_TIMEOUT_S / 2
    assert await rig.landed() == 1
    rig.proxy.refusing = False
    rig.proxy.cut()
    await eventually(lambda: impatient.connected)
    assert await impatient.append("facts.a", b"x", message_id="m", expected_last=0) == 1
    await impatient.close()


async def test_closing_is_bounded_though_the_other_end_is_frozen(rig: Rig) -> None:
    rig.proxy.freeze()
    connection = await rig.log._session.connection(PATIENCE_S)
    for _ in range(64):
        await connection.publish("nobody.listens", bytes(1 << 19))
    async with asyncio.timeout(PATIENCE_S):
        await rig.log.close()


async def test_reads_say_that_nobody_answers(nats_url: str) -> None:
    async with TcpProxy(nats_url) as proxy:
        log = await JetStreamLog.open(jetstream_settings(proxy.url, read_timeout_s=0.5))
        proxy.refusing = True
        proxy.cut()
        with pytest.raises(LogUnavailable, match=proxy.url):
            await log.last_on("facts.a")
        with pytest.raises(LogUnavailable, match=proxy.url):
            await log.status()
        await log.close()


async def test_opening_says_that_nobody_answers() -> None:
    with pytest.raises(LogUnavailable, match=r"nats://127\.0\.0\.1:9.*Connect call failed"):
        await JetStreamLog.open(jetstream_settings("nats://127.0.0.1:9", open_timeout_s=1))


async def test_a_dead_server_among_several_is_passed_over(nats_url: str) -> None:
    log = await JetStreamLog.open(jetstream_settings("nats://127.0.0.1:9", nats_url))
    assert await log.append("facts.a", b"", message_id="m", expected_last=0) == 1
    await log.close()


@pytest_asyncio.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[ChildProcess]:
    async with nats_server(tmp_path) as server:
        yield server


async def test_a_frozen_server_delays_appends_and_doubles_none(own_server: ChildProcess) -> None:
    log = await JetStreamLog.open(jetstream_settings(own_server.url))
    async with Reading(log.follow()) as reading:
        await log.append("facts.a", b"", message_id="1", expected_last=0)
        assert own_server.pid is not None
        os.kill(own_server.pid, signal.SIGSTOP)
        appending = asyncio.create_task(log.append("facts.a", b"", message_id="2", expected_last=1))
        await eventually(lambda: not log.connected)
        assert log.down_since is not None
        os.kill(own_server.pid, signal.SIGCONT)
        assert await appending == 2
        assert [entry.message_id for entry in await reading.count(2)] == ["1", "2"]
    await log.close()


async def test_a_server_without_jetstream_is_told(tmp_path: Path, stack: AsyncExitStack) -> None:
    server = await stack.enter_async_context(
        nats_server(tmp_path, more_config="accounts { A { users [{user: u, password: p}] } }")
    )
    with pytest.raises(Exception, match="JetStream is not enabled"):
        await JetStreamLog.open(jetstream_settings(server.url, user="u", password="p"))


async def test_the_stream_is_named_when_it_vanishes(nats_url: str, stack: AsyncExitStack) -> None:
    log = await JetStreamLog.open(jetstream_settings(nats_url, read_timeout_s=1, append_timeout_s=0.3))
    stack.push_async_callback(log.close)
    connection = await log._session.connection(PATIENCE_S)
    await connection.request(f"{API}.STREAM.DELETE.{log._settings.stream}", b"", PATIENCE_S)
    with pytest.raises(CorruptLog, match="is gone from the servers"):
        async with Reading(log.follow()) as reading:
            await reading.count(1)
    with pytest.raises(LogUnavailable):
        await log.append("facts.a", b"", message_id="m", expected_last=0)
