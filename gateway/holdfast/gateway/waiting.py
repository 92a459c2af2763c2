"""The queue of a deployment's streams at one gateway: who goes next, and who gives way when it is too long.

Streams that lost their replica go first. The others, also those that were held back as their clients read slowly, go by
priority; a lower one that was passed over `TURNS_MAX` times while it waited gets a turn all the same. Within a priority
tenants take turns, one stream each, whatever they have waiting (Nagle, "On Packet Switches with Infinite Storage", RFC
970). Tenants are known only while they wait, so there are no more of them than streams.

Who gives way is the last that came of the lowest priority; to a stream of the same priority, the last that came of the
tenant that has most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from holdfast.core.admission import Priority

if TYPE_CHECKING:
    from holdfast.gateway.session import StreamRun

TURNS_MAX = 4
"""So often at most is a priority passed over in favour of higher ones, while streams of it wait."""


class _Class:
    """The streams of one priority, by tenant, the tenant whose turn it is first."""

    __slots__ = ("count", "passed", "tenants")

    def __init__(self) -> None:
        self.tenants: dict[str, deque[StreamRun]] = {}
        self.count = 0
        self.passed = 0

    def next(self) -> StreamRun:
        return next(iter(self.tenants.values()))[0]

    def add(self, run: StreamRun) -> None:
        self.tenants.setdefault(run.claim.tenant, deque()).append(run)
        self.count += 1

    def remove(self, run: StreamRun) -> None:
        tenant = run.claim.tenant
        self.tenants[tenant].remove(run)
        if not self.tenants[tenant]:
            del self.tenants[tenant]
        self.count -= 1
        if not self.count:
            self.passed = 0

    def had_turn(self, tenant: str) -> None:
        """Behind the others with it."""
        self.passed = 0
        self.tenants[tenant] = self.tenants.pop(tenant)


class WaitingQueue:
    """Streams that wait for a replica."""

    def __init__(self) -> None:
        self._moved: deque[StreamRun] = deque()
        self._classes = {priority: _Class() for priority in sorted(Priority)}
        self._where: dict[StreamRun, _Class | None] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[StreamRun]:
        return iter(list(self._where))

    def append(self, run: StreamRun) -> None:
        """It waits behind the others of its priority and tenant."""
        self._where[run] = found = self._classes[run.claim.priority]
        found.add(run)

    def appendleft(self, run: StreamRun) -> None:
        """It goes next: it lost its replica."""
        self._where[run] = None
        self._moved.appendleft(run)

    def remove(self, run: StreamRun) -> None:
        """It waits no longer."""
        found = self._where.pop(run)
        if found is None:
            self._moved.remove(run)
        else:
            found.remove(run)

    def head(self) -> StreamRun:
        """Who goes next. There must be somebody."""
        return self._moved[0] if self._moved else self._next_class().next()

    def begun(self, run: StreamRun) -> None:
        """It is this one's turn: it leaves the queue for a replica, and its tenant's next waits for the others'."""
        turn = self._where[run]
        if turn is not None:
            turn.had_turn(run.claim.tenant)
            for other in self._classes.values():
                if other is turn:
                    break
                other.passed += other.count > 0
        run.leave_queue()

    def ahead(self, priority: Priority) -> int:
        """How many wait that go before a new stream of this priority."""
        return len(self._moved) + sum(one.count for other, one in self._classes.items() if other >= priority)

    def below(self, priority: Priority, count: int) -> list[StreamRun]:
        """Up to so many streams of lower priorities, in the order in which they give way: the last that came of the
        lowest one first."""
        lower = [one for other, one in self._classes.items() if other < priority and one.count]
        found: list[StreamRun] = []
        for one in lower:
            if len(found) < count:
                latest = [run for run in reversed(self._where) if self._where[run] is one and not run.has_tokens]
                found += latest[: count - len(found)]
        return found

    def greedy(self, priority: Priority, most: int, usage: Mapping[str, int], count: int) -> list[StreamRun]:
        """Up to so many that came last of this priority's tenant which has most by `usage`, if that is more than
        `most`."""
        tenants = self._classes[priority].tenants
        tenant = max(tenants, key=lambda one: usage.get(one, 0), default=None)
        if tenant is None or usage.get(tenant, 0) <= most:
            return []
        return [run for run in reversed(tenants[tenant]) if not run.has_tokens][:count]

    def _next_class(self) -> _Class:
        """The highest priority of which somebody waits, unless a lower one has been passed over too often."""
        waiting = [one for one in self._classes.values() if one.count]
        return next((one for one in waiting if one.passed >= TURNS_MAX), waiting[-1])
