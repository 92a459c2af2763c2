"""What the `Log` port promises, over the in-memory log and over JetStream."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.core.errors import CorruptLog, LogFull, LogUnavailable, Misuse, WrongLastSequence
from holdfast.core.ports import Log, LogEntry
from tests.contract.helpers import PATIENCE_S, Reading
from tests.contract.worlds import LogWorld


async def write(log: Log, subject: str, count: int, *, last: int = 0, tag: str = "m") -> int:
    """Append `count` messages one after the other; the last one's sequence."""
    for number in range(count):
        message_id = f"{subject}-{tag}-{number}"
        last = await log.append(subject, str(number).encode(), message_id=message_id, expected_last=last)
    return last


async def test_sequences_count_from_one_over_all_subjects(log_world: LogWorld) -> None:
    log = await log_world.client()
    assert await log.append("facts.a", b"1", message_id="1", expected_last=0) == 1
    assert await log.append("facts.b.c", b"2", message_id="2", expected_last=0) == 2
    assert await log.append("facts.a", b"3", message_id="3", expected_last=1) == 3


async def test_an_entry_keeps_subject_data_and_message_id(log_world: LogWorld) -> None:
    log = await log_world.client()
    data = bytes(range(256)) * 10
    await log.append("facts.node-1", data, message_id="id/1:x", expected_last=0)
    async with Reading(log.follow()) as reading:
        assert await reading.count(1) == [LogEntry(1, "facts.node-1", data, "id/1:x")]
    assert await log.last_on("facts.node-1") == LogEntry(1, "facts.node-1", data, "id/1:x")


async def test_an_empty_message_is_kept(log_world: LogWorld) -> None:
    log = await log_world.client()
    await log.append("facts.a", b"", message_id="empty", expected_last=0)
    assert await log.last_on("facts.a") == LogEntry(1, "facts.a", b"", "empty")
    async with Reading(log.follow()) as reading:
        assert await reading.count(1) == [LogEntry(1, "facts.a", b"", "empty")]


async def test_a_stale_expectation_is_refused_and_appends_nothing(log_world: LogWorld) -> None:
    log = await log_world.client()
    await write(log, "facts.a", 2)
    with pytest.raises(WrongLastSequence) as caught:
        await log.append("facts.a", b"late", message_id="late", expected_last=1)
    assert (caught.value.subject, caught.value.expected) == ("facts.a", 1)
    with pytest.raises(WrongLastSequence):
        await log.append("facts.a", b"first", message_id="first", expected_last=0)
    assert (await log.status()).last_sequence == 2


async def test_an_expectation_ahead_of_the_subject_is_refused(log_world: LogWorld) -> None:
    log = await log_world.client()
    await write(log, "facts.a", 1)
    with pytest.raises(WrongLastSequence):
        await log.append("facts.a", b"", message_id="ahead", expected_last=7)
    with pytest.raises(WrongLastSequence):
        await log.append("facts.empty", b"", message_id="ahead", expected_last=1)


async def test_the_same_append_again_returns_the_same_sequence(log_world: LogWorld) -> None:
    log = await log_world.client()
    first = await log.append("facts.a", b"x", message_id="once", expected_last=0)
    assert await log.append("facts.a", b"x", message_id="once", expected_last=0) == first
    assert (await log.status()).messages == 1


async def test_the_same_append_again_finds_itself_behind_later_entries(log_world: LogWorld) -> None:
    log = await log_world.client()
    first = await log.append("facts.a", b"x", message_id="once", expected_last=0)
    await write(log, "facts.a", 3, last=first)
    assert await log.append("facts.a", b"x", message_id="once", expected_last=0) == first


async def test_a_message_id_used_for_another_append_is_misuse(log_world: LogWorld) -> None:
    log = await log_world.client()
    last = await log.append("facts.a", b"x", message_id="once", expected_last=0)
    with pytest.raises(Misuse, match="once is used already, by sequence 1"):
        await log.append("facts.a", b"y", message_id="once", expected_last=last)
    with pytest.raises(Misuse, match="once is used already"):
        await log.append("facts.b", b"y", message_id="once", expected_last=0)


