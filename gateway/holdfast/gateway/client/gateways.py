"""Which gateway is tried next. A gateway that failed is tried last for a while: nobody is asked how it is."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from holdfast.core.errors import InvalidConfig


class Gateways:
    """The gateways of one client, and what its calls have seen of them. `now` is a monotonic clock in seconds."""

    def __init__(self, urls: Sequence[str], *, penalty_s: float, sticky: bool) -> None:
        self.urls = tuple(_base(url) for url in urls)
        if not self.urls:
            raise InvalidConfig("no base URL: give the client at least one gateway, such as http://127.0.0.1:8000")
        self._penalty_s = penalty_s
        self._sticky = sticky
        self._home: int | None = None
        self._down_until = [float("-inf")] * len(self.urls)

    def first(self, draw: float, now: float) -> int:
        """Where a call begins. `draw` is random in [0, 1): a sticky client uses it for its first call only."""
        start = int(draw * len(self.urls)) % len(self.urls)
        if self._sticky:
            self._home = start = start if self._home is None else self._home
        return self._pick(start, now)

    def next(self, after: int, now: float) -> int:
        """Where a call goes on that `after` failed; the same again if there is no other."""
        return self._pick(after + 1, now)

    def failed(self, index: int, now: float) -> None:
        """It could not be reached, or broke off."""
        self._down_until[index] = now + self._penalty_s

    def works(self, index: int) -> None:
        """It took a request."""
        self._down_until[index] = float("-inf")
        if self._sticky:
            self._home = index

    def _pick(self, start: int, now: float) -> int:
        """The next one that has no penalty; if all have one, the one whose penalty ends first."""
        count = len(self.urls)
        order = [(start + step) % count for step in range(count)]
        return min(order, key=lambda index: max(0.0, self._down_until[index] - now))


def _base(url: str) -> str:
    """A base URL as given to this client or to OpenAI's: with or without `/v1` at its end.

    One with a user and a password is refused: URLs are shown, in logs and in errors, ours and httpx's.
    """
    try:
        parts = urlsplit(url)
        sane = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        sane = sane and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        sane = False
    if not sane:
        raise InvalidConfig(
            "a base URL is not usable: it must be http://HOST:PORT or https://HOST, with a path at most"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
