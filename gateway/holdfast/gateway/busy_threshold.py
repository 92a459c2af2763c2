"""`/busy_threshold`: from when on requests for a model are rejected, told and changed at run time, as Dynamo has it.

A change is asked of the controller and stands in the log once it holds, for all gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from holdfast.core.cluster import ClusterState
from holdfast.core.decoding import UNDECODABLE
from holdfast.core.errors import UnknownModel
from holdfast.core.events import BusyThresholdSet, Record
from holdfast.core.thresholds import NO_CHANGES, ThresholdChanges
from holdfast.gateway.backend import Backend
from holdfast.gateway.exchange import KeyRing
from holdfast.gateway.problems import CLIENT_CLOSED_REQUEST, HttpRefusal, Problem, body_too_slow, invalid

DECIDED_IN_S = 5.0
"""So long a change may take until it holds (seconds). It may still come to hold later."""

WAITING_MAX = 64
"""So many changes may wait for their decision at a gateway."""

BODY_BYTES_MAX = 64 * 1024


class BusyThreshold(msgspec.Struct, frozen=True):
    """A model's thresholds as they hold; null where they follow from what replicas report."""

    model: str
    active_decode_blocks_threshold: float | None
    active_prefill_tokens_threshold: int | None
    active_prefill_tokens_threshold_frac: float | None
    requests_in_flight_threshold: int | None
    queue_age_threshold_s: float | None


class BusyThresholdList(msgspec.Struct, frozen=True):
    """Those of all models."""

    thresholds: list[BusyThreshold]


class BusyThresholdRequest(ThresholdChanges, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Those that are given are changed; null is back to the configuration's."""

    model: str

    def changes(self) -> ThresholdChanges:
        """What is to be changed."""
        return ThresholdChanges(*(getattr(self, name) for name in ThresholdChanges.__struct_fields__))


class BusyThresholdPages:
    """The endpoint. A body may take `body_timeout_s` seconds to arrive."""

    def __init__(self, backend: Backend, keys: KeyRing, body_timeout_s: float) -> None:
        self._backend = backend
        self._keys = keys
        self._body_timeout_s = body_timeout_s

    async def answer(self, request: Request) -> Response:
        """`GET`: the thresholds of all models. `POST`: change a model's, or tell them where none is given; returns once
        they hold, and needs an admin's key where there are any: it is everybody's requests that are shed.
        """
        given = request.headers.get("authorization")
        authorization = None if given is None else given.encode("latin-1")
        if request.method != "POST":
            self._keys.check(authorization)
            return _json(BusyThresholdList(self._all()))
        self._keys.check_admin(authorization)
        asked = _decoded(await _body_in_time(request, self._body_timeout_s))
        changes = asked.changes()
        if changes != NO_CHANGES:
            await self._backend.set_thresholds(asked.model, changes)
        return _json(self._shown(asked.model))

    def _all(self) -> list[BusyThreshold]:
        """Of every model; not of one that has come, or gone, just now."""
        found: list[BusyThreshold] = []
        for info in self._backend.models():
            with contextlib.suppress(UnknownModel):
                found.append(self._shown(info.id))
        return found

    def _shown(self, model: str) -> BusyThreshold:
        return BusyThreshold(model, **msgspec.structs.asdict(self._backend.thresholds(model)))


class Asked:
    """Changes that were asked of the controller here, until it has decided them."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def read(self, record: Record, state: ClusterState) -> None:
        """Note a decision; `state` is the one after it. Those of deposed leaders change nothing."""
        event = record.event
        waiter = self._waiting.get(event.cause or "") if isinstance(event.payload, BusyThresholdSet) else None
        if waiter is not None and event.epoch == state.epoch and not waiter.done():
            waiter.set_result(None)

    async def decided(self, ask: Callable[[], str | None]) -> None:
        """Ask, which gives the request's event (None: it can't be asked now), and wait for the decision that it causes.

        Raises `HttpRefusal` (503) where there is none in time.
        """
        request = ask() if len(self._waiting) < WAITING_MAX else None
        if request is None:
            raise log_unavailable("Too much waits for the log already; nothing was changed.")
        waiter = self._waiting[request] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(DECIDED_IN_S):
                await waiter
        except TimeoutError:
            told = "The change was not decided in time, and may hold later. GET /busy_threshold tells what holds."
            raise log_unavailable(told) from None
        finally:
            del self._waiting[request]


def log_unavailable(message: str) -> HttpRefusal:
    """503: what was asked needs the log."""
    return HttpRefusal(Problem(503, message, "log_unavailable", retry_after_s=1.0))


async def _body_in_time(request: Request, timeout_s: float) -> bytes:
    """The whole body. Raises `HttpRefusal` if it is too long, too slow, or its client left, who is told nothing."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _body(request)
    except TimeoutError:
        raise body_too_slow(timeout_s) from None
    except ClientDisconnect:
        raise HttpRefusal(Problem(CLIENT_CLOSED_REQUEST, "The client left.", "request_cancelled")) from None


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            raise HttpRefusal(Problem(413, f"The body is longer than {BODY_BYTES_MAX} bytes.", "request_too_large"))
    return body


def _decoded(body: bytes) -> BusyThresholdRequest:
    try:
        return msgspec.json.decode(body, type=BusyThresholdRequest)
    except UNDECODABLE as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> Exception:
    _what, _, at = str(error).partition(" - at `$.")
    code = "invalid_value" if isinstance(error, msgspec.ValidationError) else "invalid_json"
    return invalid(f"Invalid thresholds: {error}.", at.rstrip("`") or None, code)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), 200, media_type="application/json")
