"""Who is gone, by the evidence of leases: slow, but authoritative.

A member is held for expired when its lease key is missing although the lease servers answer: at once if its
key was seen before and the answers never stopped in between, else after a full TTL, which is the time that a
member has to come back after the servers were away or a new leader looks for the first time.
"""

from __future__ import annotations

Member = tuple[str, str]
"""A node or a gateway: (id, incarnation)."""


class LeaseEvidence:
    """What listings of lease keys say about members. Times are monotonic seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._seen: set[Member] = set()
        self._absent_since: dict[Member, float] = {}

    def listed(self, present: frozenset[Member], wanted: frozenset[Member], now_s: float) -> None:
        """The servers listed `present`; `wanted` are the members that the log holds for alive."""
        for member in present:
            self._absent_since.pop(member, None)
        for member in wanted - present:
            grace_s = 0.0 if member in self._seen else self._ttl_s
            self._absent_since.setdefault(member, now_s - self._ttl_s + grace_s)
        self._seen = set(present)
        self._absent_since = {member: since for member, since in self._absent_since.items() if member in wanted}

    def unreachable(self) -> None:
        """The servers did not answer: absence proves nothing any more, and everybody gets a full TTL again."""
        self._seen.clear()
        self._absent_since.clear()

    def expired(self, now_s: float) -> frozenset[Member]:
        """The members whose time is over."""
        return frozenset(member for member, since in self._absent_since.items() if now_s - since >= self._ttl_s)
