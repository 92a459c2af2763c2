"""One deployment at one gateway: the links to its replicas, and the queue of streams that wait for one with room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from holdfast.core.config import DeploymentConfig
from holdfast.core.routing import choose
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.search import Search
from holdfast.gateway.session import StreamRun


class Pool:
    """A deployment's links, its queue, and the searches for streams that its replicas may hold."""

    def __init__(self, config: DeploymentConfig) -> None:
        self.config = config
        self.links: list[ReplicaLink] = []
        self.queue: deque[StreamRun] = deque()
        self.searches: dict[Search, None] = {}
        self.closed = False
        self.exhausted = False
        """Whether no link has room, for certain. A link that comes to have some says so to `Serving._pump`, which
        takes this back: so nobody looks at thousands of links again and again while all of them are full."""

    def choose(
        self, run: StreamRun, below: Callable[[int], int], among: Sequence[ReplicaLink] | None = None
    ) -> ReplicaLink | None:
        """The link for the run's next attempt, of these (of all, if not told); None where none has room for it."""
        if self.exhausted:
            return None
        links: Sequence[ReplicaLink] = self.links if among is None else among
        if run.stream.suspect:
            links = [link for link in links if link.free_for_suspects]
        link = None
        if run.avoid is not None:
            link = choose([link for link in links if link is not run.avoid], below)
        link = link or choose(links, below)
        self.exhausted = link is None and not run.stream.suspect
        return link

    @property
    def places(self) -> int:
        """How many more streams may be sent to the replicas."""
        return 0 if self.exhausted else sum(link.places for link in self.links)

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