@pytest.mark.parametrize("subject", ["", "a..b", "a.*", ">", "a b", "a\r\nPUB x", "ä", ".a"])
async def test_an_impossible_subject_is_misuse(log_world: LogWorld, subject: str) -> None:
    log = await log_world.client()
    with pytest.raises(Misuse):
        await log.append(subject, b"", message_id="m", expected_last=0)
    with pytest.raises(Misuse):
        await log.last_on(subject)


@pytest.mark.parametrize("message_id", ["", " m", "a\nb", "x" * 257])
async def test_an_impossible_message_id_is_misuse(log_world: LogWorld, message_id: str) -> None:
    log = await log_world.client()
    with pytest.raises(Misuse):
        await log.append("facts.a", b"", message_id=message_id, expected_last=0)


async def test_a_message_over_the_limit_is_misuse(log_world: LogWorld) -> None:
    log = await log_world.client()
    with pytest.raises(Misuse, match="max_message_bytes"):
        await log.append("facts.a", bytes((1 << 20) + 1), message_id="m", expected_last=0)


async def test_of_concurrent_writers_with_one_expectation_exactly_one_wins(log_world: LogWorld) -> None:
    logs = [await log_world.client() for _ in range(8)]

    async def attempt(number: int) -> int | None:
        try:
            return await logs[number].append("facts.a", b"", message_id=f"writer-{number}", expected_last=0)
        except WrongLastSequence:
            return None

    won = [number for number, result in enumerate(await asyncio.gather(*map(attempt, range(8)))) if result]
    assert len(won) == 1
    last = await logs[0].last_on("facts.a")
    assert last is not None
    assert last.message_id == f"writer-{won[0]}"
    assert (await logs[0].status()).messages == 1


async def test_concurrent_writers_on_their_own_subjects_all_get_in(log_world: LogWorld) -> None:
    logs = [await log_world.client() for _ in range(4)]
    await asyncio.gather(*(write(log, f"facts.w.{number}", 20) for number, log in enumerate(logs)))
    async with Reading(logs[0].follow()) as reading:
        entries = await reading.count(80)
    assert [entry.sequence for entry in entries] == list(range(1, 81))
    for number in range(4):
        assert [e.data for e in entries if e.subject == f"facts.w.{number}"] == [str(i).encode() for i in range(20)]


async def test_follow_from_the_middle_while_others_append(log_world: LogWorld) -> None:
    log, other = await log_world.client(), await log_world.client()
    last = await write(log, "facts.a", 10)
    async with Reading(log.follow(after=5)) as reading:
        await reading.count(5)
        await write(other, "facts.a", 30, last=last, tag="late")
        entries = await reading.count(35)
    assert [entry.sequence for entry in entries] == list(range(6, 41))


async def test_follow_after_the_last_entry_waits_for_the_next(log_world: LogWorld) -> None:
    log = await log_world.client()
    last = await write(log, "facts.a", 3)
    async with Reading(log.follow(after=last)) as reading:
        await log.append("facts.b", b"new", message_id="new", expected_last=0)
        assert [entry.sequence for entry in await reading.count(1)] == [4]


async def test_a_follower_is_told_how_much_there_is_behind_an_entry(log_world: LogWorld) -> None:
    log = await log_world.client()
    last = await write(log, "facts.a", 3)
    async with Reading(log.follow()) as reading:
        assert [entry.pending for entry in await reading.count(3)] == [2, 1, 0]
        await write(log, "facts.a", 1, last=last, tag="late")
        assert [entry.pending for entry in await reading.count(4)] == [2, 1, 0, 0]


async def test_two_followers_see_the_same(log_world: LogWorld) -> None:
    log = await log_world.client()
    async with Reading(log.follow()) as one, Reading(log.follow()) as two:
        await write(log, "facts.a", 50)
        seen = [[(e.sequence, e.subject, e.data, e.message_id) for e in await each.count(50)] for each in (one, two)]
    assert seen[0] == seen[1]


