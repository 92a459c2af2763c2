"""How a gateway asks the others: a few calls to each at once, all bounded in time, with the key of who asks it.

A call that a gateway makes says so in a header, and the gateway that gets it asks nobody else.

A gateway that does not answer (hung, frozen, cut off) stays in the log for some seconds. It holds up nobody but those
who wait for what it alone can say: each gateway has its own calls, waiting for one's turn counts as part of the time,
and one that let a call time out is left alone for a while. After that one call at a time tries whether it is back.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

import httpx
import msgspec

from holdfast.core.decoding import UNDECODABLE

FORWARDED: Final = "x-holdfast-forwarded"
"""Its value is the name of the gateway that asks."""

CALL_TIMEOUT_S: Final = 1.0
"""So long another gateway may take to answer (seconds), with the wait for the call's turn."""

CALLS_MAX: Final = 8
"""So many calls at once to each gateway."""

UNANSWERED_S: Final = CALL_TIMEOUT_S / 2
"""A call that failed after so long (seconds) or longer was not answered. One that waited for its turn may end sooner,
and a connection that is refused tells at once that nobody is there."""

SILENT_S: Final = 3.0
"""So long a gateway that did not answer is not asked again (seconds), but for what a person wants to know."""

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
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(verify=_trusted(url), trust_env=False) as client:
            response = await client.request(method, url, headers=given, timeout=timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    return Answer(response.status_code, response.content)


def _trusted(url: str) -> ssl.SSLContext | bool:
    """Whom the machine believes. Gateways speak plain HTTP to each other: certificates are read only for what stands
    before one, as an operator names it to the command line, since an API key goes there."""
    return ssl.create_default_context() if url.lower().startswith("https:") else False


class _Line:
    """The calls to one gateway. Times are the loop's, in seconds."""

    __slots__ = ("calls", "heard_s", "silent_until_s")

    def __init__(self) -> None:
        self.calls = asyncio.Semaphore(CALLS_MAX)
        self.silent_until_s = 0.0
        self.heard_s = -1.0

    def began(self, now_s: float) -> None:
        """A call goes out. To a gateway that was silent it is a trial, and nobody else tries meanwhile."""
        if self.silent_until_s:
            self.silent_until_s = max(self.silent_until_s, now_s + CALL_TIMEOUT_S)

    def heard(self, now_s: float) -> None:
        """A call was answered."""
        self.heard_s, self.silent_until_s = now_s, 0.0

    def failed(self, began_s: float, now_s: float) -> None:
        """A call that began then got no answer."""
        if now_s - began_s < UNANSWERED_S:
            return
        if self.heard_s < began_s:
            self.silent_until_s = now_s + SILENT_S


class Peers:
    """The other gateways. `urls()` gives those that may live, by name, as the log has them."""

    def __init__(self, gateway: str, urls: Callable[[], Mapping[str, str]], ask: Ask) -> None:
        self._gateway = gateway
        self._urls = urls
        self._ask = ask
        self._lines: dict[str, _Line] = {}

    def names(self) -> list[str]:
        """All of them that are asked."""
        return sorted(name for name in self._urls() if name != self._gateway)[:GATEWAYS_ASKED_MAX]

    def silent_s(self, name: str) -> float:
        """How long this one is to be left alone yet, as it did not answer (seconds); 0 for one that may be asked."""
        line = self._lines.get(name)
        return max(0.0, line.silent_until_s - _now_s()) if line is not None else 0.0

    async def ask_all(self, method: str, path: str, authorization: bytes | None) -> dict[str, Answer | None]:
        """What each of them says, by name; None for one that does not answer, or did not lately and still does not."""
        names = self.names()
        answers = await asyncio.gather(*(self.ask(name, method, path, authorization) for name in names))
        return dict(zip(names, answers, strict=True))

    async def ask(
        self, name: str, method: str, path: str, authorization: bytes | None, *, unless_silent: bool = False
    ) -> Answer | None:
        """What one of them says, within `CALL_TIMEOUT_S`; None if it does not answer, is gone, or is to be left alone
        where it is not asked for a person."""
        url = self._urls().get(name)
        if url is None:
            return None
        headers = {FORWARDED: self._gateway}
        if authorization is not None:
            headers["authorization"] = authorization.decode("latin-1")
        line, asked_s = self._line(name), _now_s()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await line.calls.acquire()
        except TimeoutError:
            return None
        try:
            if unless_silent and self.silent_s(name):
                return None
            return await self._call(line, asked_s + CALL_TIMEOUT_S, method, f"{url}{path}", headers)
        finally:
            line.calls.release()

    async def _call(
        self, line: _Line, until_s: float, method: str, url: str, headers: Mapping[str, str]
    ) -> Answer | None:
        """One call, and what it says about who was called."""
        began_s = _now_s()
        line.began(began_s)
        try:
            answer = await self._ask(method, url, headers, max(0.0, until_s - began_s))
        except OSError:  # `TimeoutError` is one
            line.failed(began_s, _now_s())
            return None
        line.heard(_now_s())
        return answer

    def _line(self, name: str) -> _Line:
        """The calls to this one. Those to gateways that are gone are forgotten."""
        line = self._lines.get(name)
        if line is None:
            urls = self._urls()
            self._lines = {other: one for other, one in self._lines.items() if other in urls}
            line = self._lines[name] = _Line()
        return line


def _now_s() -> float:
    return asyncio.get_running_loop().time()
