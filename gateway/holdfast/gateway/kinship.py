"""Requests that belong together at several gateways: who has the parent, and who has to hear of its end.

A child whose parent is not here asks the other gateways for it before it begins. The one that has the parent tells how
long that may still take, and notes that there are children elsewhere; one that remembers its cancellation says so,
and the child is refused. If the parent is cancelled later, its gateway tells those that have children of it.
Where nobody answers in time the child begins: it is an error of ours, not of its client's.

The children of one parent share what is asked of a gateway. Who comes while that is under way waits for the next time:
the parent may have come there, or ended, after the gateway looked.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from holdfast.gateway.peers import CALL_TIMEOUT_S, Peers
from holdfast.gateway.requests import KILL, STOP, Mode, OpenRequest, Requests, parent_cancelled
from holdfast.gateway.telling import Telling, Tellings, path_of

QUESTIONS_MAX: Final = 4_096
"""So many parents are asked for at once, each gateway counted; further children begin without an answer."""


class Adopted(msgspec.Struct, frozen=True):
    """A gateway has the parent, which may still take so long (seconds); or it remembers that it was `cancelled`."""

    timeout_left_s: float
    cancelled: bool


class _Known(msgspec.Struct, frozen=True):
    """What a gateway knows of a parent: its deadline (the loop's time), or that it was `cancelled`."""

    deadline_s: float
    cancelled: bool


class _Question:
    """Whether gateway `name` knows a parent, for all its children here. `waiting` is what those wait for that came
    since it was asked the last time."""

    __slots__ = ("authorization", "name", "owner", "parent", "waiting")

    def __init__(self, name: str, child: OpenRequest) -> None:
        self.name = name
        self.owner = child.owner
        self.parent = child.parent
        self.authorization = child.authorization
        self.waiting: asyncio.Future[_Known | None] | None = None


class Kinship:
    """One gateway's requests, and those of the others that belong to them."""

    def __init__(self, requests: Requests, peers: Peers) -> None:
        self._requests = requests
        self._peers = peers
        self._questions: dict[tuple[str, str, str], _Question] = {}
        self._unasked: list[_Question] = []
        self._arrived = asyncio.Event()
        self.tellings = Tellings(peers)
        requests.tell = self._tell

    async def run(self) -> None:
        """Ask others for parents, and tell them of cancellations, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.tellings.run())
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                unasked, self._unasked = self._unasked, []
                for question in unasked:
                    group.create_task(self._ask(question))

    async def adopt(self, request: OpenRequest) -> None:
        """See to it that a child's parent lives, and that it does not outlive it, as far as others say so in time.

        That is `CALL_TIMEOUT_S`, or what the child has left. Raises `RequestCancelled`, and `DeadlineExceeded` for a
        child that has no time left already. Needs `run()`.
        """
        if not request.parent or self._requests.find(request.owner, request.parent):
            return
        names = [name for name in self._peers.names() if not self._peers.silent_s(name)]
        answers = [answer for name in names if (answer := self._answer_of(name, request)) is not None]
        if not answers:
            return
        await asyncio.wait(answers, timeout=min(CALL_TIMEOUT_S, request.left_s()))
        told = [known for answer in answers if answer.done() and (known := answer.result()) is not None]
        deadlines_s = [known.deadline_s for known in told if not known.cancelled]
        if deadlines_s:
            request.end_by(max(deadlines_s))
        elif told:
            raise parent_cancelled(request.parent)

    def adopted(self, owner: str | None, id_: str, gateway: str) -> Adopted | None:
        """Another gateway has a child of this request; None if nothing is known of it here."""
        found = self._requests.find(owner, id_)
        if gateway in self._peers.names():  # a client may call itself anything
            for request in found:
                request.elsewhere.add(gateway)
        alive = [request for request in found if not request.cause]
        if alive:
            return Adopted(max(request.deadline_s for request in alive) - _now_s(), cancelled=False)
        if found or self._requests.remembered(owner, id_) is not None:
            return Adopted(0.0, cancelled=True)
        return None

    def _answer_of(self, name: str, child: OpenRequest) -> asyncio.Future[_Known | None] | None:
        """What a gateway will say to a question that it has not been asked yet; None where too many are open."""
        key = (name, child.owner, child.parent)
        question = self._questions.get(key)
        if question is None:
            if len(self._questions) >= QUESTIONS_MAX:
                return None
            question = self._questions[key] = _Question(name, child)
            self._unasked.append(question)
            self._arrived.set()
        if question.waiting is None:
            question.waiting = asyncio.get_running_loop().create_future()
        return question.waiting

    async def _ask(self, question: _Question) -> None:
        """Again and again, while children come. Those who wait may leave: the answer is for those who come after."""
        path = path_of(question.parent, "adopt=1")
        while question.waiting is not None:
            waiting, question.waiting = question.waiting, None
            answer = await self._peers.ask(question.name, "POST", path, question.authorization, unless_silent=True)
            waiting.set_result(self._known(question, answer.read(Adopted) if answer is not None else None))
        del self._questions[question.name, question.owner, question.parent]

    def _known(self, question: _Question, told: Adopted | None) -> _Known | None:
        if told is None:
            return None
        if not told.cancelled:
            # Its client may have left it here, and taken it up again there. Forgotten at once: what this gateway is
            # told of its end from now on holds, however long the others take to answer.
            self._requests.forget(question.owner, question.parent)
        return _Known(_now_s() + told.timeout_left_s, told.cancelled)

    def _tell(self, request: OpenRequest, mode: Mode) -> None:
        """Other gateways have to hear of this: all, where it was cancelled by its id, for a copy may be there."""
        whole = request.cause in (STOP, KILL)
        names = self._peers.names() if whole else sorted(request.elsewhere)
        self.tellings.add(names, Telling(request.ids, mode, whole, request.authorization, _now_s()))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