async def test_a_slow_follower_loses_nothing(log_world: LogWorld) -> None:
    log = await log_world.client()
    writers = 20
    await asyncio.gather(*(write(log, f"facts.w.{number}", 150) for number in range(writers)))
    seen: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        async for entry in log.follow():
            if len(seen) % 1000 == 0:
                await asyncio.sleep(0.2)
            seen.append(entry.sequence)
            if len(seen) == writers * 150:
                break
    assert seen == list(range(1, writers * 150 + 1))


async def test_last_on_an_unused_subject_is_none(log_world: LogWorld) -> None:
    log = await log_world.client()
    await write(log, "facts.a", 1)
    assert await log.last_on("facts.b") is None


async def test_status_tells_how_the_stream_stands(log_world: LogWorld) -> None:
    log = await log_world.client()
    await write(log, "facts.a", 3)
    status = await log.status()
    assert (status.first_sequence, status.last_sequence, status.messages) == (1, 3, 3)
    assert status.bytes > 0
    assert status.replicas == 1
    assert status.url
    assert status.server_version


async def test_a_full_log_refuses_and_keeps_its_history(log_world: LogWorld) -> None:
    log = await log_world.limited(1 << 16)
    last = 0
    while last < 12:
        last = await log.append("facts.a", bytes(4096), message_id=f"m{last}", expected_last=last)
    with pytest.raises(LogFull, match="full"):
        await log.append("facts.a", bytes(20_000), message_id="too-much", expected_last=last)
    status = await log.status()
    assert (status.first_sequence, status.last_sequence) == (1, last)
    assert status.bytes <= status.bytes_max == 1 << 16
    assert await log.append("facts.a", bytes(4096), message_id=f"m{last - 1}", expected_last=last - 1) == last


async def test_following_trimmed_history_is_told(log_world: LogWorld) -> None:
    log = await log_world.client()
    await write(log, "facts.a", 10)
    await log_world.trim(6)
    async with Reading(log.follow(after=5)) as reading:
        assert [entry.sequence for entry in await reading.count(5)] == [6, 7, 8, 9, 10]
    with pytest.raises(CorruptLog, match="begins at sequence 6, but 5 is needed"):
        async with Reading(log.follow(after=4)) as reading:
            await reading.count(1)


async def test_a_closed_log_says_so(log_world: LogWorld) -> None:
    log = await log_world.client()
    await log.close()
    with pytest.raises(LogUnavailable, match="closed"):
        await log.append("facts.a", b"", message_id="m", expected_last=0)
    with pytest.raises(LogUnavailable, match="closed"):
        await anext(log.follow())
    await log.close()


async def test_follow_and_appends_ride_out_a_crash(frail_log_world: LogWorld) -> None:
    log, reader = await frail_log_world.client(), await frail_log_world.client()
    async with Reading(reader.follow()) as reading:
        last = await write(log, "facts.a", 20)
        await reading.count(20)
        await frail_log_world.crash()
        writing = asyncio.create_task(write(log, "facts.a", 20, last=last, tag="late"))
        await frail_log_world.recover()
        await writing
        entries = await reading.count(40)
    assert [entry.sequence for entry in entries] == list(range(1, 41))
    assert len({entry.message_id for entry in entries}) == 40


async def test_nothing_acknowledged_is_lost_or_doubled_by_repeated_crashes(frail_log_world: LogWorld) -> None:
    logs = [await frail_log_world.client() for _ in range(4)]
    async with Reading(logs[0].follow()) as reading:
        writing = asyncio.gather(*(write(log, f"facts.w.{number}", 60) for number, log in enumerate(logs)))
        for count in (20, 60, 100):
            await reading.count(count)
            await frail_log_world.crash()
            await frail_log_world.recover()
        await writing
        entries = await reading.count(240)
    assert [entry.sequence for entry in entries] == list(range(1, 241))
    for number in range(4):
        assert [e.data for e in entries if e.subject == f"facts.w.{number}"] == [str(i).encode() for i in range(60)]
