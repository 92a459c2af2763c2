"""How many bytes of request bodies a gateway has in hand: each is bounded, and so are all of them together."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.errors import Overloaded


class Bodies:
    """Counts what was read of bodies until their requests begin their answers: `held`, in bytes."""

    __slots__ = ("_bytes_max", "_full", "held")

    def __init__(self, bytes_max: int, full: Callable[[str], Overloaded]) -> None:
        """`full(what)` is the error for a request that must be rejected; `what` says of what there is too much."""
        self._bytes_max = bytes_max
        self._full = full
        self.held = 0

    def take(self, count: int) -> None:
        """So many bytes more were read. Raises `Overloaded`, and counts none, if that is more than may be held."""
        if self.held + count > self._bytes_max:
            raise self._full(f"{self._bytes_max} bytes of request bodies are in hand at this gateway")
        self.held += count

    def give(self, count: int) -> None:
        """So many are not needed any more."""
        self.held -= count
