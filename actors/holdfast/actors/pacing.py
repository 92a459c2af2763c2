"""How fast a replica serves its streams, which its heartbeats tell: a gateway without any there has nothing to measure.

Nothing is done per token here once a stream has its first one.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.core.pace import Measured, Pace


class PaceMeter:
    """Times streams by the engine's key, from their arrival. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._measured = Measured()
        self._since_s: dict[int, float] = {}
        self._without_token: dict[int, float] = {}

    def began(self, key: int, arrived_s: float) -> None:
        """The engine took it in, which had arrived then."""
        self._since_s[key] = self._without_token[key] = arrived_s

    def stepped(self, keys: Iterable[int], now_s: float) -> None:
        """These got a token."""
        if self._without_token:
            for key in keys:
                arrived_s = self._without_token.pop(key, None)
                if arrived_s is not None:
                    self._measured.first_token(now_s - arrived_s)

    def left(self, key: int, now_s: float) -> None:
        """It ended, or nobody wants more. What had no token yet tells nothing of how long streams stay."""
        arrived_s = self._since_s.pop(key, None)
        if arrived_s is not None and self._without_token.pop(key, None) is None:
            self._measured.stayed(now_s - arrived_s)

    def pace(self, gateways: int, now_s: float) -> Pace:
        """What was measured by now."""
        stay_s = self._measured.stay_s
        if stay_s is None:
            stay_s = now_s - next(iter(self._since_s.values()), now_s)
        return Pace(self._measured.first_s or 0.0, stay_s, gateways)
