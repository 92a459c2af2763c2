"""`/v1/requests`: which requests are open, and their cancellation, at whichever gateway they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.gateway.exchange import SANE_ID, KeyRing
from holdfast.gateway.kinship import Kinship
from holdfast.gateway.peers import FORWARDED, Answer, Peers
from holdfast.gateway.problems import HttpRefusal, Problem, invalid
from holdfast.gateway.requests import KILL, MODES, RETRY_AFTER_S, Mode, RequestList, RequestObject, Requests
from holdfast.gateway.telling import path_of

LIMIT: Final = 1_000
LIMIT_MAX: Final = 10_000
"""So many requests of each gateway are listed unless another limit is asked for, and at most."""


class RequestPages:
    """The endpoints. What other gateways ask says so in a header, and is answered for this gateway alone."""

    def __init__(self, requests: Requests, kinship: Kinship, peers: Peers, keys: KeyRing) -> None:
        self._requests = requests
        self._kinship = kinship
        self._peers = peers
        self._keys = keys

    async def list(self, request: Request) -> Response:
        """`GET /v1/requests?limit=`: the caller's open requests, of all gateways."""
        authorization = self._check(request)
        limit = _limit(request)
        found = self._requests.seen(self._keys.sees(authorization), limit)
        unreached: list[str] = []
        if FORWARDED not in request.headers:
            answers = await self._peers.ask_all("GET", f"/v1/requests?limit={limit}", authorization)
            for name, answer in answers.items():
                listed = answer.read(RequestList) if answer is not None else None
                if listed is None:
                    unreached.append(name)
                else:
                    found += listed.data
        return _json(RequestList("list", sorted(found, key=lambda one: -one.age_s), unreached))

    async def cancel(self, request: Request) -> Response:
        """`DELETE /v1/requests/{id}?mode=stop|kill`: end it and what is below it; the request as it ended."""
        authorization = self._check(request)
        id_, mode = _id(request), _mode(request)
        sees = self._keys.sees(authorization)
        is_here, is_forwarded = bool(self._requests.find(sees, id_)), FORWARDED in request.headers
        told = request.query_params.get("told") if is_forwarded else None
        if told is not None:
            owner, whole = self._keys.owner(authorization), told == "request"
            ends = [self._requests.told(owner, one, mode, whole=whole) for one in (id_, *_also(request))]
            found = next((end for end in ends if end is not None), None)
        else:
            found = self._requests.cancel(sees, id_, mode)
        if is_here or is_forwarded:
            return _json(_known(id_, found, {}))
        # Even if children of it are here, or if it was: it may be open at another gateway.
        answers = await self._peers.ask_all("DELETE", path_of(id_, f"mode={mode}"), authorization)
        return _json(_known(id_, found, answers))

    async def adopt(self, request: Request) -> Response:
        """`POST /v1/requests/{id}?adopt=1`, by gateways only: one of them has a child of this request."""
        authorization = self._check(request)
        id_ = _id(request)
        found = None
        if FORWARDED in request.headers:
            found = self._kinship.adopted(self._keys.owner(authorization), id_, request.headers[FORWARDED])
        if found is None:
            raise _unknown(id_)
        return _json(found)

    def _check(self, request: Request) -> bytes | None:
        given = request.headers.get("authorization")
        authorization = None if given is None else given.encode("latin-1")
        self._keys.check(authorization)
        return authorization


def _known(id_: str, here: RequestObject | None, answers: Mapping[str, Answer | None]) -> RequestObject:
    """What those that know the request say. Raises `HttpRefusal` where none does, or one did not answer."""
    known = [here] if here is not None else []
    told = [answer.read(RequestObject) for answer in answers.values() if answer is not None]
    known += [one for one in told if one is not None]
    if known:
        return max(known, key=lambda one: (one.model != "", one.cause in MODES, one.cancelled))
    silent = [name for name, answer in answers.items() if answer is None]
    if silent:
        message = f"No gateway that answers has a request {id_!r}; {', '.join(silent)} did not answer."
        raise HttpRefusal(Problem(503, message, "gateway_unreached", retry_after_s=RETRY_AFTER_S))
    raise _unknown(id_)


def _unknown(id_: str) -> HttpRefusal:
    return HttpRefusal(Problem(404, f"No request {id_!r} is open, nor was one cancelled lately.", "request_not_found"))


def _id(request: Request) -> str:
    """The id in the path. Raises `HttpRefusal` for one that no request can have: nobody is asked, nothing is kept."""
    id_: str = request.path_params["id"]
    if SANE_ID.fullmatch(id_.encode()) is None:
        raise _unknown(id_[:128])
    return id_


def _also(request: Request) -> list[str]:
    """Another id that a request which was cancelled elsewhere is known by, if there is one."""
    given = request.query_params.get("also", "")
    return [given] if SANE_ID.fullmatch(given.encode()) is not None else []


def _mode(request: Request) -> Mode:
    given = request.query_params.get("mode", KILL)
    for mode in MODES:
        if given == mode:
            return mode
    raise invalid("Invalid 'mode': expected 'stop' or 'kill'.", "mode")


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", str(LIMIT))
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= LIMIT_MAX:
        raise invalid(f"Invalid 'limit': expected a number from 1 to {LIMIT_MAX}.", "limit")
    return int(given)


def _json(content: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
