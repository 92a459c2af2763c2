"""What gateways say of themselves at `/health`: the same state that their load balancer and their metrics have.

The log and the leases tell only that a gateway takes part. Whether it can serve, it alone knows.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from datetime import datetime

import httpx
import msgspec

from holdfast.core.status import GatewayReport, GatewayStatus

ANSWER_TIMEOUT_S = 2.0
GATEWAYS_ASKED_MAX = 100
"""How long gateways have to answer, all at once, in seconds, and how many are asked."""


class _Plane(msgspec.Struct, frozen=True):
    down_since: datetime | None = None


class _Details(msgspec.Struct, frozen=True):
    planes: dict[str, _Plane] = {}


class GatewayTold(msgspec.Struct, frozen=True):
    """What a gateway answered: its name and state, why it can't serve everything, and what is down behind it."""

    gateway: str
    state: GatewayStatus
    reasons: list[str] = []
    details: _Details = _Details()


async def ask_gateways(urls: Mapping[str, str]) -> dict[str, GatewayTold | None]:
    """What gateways say, by name, of which the URLs are given: the first `GATEWAYS_ASKED_MAX` of them.

    None for one that does not answer, and where another one does.
    """
    asked = dict(itertools.islice(urls.items(), GATEWAYS_ASKED_MAX))
    if not asked:
        return {}
    async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
        told = await asyncio.gather(*(_ask(client, name, url) for name, url in asked.items()))
    return dict(zip(asked, told, strict=True))


async def _ask(client: httpx.AsyncClient, name: str, url: str) -> GatewayTold | None:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await client.get(f"{url}/health")
        told = msgspec.json.decode(answer.content, type=GatewayTold)
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError):
        return None
    return told if told.gateway == name else None


def down_since(told: Mapping[str, GatewayTold | None]) -> dict[str, datetime]:
    """Since when planes (`log`, `leases`) are down by what gateways say: the earliest of each."""
    found: dict[str, datetime] = {}
    for one in told.values():
        for plane, known in one.details.planes.items() if one is not None else ():
            if known.down_since is not None:
                found[plane] = min(known.down_since, found.get(plane, known.down_since))
    return found


def as_told(gateway: GatewayReport, told: Mapping[str, GatewayTold | None]) -> GatewayReport:
    """The gateway with the state that it gives itself, where it was asked.

    One that does not answer serves nobody, unless it is about to end as it was told to.
    """
    answer = told.get(gateway.id)
    if gateway.id not in told or (answer is None and gateway.status is GatewayStatus.DRAINING):
        return gateway
    if answer is None:
        message = f"it does not answer at {gateway.url}/health from here"
        return msgspec.structs.replace(gateway, status=GatewayStatus.UNHEALTHY, message=message)
    drains = answer.state in (GatewayStatus.DRAINING, GatewayStatus.DRAINED) and gateway.message
    message = gateway.message if drains else "; ".join(answer.reasons)
    return msgspec.structs.replace(gateway, status=answer.state, message=message)
