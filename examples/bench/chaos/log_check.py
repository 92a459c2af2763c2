"""Whether a log is sound: read by a server of our own after the cluster has ended."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

import msgspec

from holdfast.core.cluster import ClusterState
from holdfast.core.entries import decode_record
from holdfast.core.errors import HoldfastError
from holdfast.core.ports import LogEntry
from holdfast.core.state import apply, state_hash
from holdfast.gateway.cli.reading import existing_log
from holdfast.gateway.settings import Settings, load_settings
from holdfast.store.embedded import nats_server

READ_TIMEOUT_S: Final = 120.0


class Fold(msgspec.Struct, frozen=True):
    """How far somebody has folded the log, and the hash of the state there."""

    sequence: int
    hash: str


class LogReport(msgspec.Struct, frozen=True):
    """What was read, and what is wrong with it. `ignored`: decisions of deposed leaders that stand in it."""

    events: int
    ignored: int
    problems: list[str]


def settings_for(cluster: str, urls: list[str]) -> Settings:
    """What reaches a cluster's log."""
    settings = load_settings(cluster=cluster)
    return settings.model_copy(update={"nats": settings.nats.model_copy(update={"urls": tuple(urls)})})


async def read_ended(data_dir: Path, cluster: str, seen: Fold | None, copy: Path) -> LogReport:
    """Read the log of a cluster that has ended, from its files, and write it to `copy`, an event a line.

    `seen` is what a follower knew of it while the cluster ran.
    """
    async with nats_server(data_dir) as server, existing_log(settings_for(cluster, [server.url])) as log:
        last = (await log.status()).last_sequence
        entries: list[LogEntry] = []
        async with asyncio.timeout(READ_TIMEOUT_S), contextlib.aclosing(log.follow(0)) as following:
            async for entry in following:
                entries.append(entry)
                if entry.sequence >= last:
                    break
    lines = [b'{"sequence":%d,"event":%b}\n' % (entry.sequence, entry.data) for entry in entries]
    await asyncio.to_thread(copy.write_bytes, b"".join(lines))
    return check_log(entries, last, seen)


def check_log(entries: list[LogEntry], last: int, seen: Fold | None) -> LogReport:
    """Sequences from 1 to `last` without a hole, each id once, a fold without error, the same as `seen`."""
    problems = []
    sequences = [entry.sequence for entry in entries]
    if sequences != list(range(1, last + 1)):
        problems.append(f"the sequences are not 1 to {last}: {len(sequences)} entries, ending with {sequences[-3:]}")
    state, ids = ClusterState(), set[str]()
    hash_then = None
    for entry in entries:
        try:
            record = decode_record(entry)
            state = apply(state, record)
        except HoldfastError as error:
            problems.append(f"sequence {entry.sequence} can't be folded: {error}")
            break
        if record.event.id in ids:
            problems.append(f"sequence {entry.sequence}: the id {record.event.id} is there already")
        ids.add(record.event.id)
        if seen is not None and entry.sequence == seen.sequence:
            hash_then = state_hash(state)
    if seen is not None and hash_then != seen.hash:
        problems.append(
            f"at sequence {seen.sequence} the follower that lived through it all had state {seen.hash}, "
            f"and the fold of the log is {hash_then}"
        )
    return LogReport(len(entries), state.ignored, problems)
