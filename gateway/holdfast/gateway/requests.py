"""The requests for tokens that a gateway has open: who asked, how far they are, which belongs to which, how they end.

A request is known by two ids: its `x-request-id`, which its client may choose, and its answer's. It may name another
one as its parent. When that is cancelled, loses its client or is out of time, so is every request below it, to any
depth: at this gateway at once, at others by being told (`kinship.py`). A child that comes after its parent's
cancellation is refused, for as long as that is remembered.

Nothing here is touched per token, and all of it is one event loop's, so there are no locks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

import msgspec

from holdfast.core.errors import DeadlineExceeded, Overloaded, RequestCancelled
from holdfast.gateway.backend import Session
from holdfast.gateway.problems import CLIENT_CLOSED_REQUEST

STOP: Final = "stop"
KILL: Final = "kill"
CLIENT: Final = "client"
SLOW_CLIENT: Final = "slow_client"
DEADLINE: Final = "deadline"
PARENT: Final = "parent"
"""Why a request ended before its end: it was stopped or killed by its id, its client went away or took nothing, its
time was over, or its parent ended in such a way."""

Mode = Literal["stop", "kill"]
MODES: Final[tuple[Mode, ...]] = (STOP, KILL)
"""How a request is cancelled: it ends well with what there is, or at once."""

OPEN_MAX: Final = 100_000
"""So many requests may be open at once; more are refused."""

REMEMBERED_MAX: Final = 10_000
REMEMBERED_S: Final = 600.0
"""So many cancellations are remembered, for so long (seconds)."""

RETRY_AFTER_S: Final = 1.0

_OUTCOMES: Final = {"cancelled": CLIENT, "slow_client": SLOW_CLIENT, "deadline": DEADLINE}
"""What a request's outcome says about why it ended, where nobody ended it by its id."""


STATUSES: Final = {SLOW_CLIENT: 408, DEADLINE: 504}
"""What the log calls such ends; all others are 499."""

logger = logging.getLogger(__name__)


class RequestObject(msgspec.Struct, frozen=True):
    """A request as its owner sees it. Times are in seconds.

    `state` is `queued` (no replica has it), `running`, or `cancelled`, with the `cause`: `stop`, `kill`, `client`,
    `slow_client`, `deadline` or `parent`. `tenant` is a short hash of the API key. `timeout_left_s` is what is left of
    its time. `cancelled` says how many requests a cancellation has ended at that gateway: this one, and those below it.
    """

    id: str
    object: Literal["request"]
    response_id: str
    gateway: str
    model: str
    state: Literal["queued", "running", "cancelled"]
    cause: str | None
    tenant: str
    priority: str
    parent: str | None
    age_s: float
    timeout_left_s: float
    prompt_tokens: int
    completion_tokens: int
    replicas: list[str]
    cancelled: int = 0


class RequestList(msgspec.Struct, frozen=True):
    """Open requests, the oldest first, at most `limit` of each gateway. `unreached` gateways did not say theirs."""

    object: Literal["list"]
    data: list[RequestObject]
    unreached: list[str]


class OpenRequest:
    """One request, from its arrival until its end. Times are the loop's.

    `owner` is whose it is (empty where keys are not asked for), `authorization` what its client sent for a key.
    `elsewhere` are the gateways that have told of children of it.
    """

    __slots__ = (
        "authorization",
        "began_s",
        "cause",
        "deadline_s",
        "elsewhere",
        "id",
        "model",
        "owner",
        "parent",
        "priority",
        "response_id",
        "session",
        "tenant",
    )

    def __init__(
        self, id_: str, owner: str, tenant: str, authorization: bytes | None, began_s: float, timeout_s: float
    ) -> None:
        self.id = id_
        self.owner = owner
        self.tenant = tenant
        self.authorization = authorization
        self.began_s = began_s
        self.deadline_s = began_s + timeout_s
        self.parent = ""
        self.priority = ""
        self.response_id = ""
        self.model = ""
        self.session: Session | None = None
        self.cause = ""
        self.elsewhere: set[str] = set()

    def left_s(self) -> float:
        """How long it may still take. Raises `DeadlineExceeded` when that is over."""
        left_s = self.deadline_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineExceeded(f"The request did not end within {self.deadline_s - self.began_s:g} seconds.")
        return left_s

    def end_by(self, deadline_s: float) -> None:
        """It may not take longer than that."""
        self.deadline_s = min(self.deadline_s, deadline_s)

    @property
    def ids(self) -> tuple[str, ...]:
        """By what it may be known."""
        return (self.id, self.response_id) if self.response_id else (self.id,)


