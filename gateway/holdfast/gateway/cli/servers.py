"""Looks at the log and lease servers one by one: which of them answers, who leads, who has yet to catch up.

Clients are content with a majority, so a cluster that lost one of three serves as before. People want to know it
nevertheless: the next loss would be one too many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import msgspec
import nats.errors

from holdfast.core.errors import HoldfastError
from holdfast.gateway.data_dir import Service
from holdfast.store.etcd_gateway import EtcdGateway
from holdfast.store.jetstream_api import API, ApiError, parsed
from holdfast.store.nats_connection import Connection
from holdfast.store.nats_link import ConnectionLost, NoResponders
from holdfast.store.settings import EtcdSettings, JetStreamSettings

PROBE_S = 1.0
"""How long one server may take to answer, in seconds."""


class ServerView(msgspec.Struct, frozen=True):
    """One server. `role` is None while it does not answer, has no leader, or is the only one.

    `problem` is what is wrong with it, in words; empty when nothing is.
    """

    name: str
    url: str
    pid: int | None
    reachable: bool
    role: Literal["leader", "follower"] | None = None
    problem: str = ""


class _Heard(msgspec.Struct, frozen=True):
    """What a log server told: its name in its cluster, and what it knows of the stream."""

    name: str
    stream: dict[str, Any] | None


async def log_servers(settings: JetStreamSettings, noted: Service | None) -> list[ServerView]:
    """The log's servers. The roles are those in the log's stream."""
    found = await _ask_all(settings.urls, lambda url: _ask_log_server(settings, url))
    stream = next((one.stream for one in found if isinstance(one, _Heard) and one.stream is not None), None)
    views = []
    for url, one in zip(settings.urls, found, strict=True):
        name, pid = named(noted, url)
        if isinstance(one, str):
            views.append(ServerView(name, url, pid, False, None, f"does not answer: {one}"))
        else:
            views.append(ServerView(name, url, pid, True, *_place_in(stream, one.name)))
    return views


async def lease_servers(settings: EtcdSettings, noted: Service | None) -> list[ServerView]:
    """The same of the lease servers."""
    found = await _ask_all(settings.endpoints, lambda url: _ask_lease_server(settings, url))
    views = []
    for url, one in zip(settings.endpoints, found, strict=True):
        name, pid = named(noted, url)
        if isinstance(one, str):
            views.append(ServerView(name, url, pid, False, None, f"does not answer: {one}"))
            continue
        leader = int(one.get("leader", 0))
        if not leader:
            views.append(ServerView(name, url, pid, True, None, "knows no leader: it hears no majority"))
        else:
            mine = int(one["header"]["member_id"])
            views.append(ServerView(name, url, pid, True, "leader" if leader == mine else "follower"))
    return views


def named(noted: Service | None, url: str) -> tuple[str, int | None]:
    """A server's name and process, where `up` noted them; else its URL stands for it."""
    for server in noted.servers if noted else ():
        if server.url == url:
            return server.id, server.pid
    return url, None


async def _ask_all(urls: Sequence[str], ask: Callable[[str], Awaitable[Any]]) -> list[Any]:
    """What each answered, or a text that says why it did not."""

    async def bounded(url: str) -> Any:
        try:
            async with asyncio.timeout(2 * PROBE_S):
                return await ask(url)
        except (HoldfastError, nats.errors.Error, OSError) as error:
            return str(error) or type(error).__name__

    return await asyncio.gather(*(bounded(url) for url in urls))


async def _ask_log_server(settings: JetStreamSettings, url: str) -> _Heard:
    impatient = settings.model_copy(update={"connect_timeout_s": PROBE_S})
    connection = await Connection.dial(impatient, url)
    try:
        answer = await connection.request(f"{API}.STREAM.INFO.{settings.stream}", b"", PROBE_S)
        return _Heard(connection.server_name, parsed(answer.data))
    except (ApiError, ConnectionLost, NoResponders, TimeoutError):
        return _Heard(connection.server_name, None)
    finally:
        await connection.close()


async def _ask_lease_server(settings: EtcdSettings, url: str) -> dict[str, Any]:
    impatient = {"endpoints": (url,), "request_timeout_s": PROBE_S, "try_timeout_s": PROBE_S}
    gateway = EtcdGateway(settings.model_copy(update=impatient))
    try:
        return (await gateway.call("maintenance/status", {})).body
    finally:
        await gateway.close()


def _place_in(stream: dict[str, Any] | None, name: str) -> tuple[Literal["leader", "follower"] | None, str]:
    """A server's role in the stream, and what is wrong with it."""
    cluster = (stream or {}).get("cluster") or {}
    if not cluster.get("leader"):
        return None, "the log's stream has no leader now"
    if cluster["leader"] == name:
        return "leader", ""
    for replica in cluster.get("replicas", ()):
        if replica["name"] == name:
            lag = f": {replica['lag']} entries behind" if replica.get("lag") else ""
            return "follower", "" if replica.get("current") else f"has yet to catch up with the log{lag}"
    return None, ""
