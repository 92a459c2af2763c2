"""Looks for the replica that still holds a stream whose gateway is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

from holdfast.core.frames import Found
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.session import StreamRun

SEARCH_S = 0.3
SEARCH_MAX_S = 1.0
"""A search waits this long for replicas that don't answer, or are not reached yet (seconds): the first once it has
found the stream, for there might be a later copy, the second while it has not, for drawing it again takes longer."""


class Search:
    """Asks all replicas that can be asked for one stream.

    Calls `done` once, with the link to the replica that holds the stream's latest attempt, and its ordinal, or with
    None. It is `among` the pool's searches until then. `base_max` is how many of its first tokens may be without
    texts. A copy that was left behind when the stream migrated may be held as well: that is why all are asked, and
    the highest ordinal is right.
    """

    def __init__(
        self,
        run: StreamRun,
        base_max: int,
        among: dict[Search, None],
        done: Callable[[StreamRun, tuple[int, ReplicaLink] | None], None],
    ) -> None:
        self._run = run
        self._base_max = base_max
        self._among = among
        among[self] = None
        self._done = done
        self._asked: dict[ReplicaLink, int] = {}
        self._unasked: dict[ReplicaLink, None] = {}
        self._best: tuple[Found, ReplicaLink] | None = None
        self._began_s = asyncio.get_running_loop().time()
        self._timer = asyncio.get_running_loop().call_later(SEARCH_MAX_S, self._end)

    def begin(self, links: Iterable[ReplicaLink]) -> None:
        """Ask these, but for suspects. Those that can't be asked yet turn up with `reached`, or are `gone`."""
        self._unasked = {link: None for link in links if not link.suspected}
        for link in list(self._unasked):
            self._ask(link)
        self._end_if_answered()

    def reached(self, link: ReplicaLink) -> None:
        """The link can be asked from now on."""
        if link in self._unasked:
            self._ask(link)

    def gone(self, link: ReplicaLink) -> None:
        """The replica has ended, or is suspected: no answer is waited for."""
        self._unasked.pop(link, None)
        question = self._asked.pop(link, None)
        if question is not None:
            link.forget(question)
        self._end_if_answered()

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._timer.cancel()
        self._among.pop(self, None)
        for link, question in self._asked.items():
            link.forget(question)
        self._asked.clear()

    def _ask(self, link: ReplicaLink) -> None:
        question = link.ask(self._run.name, partial(self._answered, link))
        if question is not None:
            self._unasked.pop(link, None)
            self._asked[link] = question

    def _answered(self, link: ReplicaLink, found: Found | None) -> None:
        del self._asked[link]
        if found is not None and found.ordinal > (self._best[0].ordinal if self._best else 0):
            self._best = found, link
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(self._began_s + SEARCH_S, self._end)
        self._end_if_answered()

    def _end_if_answered(self) -> None:
        if not self._asked and not self._unasked:
            self._end()

    def _end(self) -> None:
        self.cancel()
        found, link = self._best or (None, None)
        if found is not None:
            # What is drawn again instead is later than this copy: nobody may attach to this one any more.
            self._run.ordinal = max(self._run.ordinal, found.ordinal)
        if found is None or link is None or found.base > self._base_max or not link.reached:
            self._done(self._run, None)
        else:
            self._done(self._run, (found.ordinal, link))
