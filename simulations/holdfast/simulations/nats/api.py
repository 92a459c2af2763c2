"""JetStream's JSON API as the log uses it, answered by a simulated server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.simulations.nats import store
from holdfast.simulations.nats.consumer import Consumer, Sink
from holdfast.simulations.nats.store import Entry, Refusal, Stream
from holdfast.simulations.world.process import EPOCH

if TYPE_CHECKING:
    from holdfast.simulations.nats.server import Server

API = "$JS.API."
CONSUMERS_MAX = 10_000
NO_TIME = "0001-01-01T00:00:00Z"

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Request(msgspec.Struct, frozen=True):
    """A request to the API. `words` are its subject's, after the prefix."""

    words: list[str]
    data: bytes
    sink: Sink
    reply: str

    def payload(self) -> dict[str, Any]:
        """What it says."""
        payload: dict[str, Any] = _decode(self.data) if self.data else {}
        return payload


def answer_request(server: Server, request: Request) -> None:
    """Answer as this server, which leads or knows no leader. What nobody knows gets no answer, as at a real one."""
    handler = HANDLERS.get((request.words[0], request.words[1] if len(request.words) > 1 else ""))
    if handler is None:
        return
    kind, answer, writes = handler
    if not server.leads:
        told = answer(server, request) if answer is _stream_info else store.UNAVAILABLE
    elif writes and not server.group.has_majority(server):
        return
    else:
        told = answer(server, request)
    if isinstance(told, Refusal):
        told = told.answer(kind)
    if request.reply:
        request.sink.send(request.reply, request.reply, "", _encode(told), None)


def _account_info(_server: Server, _request: Request) -> dict[str, Any]:
    return {"type": "io.nats.jetstream.api.v1.account_info_response", "memory": 0, "storage": 0}


def _stream_info(server: Server, request: Request) -> dict[str, Any] | Refusal:
    stream = server.group.streams.get(request.words[2])
    return store.STREAM_NOT_FOUND if stream is None else _info(server, stream)


def _info(server: Server, stream: Stream) -> dict[str, Any]:
    last = server.visible(stream)
    first = min(stream.first, last + 1) if stream.last else 0
    cluster: dict[str, Any] = {"leader": server.member.name} if server.leads else {}
    return {
        "config": stream.config,
        "created": _time(stream.created_s),
        "state": {
            "messages": max(0, stream.count - (stream.last - last)),
            "bytes": stream.bytes,
            "first_seq": first,
            "first_ts": NO_TIME,
            "last_seq": last,
            "last_ts": NO_TIME,
            "num_subjects": stream.subjects_number(),
            "consumer_count": len(server.consumers),
        },
        "cluster": cluster,
    }


def _stream_create(server: Server, request: Request) -> dict[str, Any] | Refusal:
    group, config = server.group, request.payload()
    replicas = config.get("num_replicas", 1)
    if replicas > len(group.members):
        return store.TOO_FEW_PEERS if group.clustered else store.NOT_CLUSTERED
    known = group.streams.get(config["name"])
    if known is not None:
        return _info(server, known) if known.config == _full(config) else store.NAME_IN_USE
    if any(stream.overlaps(config["subjects"]) for stream in group.streams.values()):
        return store.SUBJECTS_OVERLAP
    stream = group.streams[config["name"]] = Stream(_full(config), server.now_s)
    return _info(server, stream) | {"did_create": True}


