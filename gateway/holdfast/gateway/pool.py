"""One deployment at one gateway: the links to its replicas, and the queue of streams that wait for one with room."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from holdfast.core.admission import Service
from holdfast.core.config import DeploymentConfig
from holdfast.core.routing import choose
from holdfast.core.thresholds import NONE_SET, Thresholds
from holdfast.gateway.admission import Admission
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.search import Search
from holdfast.gateway.session import StreamRun
from holdfast.gateway.waiting import WaitingQueue


class PoolReport(msgspec.Struct, frozen=True):
    """One deployment at one gateway. `in_flight` and `kv_used` (a fraction) are by replica.

    `queue_ages_s` says how long the one has waited that waits longest, by priority; only priorities that wait.
    """

    model: str
    replicas_ready: int
    replicas_wanted: int
    queued: int
    queue_ages_s: dict[str, float]
    in_flight: dict[str, int]
    kv_used: dict[str, float]


class Pool:
    """A deployment's links, its queue, and the searches for streams that its replicas may hold."""

    def __init__(
        self,
        config: DeploymentConfig,
        thresholds: Thresholds = NONE_SET,
        rng: random.Random | None = None,
        rejected: Callable[[str, str], None] = lambda _model, _reason: None,
        comeback_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.config = config
        self.admission = Admission(self, thresholds, rng or random.Random(), rejected, comeback_s)
        self.links: list[ReplicaLink] = []
        self.shunned: set[ReplicaLink] = set()
        """Where streams begin only if no other link has room."""
        self.queue = WaitingQueue()
        self.service = Service()
        self.usage: Counter[str] = Counter()
        """Open streams by tenant."""
        self.searches: dict[Search, None] = {}
        self.closed = False
        self.exhausted = False
        """Whether no link has room, for certain. A link that comes to have some says so to `Dispatch.pump`, which
        takes this back: so nobody looks at thousands of links again and again while all of them are full."""
        self.full = False
        """As `exhausted`, for streams that lost their replica."""

    def choose(
        self, run: StreamRun, below: Callable[[int], int], among: Sequence[ReplicaLink] | None = None
    ) -> ReplicaLink | None:
        """The link for the run's next attempt, of these (of all, if not told); None where none has room for it."""
        links: Sequence[ReplicaLink] = self.links if among is None else among
        suspect = run.stream.suspect
        if suspect:
            links = [link for link in links if link.free_for_suspects]
        orders = self._best_first(links, run.avoid)
        if not self.exhausted:
            link = _first(choose(some, below) for some in orders) or self._of_last_resort(links, below)
            self.exhausted = link is None and not suspect
            if link is not None:
                return link
        if run.was_held or not (run.stream.attempts or run.stream.accepted) or self.full:
            return None
        # It lost its replica, and may not wait until another is less busy than thresholds for new streams want.
        link = _first(_least_loaded(some) for some in orders)
        self.full = link is None and not suspect
        return link

    def _best_first(self, links: Sequence[ReplicaLink], avoid: ReplicaLink | None) -> list[Sequence[ReplicaLink]]:
        """The links without those that are shunned and the one to avoid, then with the former, then all."""
        others = links if avoid is None else [link for link in links if link is not avoid]
        orders = [others] if others is links else [others, links]
        if self.shunned:
            orders.insert(0, [link for link in others if link not in self.shunned])
        return orders

    def retire(self, link: ReplicaLink) -> None:
        """Nothing begins there any more, and nobody waits for its answers."""
        self.links.remove(link)
        self.shunned.discard(link)
        self.stop_searching(link)

    def _of_last_resort(self, links: Sequence[ReplicaLink], below: Callable[[int], int]) -> ReplicaLink | None:
        """One that is passed over, where all others are gone."""
        if any(link.ready and not (link.passed_over or link.sick) for link in self.links):
            return None
        for link in self.links:
            link.passed_over = link.sick = False
        return choose(links, below)

    def has_room(self) -> None:
        """A link says that it has room, or may have."""
        self.exhausted = self.full = False

    @property
    def places(self) -> int:
        """How many more streams may be sent to the replicas."""
        return 0 if self.exhausted else sum(link.places for link in self.links)

    @property
    def reachable(self) -> bool:
        """Whether a replica is there at all."""
        return any(link.ready for link in self.links)

    def took(self, run: StreamRun) -> None:
        """The stream is open."""
        run.counted = True
        self.usage[run.claim.tenant] += 1

    def gave_up(self, run: StreamRun) -> None:
        """It is not open any more, or soon won't be."""
        if run.counted:
            run.counted = False
            self.usage[run.claim.tenant] -= 1
            if not self.usage[run.claim.tenant]:
                del self.usage[run.claim.tenant]

    def report(self) -> PoolReport:
        """How it stands, for metrics."""
        now_s, ages_s = asyncio.get_running_loop().time(), dict[str, float]()
        for run in self.queue:
            if run.waiting_since_s is not None:
                priority = run.claim.priority.name.lower()
                ages_s[priority] = max(ages_s.get(priority, 0.0), now_s - run.waiting_since_s)
        return PoolReport(
            self.config.name,
            sum(link.ready for link in self.links),
            self.config.num_replicas,
            len(self.queue),
            ages_s,
            {link.replica: link.in_flight for link in self.links},
            {link.replica: link.kv_used for link in self.links},
        )

    def stop_searching(self, link: ReplicaLink) -> None:
        """Nobody need wait for this replica's answer."""
        for search in list(self.searches):
            search.gone(link)

    @property
    def deterministic(self) -> bool:
        """Whether all engines that are known here draw the same tokens for the same request and seed."""
        known = [link.info.deterministic for link in self.links if link.info is not None]
        return bool(known) and all(known)

    @property
    def erratic(self) -> bool:
        """Whether an engine that is known here would not draw the same tokens again."""
        return any(link.info is not None and not link.info.deterministic for link in self.links)


def _first(found: Iterable[ReplicaLink | None]) -> ReplicaLink | None:
    return next((link for link in found if link is not None), None)


def _least_loaded(links: Sequence[ReplicaLink]) -> ReplicaLink | None:
    return min((link for link in links if link.takes_moved), key=lambda link: link.load, default=None)
