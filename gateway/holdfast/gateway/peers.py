"""How a gateway asks the others: a few calls at once, each bounded in time, with the key of who asks it.

A call that a gateway makes says so in a header, and the gateway that gets it asks nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

import httpx
import msgspec

from holdfast.core.decoding import UNDECODABLE

FORWARDED: Final = "x-holdfast-forwarded"
"""Its value is the name of the gateway that asks."""

CALL_TIMEOUT_S: Final = 1.0
"""So long another gateway may take to answer (seconds)."""

CALLS_MAX: Final = 16
"""So many calls at once, of all that a gateway has to ask."""

GATEWAYS_ASKED_MAX: Final = 64
"""Of more gateways than this, the first by name are asked."""

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True):
    """What a gateway said."""

    status: int
    body: bytes

    def read(self, kind: type[T]) -> T | None:
        """Its body; None where it has none of this kind: who answers at a gateway's address may be anybody by now."""
        if self.status != 200:
            return None
        try:
            return msgspec.json.decode(self.body, type=kind)
        except UNDECODABLE:
            return None


class Ask(Protocol):
    """One HTTP call without a body. Raises `OSError` (or `TimeoutError`) where no answer comes in time."""

    async def __call__(self, method: str, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer: ...


async def ask_by_httpx(method: str, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer:
    """As `Ask`. Such calls are rare: each has its own connection, and none is kept.

    Headers are text as HTTP has it, a character per byte: a client's key, which is passed on, may hold any of them.
    """
    given = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    try:
        # Gateways speak plain HTTP to each other: reading the machine's certificates would be for nothing.
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(verify=False, trust_env=False) as client:
            response = await client.request(method, url, headers=given, timeout=timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    return Answer(response.status_code, response.content)


class Peers:
    """The other gateways. `urls()` gives those that may live, by name, as the log has them."""

    def __init__(self, gateway: str, urls: Callable[[], Mapping[str, str]], ask: Ask) -> None:
        self._gateway = gateway
        self._urls = urls
        self._ask = ask
        self._calls = asyncio.Semaphore(CALLS_MAX)

    def names(self) -> list[str]:
        """All of them that are asked."""
        return sorted(name for name in self._urls() if name != self._gateway)[:GATEWAYS_ASKED_MAX]

    async def ask_all(self, method: str, path: str, authorization: bytes | None) -> dict[str, Answer | None]:
        """What each of them says, by name; None for one that does not answer."""
        names = self.names()
        answers = await asyncio.gather(*(self.ask(name, method, path, authorization) for name in names))
        return dict(zip(names, answers, strict=True))

    async def ask(self, name: str, method: str, path: str, authorization: bytes | None) -> Answer | None:
        """What one of them says; None if it does not answer, or is gone."""
        url = self._urls().get(name)
        if url is None:
            return None
        headers = {FORWARDED: self._gateway}
        if authorization is not None:
            headers["authorization"] = authorization.decode("latin-1")
        async with self._calls:
            try:
                return await self._ask(method, f"{url}{path}", headers, CALL_TIMEOUT_S)
            except (OSError, TimeoutError):
                return None