class Requests:
    """All open requests of one gateway. `tell(request, mode)` is called for ends that others have to hear of."""

    def __init__(self, gateway: str, open_max: int = OPEN_MAX) -> None:
        self.gateway = gateway
        self.tell: Callable[[OpenRequest, Mode], None] = lambda _request, _mode: None
        self.cancellations: Counter[tuple[str, str]] = Counter()
        self._open: dict[OpenRequest, None] = {}
        self._open_max = open_max
        self._by_id: dict[tuple[str, str], dict[OpenRequest, None]] = {}
        self._children: dict[tuple[str, str], dict[OpenRequest, None]] = {}
        self._remembered: OrderedDict[tuple[str, str], tuple[float, RequestObject]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    # --- a request's life -------------------------------------------------------------------------------

    def opened(self, request: OpenRequest, response_id: str, model: str, session: Session) -> None:
        """It begins. Raises `Overloaded`, and `RequestCancelled` where its parent was cancelled meanwhile."""
        self.check_parent(request)
        if len(self._open) >= self._open_max:
            raise Overloaded(f"This gateway has {self._open_max} requests open, which is its limit.", RETRY_AFTER_S)
        request.response_id, request.model, request.session = response_id, model, session
        request.end_by(asyncio.get_running_loop().time() + session.timeout_s)
        self._open[request] = None
        for id_ in request.ids:
            # Who comes back under its id, after its client was gone, is not cancelled any more.
            self._remembered.pop((request.owner, id_), None)
            self._by_id.setdefault((request.owner, id_), {})[request] = None
        if request.parent:
            self._children.setdefault((request.owner, request.parent), {})[request] = None

    def check_parent(self, request: OpenRequest) -> None:
        """Take over its parent's deadline, if that is open here. Raises `RequestCancelled` if it is cancelled."""
        if not request.parent:
            return
        key = (request.owner, request.parent)
        parents = self._by_id.get(key)
        if parents:
            request.end_by(max(parent.deadline_s for parent in parents))
        elif self.remembered(*key) is not None:
            raise parent_cancelled(request.parent)

    def ended(self, request: OpenRequest, outcome: str) -> str:
        """It is over; what is below it may have to end. Its outcome, `cancelled` if somebody had it stopped."""
        if request not in self._open:
            return outcome
        stopped = request.cause == STOP or (request.cause == PARENT and outcome == "ok")
        if not request.cause and outcome in _OUTCOMES:
            self._cancel([(request, _OUTCOMES[outcome], KILL)])
        if request.cause:
            _log(request, stopped=stopped)
        del self._open[request]
        for id_ in request.ids:
            _discard(self._by_id, (request.owner, id_), request)
        if request.parent:
            _discard(self._children, (request.owner, request.parent), request)
        return "cancelled" if stopped else outcome

    # --- looking ----------------------------------------------------------------------------------------

    def seen(self, owner: str | None, limit: int) -> list[RequestObject]:
        """The oldest open requests, all of them (None) or one owner's, as they stand at one instant."""
        now_s = asyncio.get_running_loop().time()
        found = (self.describe(request, now_s) for request in self._open if owner is None or request.owner == owner)
        return [one for one, _number in zip(found, range(limit), strict=False)]

    def find(self, owner: str | None, id_: str) -> list[OpenRequest]:
        """The open requests known by an id: several, where a client tried again before its first try had ended."""
        return [request for key in self._keys(owner, id_, self._by_id) for request in self._by_id[key]]

    def remembered(self, owner: str | None, id_: str) -> RequestObject | None:
        """What was cancelled under this id not long ago."""
        self._forget()
        for key in self._keys(owner, id_, self._remembered):
            return self._remembered[key][1]
        return None

    def describe(self, request: OpenRequest, now_s: float, cancelled: int = 0) -> RequestObject:
        """How it stands at `now_s`, the loop's time."""
        session = request.session
        replicas = session.replicas if session is not None else []
        state: Literal["queued", "running", "cancelled"] = "running" if replicas else "queued"
        return RequestObject(
            id=request.id,
            object="request",
            response_id=request.response_id,
            gateway=self.gateway,
            model=request.model,
            state="cancelled" if request.cause else state,
            cause=request.cause or None,
            tenant=request.tenant,
            priority=request.priority,
            parent=request.parent or None,
            age_s=round(now_s - request.began_s, 3),
            timeout_left_s=round(max(0.0, request.deadline_s - now_s), 3),
            prompt_tokens=session.prompt_tokens if session is not None else 0,
            completion_tokens=session.completion_tokens if session is not None else 0,
            replicas=replicas,
            cancelled=cancelled,
        )

    def forget(self, owner: str, id_: str) -> None:
        """It is not cancelled any more: it goes on at another gateway."""
        self._remembered.pop((owner, id_), None)

    # --- cancelling -------------------------------------------------------------------------------------

    def cancel(self, owner: str | None, id_: str, mode: Mode) -> RequestObject | None:
        """End the requests known by an id, and all below them; the first of them, as it ended.

        Where none is open, those whose parent it is; where there are none either, what is remembered, or None.
        """
        found = self.find(owner, id_)
        if not found:
            return self.cancel_children(owner, id_, mode) or self.remembered(owner, id_)
        before = self.remembered(owner, id_)
        if before is not None and all(request.cause for request in found):
            return before
        count = self._cancel([(request, mode, mode) for request in found])
        return self._remember(found[0], count)

    def cancel_children(self, owner: str | None, id_: str, mode: Mode) -> RequestObject | None:
        """End the requests whose parent this id is, and all below them: the parent was cancelled, here or elsewhere."""
        last = None
        for key in self._keys(owner, id_, self._children):
            count = self._cancel([(child, PARENT, mode) for child in self._children[key]])
            last = self._remember_parent(key, mode, count)
        return last

    def told(self, owner: str, id_: str, mode: Mode, *, whole: bool) -> RequestObject | None:
        """Another gateway's request of this id was cancelled: children here end, and none may come for a while.

        A copy of it here ends too if it is the `whole` that was cancelled; else it is one whose client came back.
        """
        if self.find(owner, id_):
            return self.cancel(owner, id_, mode) if whole else None
        return self.cancel_children(owner, id_, mode) or self._remember_parent((owner, id_), mode, 0)

    def _cancel(self, ends: Iterable[tuple[OpenRequest, str, Mode]]) -> int:
        """End these and all below them, each once; how many that were. Bounded by the requests that are open."""
        waiting, count = deque(ends), 0
        while waiting:
            request, cause, mode = waiting.popleft()
            if request.cause:
                continue
            request.cause = cause
            count += 1
            self.cancellations[request.model, cause] += 1
            _end(request, cause, mode)
            self._remember(request, 1)
            if request.elsewhere or cause in (STOP, KILL):
                self.tell(request, mode)
            waiting.extend((child, PARENT, mode) for child in self._below(request))
        return count

    def _below(self, request: OpenRequest) -> Iterator[OpenRequest]:
        for id_ in request.ids:
            yield from self._children.get((request.owner, id_), ())

    def _remember(self, request: OpenRequest, count: int) -> RequestObject:
        final = self.describe(request, asyncio.get_running_loop().time(), count)
        for id_ in request.ids:
            self._keep((request.owner, id_), final)
        return final

    def _remember_parent(self, key: tuple[str, str], mode: Mode, count: int) -> RequestObject:
        """One that is no request of this gateway's, known only by its children."""
        final = RequestObject(
            key[1], "request", "", self.gateway, "", "cancelled", mode, key[0], "", None, 0.0, 0.0, 0, 0, [], count
        )
        self._keep(key, final)
        return final

    def _keep(self, key: tuple[str, str], final: RequestObject) -> None:
        self._remembered.pop(key, None)
        self._remembered[key] = (asyncio.get_running_loop().time() + REMEMBERED_S, final)
        while len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)

    def _forget(self) -> None:
        now_s = asyncio.get_running_loop().time()
        while self._remembered and next(iter(self._remembered.values()))[0] <= now_s:
            self._remembered.popitem(last=False)

    def _keys(self, owner: str | None, id_: str, among: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Where an id stands: with its owner, or, for who may see all (None), with anybody."""
        if owner is not None:
            return [(owner, id_)] if (owner, id_) in among else []
        return [key for key in among if key[1] == id_]


def parent_cancelled(parent: str) -> RequestCancelled:
    """The request that this one belongs to was cancelled."""
    return RequestCancelled(f"The request {parent!r}, to which this one belongs, was cancelled.", "parent_cancelled")


def _end(request: OpenRequest, cause: str, mode: Mode) -> None:
    """Let its engines know at once. Who lost its client, or its time, is ended by whoever serves it."""
    session = request.session
    if session is None or cause in (CLIENT, SLOW_CLIENT, DEADLINE):
        return
    if mode == STOP:
        session.stop()
    elif cause == PARENT:
        session.fail(parent_cancelled(request.parent))
    else:
        session.fail(RequestCancelled("The request was cancelled by its id.", "request_cancelled"))


def _log(request: OpenRequest, *, stopped: bool) -> None:
    """A line about a request that ended before its end, with the status that stands for that."""
    status = 200 if stopped else STATUSES.get(request.cause, CLIENT_CLOSED_REQUEST)
    tokens = request.session.completion_tokens if request.session is not None else 0
    took_s = asyncio.get_running_loop().time() - request.began_s
    logger.info("request %s: %d (%s) after %d tokens, %.3f s", request.id, status, request.cause, tokens, took_s)


def _discard(index: dict[tuple[str, str], dict[OpenRequest, None]], key: tuple[str, str], request: OpenRequest) -> None:
    found = index.get(key)
    if found is not None:
        found.pop(request, None)
        if not found:
            del index[key]