def _full(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as the server tells it: with what was not said."""
    return {"duplicate_window": 120 * store.NANOSECONDS, "max_msg_size": -1, "max_bytes": -1, **config}


def _stream_update(server: Server, request: Request) -> dict[str, Any] | Refusal:
    stream = server.group.streams.get(request.words[2])
    if stream is None:
        return store.STREAM_NOT_FOUND
    stream.config = stream.config | request.payload()
    return _info(server, stream)


def _stream_delete(server: Server, request: Request) -> dict[str, Any] | Refusal:
    stream = server.group.streams.pop(request.words[2], None)
    if stream is None:
        return store.STREAM_NOT_FOUND
    server.group.forget_consumers(stream)
    return {"success": True}


def _stream_purge(server: Server, request: Request) -> dict[str, Any] | Refusal:
    stream, what = server.group.streams.get(request.words[2]), request.payload()
    if stream is None:
        return store.STREAM_NOT_FOUND
    return {"success": True, "purged": stream.purge(what.get("seq"), what.get("filter"))}


def _message_get(server: Server, request: Request) -> dict[str, Any] | Refusal:
    stream, what = server.group.streams.get(request.words[3]), request.payload()
    if stream is None:
        return store.STREAM_NOT_FOUND
    entry, last = _selected(stream, what, server.visible(stream)), server.visible(stream)
    if entry is None or entry.sequence > last:
        return store.NO_MESSAGE_FOUND
    headers = "".join(f"{name}: {value}\r\n" for name, value in entry.headers.items())
    message = {"subject": entry.subject, "seq": entry.sequence, "time": _time(entry.at_s), "data": entry.data}
    if headers:
        message["hdrs"] = f"NATS/1.0\r\n{headers}\r\n".encode()
    return {"type": "io.nats.jetstream.api.v1.stream_msg_get_response", "message": message}


def _selected(stream: Stream, what: dict[str, Any], last: int) -> Entry | None:
    if "last_by_subj" in what:
        return stream.last_on(what["last_by_subj"], last)
    if "next_by_subj" in what:
        return stream.next_on(what["next_by_subj"], what.get("seq", 0), last)
    return stream.get(what["seq"])


def _consumer_create(server: Server, request: Request) -> dict[str, Any] | Refusal:
    group, payload = server.group, request.payload()
    stream, name = group.streams.get(payload["stream_name"]), payload["config"]["name"]
    if stream is None:
        return store.STREAM_NOT_FOUND
    group.reap_consumers()
    assert len(group.homes) < CONSUMERS_MAX
    if (stream.name, name) not in group.homes:
        home = group.place_consumer(server)
        home.consumers[stream.name, name] = Consumer(home, stream, name, payload["config"])
        group.homes[stream.name, name] = home
    return {"stream_name": stream.name, "name": name, "config": payload["config"]}


def _consumer_delete(server: Server, request: Request) -> dict[str, Any] | Refusal:
    deleted = server.group.delete_consumer((request.words[2], request.words[3]))
    return {"success": True} if deleted else store.CONSUMER_NOT_FOUND


def _consumer_names(server: Server, request: Request) -> dict[str, Any] | Refusal:
    if request.words[2] not in server.group.streams:
        return store.STREAM_NOT_FOUND
    server.group.reap_consumers()
    names = [name for stream, name in server.group.homes if stream == request.words[2]]
    return {"total": len(names), "offset": 0, "limit": 1024, "consumers": names}


def _time(at_s: float) -> str:
    return (EPOCH + timedelta(seconds=at_s)).isoformat()


Handler = Callable[["Server", Request], dict[str, Any] | Refusal]
HANDLERS: dict[tuple[str, str], tuple[str, Handler, bool]] = {
    ("INFO", ""): ("account_info", _account_info, False),
    ("STREAM", "INFO"): ("stream_info", _stream_info, False),
    ("STREAM", "CREATE"): ("stream_create", _stream_create, True),
    ("STREAM", "UPDATE"): ("stream_update", _stream_update, True),
    ("STREAM", "DELETE"): ("stream_delete", _stream_delete, True),
    ("STREAM", "PURGE"): ("stream_purge", _stream_purge, True),
    ("STREAM", "MSG"): ("stream_msg_get", _message_get, False),
    ("CONSUMER", "CREATE"): ("consumer_create", _consumer_create, True),
    ("CONSUMER", "DELETE"): ("consumer_delete", _consumer_delete, True),
    ("CONSUMER", "NAMES"): ("consumer_names", _consumer_names, False),
}
"""By the first two words: the answer's type, what gives it, and whether that needs a majority."""
