"""What a request's headers say about its life: its time, its parent, whose it is."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from holdfast.gateway.exchange import SANE_ID, Exchange, KeyRing, tenant_of
from holdfast.gateway.problems import invalid
from holdfast.gateway.requests import OpenRequest

TIMEOUT: Final = "x-request-timeout-seconds"
PARENT: Final = "x-holdfast-parent"
PRIORITY: Final = b"x-holdfast-priority"


def request_of(exchange: Exchange, keys: KeyRing) -> OpenRequest:
    """The request that has just arrived. Raises `RequestRefused` for a time that is none, or a parent that can't be.

    Without a time of its own, it is bounded when it is opened.
    """
    headers, now_s = exchange.headers, asyncio.get_running_loop().time()
    authorization = headers.get(b"authorization")
    owner, tenant = keys.owner(authorization), tenant_of(authorization)
    request = OpenRequest(exchange.request_id.decode(), owner, tenant, authorization, now_s, _timeout_s(headers))
    request.parent = _parent(headers, request.id)
    request.priority = headers.get(PRIORITY, b"default").decode("latin-1")[:16]
    return request


def _timeout_s(headers: dict[bytes, bytes]) -> float:
    given = headers.get(TIMEOUT.encode())
    if given is None:
        return math.inf
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        message = f"Invalid '{TIMEOUT}': expected a number of seconds above 0, got {given.decode('latin-1')[:64]!r}."
        raise invalid(message, TIMEOUT)
    return timeout_s


def _parent(headers: dict[bytes, bytes], request_id: str) -> str:
    given = headers.get(PARENT.encode())
    if given is None:
        return ""
    if SANE_ID.fullmatch(given) is None:
        raise invalid(f"Invalid '{PARENT}': expected 1 to 128 visible ASCII characters.", PARENT)
    if given.decode() == request_id:
        raise invalid(f"Invalid '{PARENT}': a request can't be its own parent.", PARENT)
    return given.decode()
