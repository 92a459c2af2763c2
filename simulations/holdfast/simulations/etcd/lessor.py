"""How much of each lease is left: what only the member knows that leads, in its memory and by its own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from holdfast.simulations.etcd.state import LeaseRecord

EXTENSION_S = 1.0
"""A new leader gives every lease its full time to live, and an election's time more."""

Answer = Callable[[int], None]


class Lessor:
    """Counts down while its member leads. `clock` is that member's own, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.primary = False
        self._clock = clock
        self._ends_s: dict[int, float] = {}
        self._expiring: dict[int, None] = {}
        self._waiting: dict[int, list[Answer]] = {}

    def promote(self, leases: Iterable[LeaseRecord]) -> None:
        """This member leads now: all leases begin anew."""
        now_s = self._clock()
        self.primary = True
        self._expiring.clear()
        self._ends_s = {lease.id: now_s + lease.ttl_s + EXTENSION_S for lease in leases}

    def demote(self) -> tuple[list[int], dict[int, list[Answer]]]:
        """It no longer does. The leases that have ended by its clock, and the renewals that wait for their end."""
        ended = self._ended()
        self.primary = False
        self._ends_s = {}
        waiting, self._waiting = self._waiting, {}
        return ended, waiting

    def granted(self, lease: LeaseRecord) -> None:
        """A lease begins."""
        if self.primary:
            self._ends_s[lease.id] = self._clock() + lease.ttl_s

    def gone(self, lease_id: int) -> list[Answer]:
        """A lease is over; the renewals that waited for that."""
        self._ends_s.pop(lease_id, None)
        self._expiring.pop(lease_id, None)
        return self._waiting.pop(lease_id, [])

    def renew(self, lease: LeaseRecord | None, answer: Answer) -> None:
        """Begin anew, and answer with the seconds. One that has ended already is not renewed; 0 when it is gone."""
        ends_s = self._ends_s.get(lease.id) if lease is not None else None
        if lease is None or ends_s is None:
            answer(0)
        elif ends_s <= self._clock():
            self._waiting.setdefault(lease.id, []).append(answer)
        else:
            self._ends_s[lease.id] = self._clock() + lease.ttl_s
            answer(lease.ttl_s)

    def remaining_s(self, lease_id: int) -> float | None:
        """None: there is no such lease."""
        ends_s = self._ends_s.get(lease_id)
        return None if ends_s is None else ends_s - self._clock()

    def due(self) -> list[int]:
        """The leases that have ended since it was asked last, to be revoked."""
        due = [lease_id for lease_id in self._ended() if lease_id not in self._expiring]
        self._expiring.update(dict.fromkeys(due))
        return due

    @property
    def overdue(self) -> bool:
        """Whether a lease has ended that is not to be revoked yet."""
        return any(lease_id not in self._expiring for lease_id in self._ended())

    def _ended(self) -> list[int]:
        now_s = self._clock()
        return [lease_id for lease_id, ends_s in self._ends_s.items() if ends_s <= now_s]
