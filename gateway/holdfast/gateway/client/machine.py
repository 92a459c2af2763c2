"""One call, from its first try to its end: what to do next, given what happened. No I/O, no clock, no randomness.

Theory of operation. The machine gives a step (open, read, pause, deliver, ...), the shell does it and tells what
happened and when. There is always exactly one step out, and that step is the state: `_TABLE` says what may follow.

A try fails in one of two ways. For good: the request is refused, the answer is nonsense, the server says that it
failed. Or for now: no connection, silence, a cut, a status that asks for patience. Then the call pauses and tries at
the next gateway, as long as the retries in a row, the tries, the budget and the deadline allow. What it sends then
depends on one thing only: nothing was delivered yet, so the request starts anew (generating has no side effects; at
worst tokens are drawn that nobody reads); or something was, and the request goes with `Last-Event-ID`, to be continued
behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from holdfast.core.frames import TAKEN_OVER
from holdfast.gateway.client.bodies import GATEWAY_STOPPING, Body, Done, Found, ProblemBody, body_of
from holdfast.gateway.client.budget import RetryBudget
from holdfast.gateway.client.errors import (
    ApiError,
    BadAnswer,
    CannotResume,
    ClientError,
    ConnectionFailed,
    DeadlinePassed,
    StreamBroken,
    Unavailable,
)
from holdfast.gateway.client.events import Event
from holdfast.gateway.client.gateways import Gateways
from holdfast.gateway.client.ledger import Ledger
from holdfast.gateway.client.policy import RetryPolicy
from holdfast.gateway.client.steps import (
    Answered,
    Begin,
    Deliver,
    Delivered,
    Drain,
    Ended,
    Fail,
    Failed,
    Finish,
    Happening,
    Open,
    Pause,
    Read,
    Received,
    Step,
    Woke,
)

DRAIN_TIMEOUT_S: Final = 0.2
_KINDS: Final = {
    "connect": "could not be reached",
    "timeout": "was silent for too long",
    "broken": "broke the connection",
}


TIMEOUT: Final = "x-request-timeout-seconds"
OVERTIME_S: Final = 1.0
"""A gateway may go on for so much longer than the call (seconds): who is there to see the deadline hears of it here."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked for. The body is the same at every try, and so is the request id."""

    path: str
    body: bytes
    request_id: str
    streamed: bool
    deadline_s: float
    last_event_id: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Shared:
    """What all calls of a client share. `random` draws from [0, 1)."""

    policy: RetryPolicy
    gateways: Gateways
    budget: RetryBudget
    random: Callable[[], float]


class CallMachine:
    """One call. `now` is any monotonic clock, in seconds."""

    def __init__(self, call: Call, shared: Shared) -> None:
        self.call = call
        self.tries = 0
        self._shared = shared
        self._policy = shared.policy
        self._step: Step | None = None
        self._ledger = Ledger(call.last_event_id)
        self._taken_id = call.last_event_id
        self._deadline_at = 0.0
        self._gateway = -1
        self._failures = 0
        self._progress = False
        self._body: Body | None = None
        self._end: Done | ClientError | None = None

    @property
    def last_event_id(self) -> str:
        """Where another call could resume the stream: behind the last event that was taken; "" before the first.

        More may have been delivered: who leaves early would lose what it had not taken of that.
        """
        return self._taken_id

    def take(self, event: Event) -> None:
        """Note that one of the events that were delivered has been taken by whom they are for."""
        self._taken_id = event.id or self._taken_id

    @property
    def over(self) -> bool:
        """Nothing more will be done."""
        return isinstance(self._step, Finish | Fail)

    def on(self, happening: Happening, now: float) -> Step:
        """The next step."""
        handler = _TABLE.get((type(self._step), type(happening)))
        assert handler is not None, f"{happening} can't follow {self._step}"
        self._step = handler(self, happening, now)
        return self._step

    def _begin(self, _: Begin, now: float) -> Step:
        self._deadline_at = now + self.call.deadline_s
        self._shared.budget.deposit()
        self._gateway = self._shared.gateways.first(self._shared.random(), now)
        return self._open(now)

    def _woke(self, _: Woke, now: float) -> Step:
        self._gateway = self._shared.gateways.next(self._gateway, now)
        return self._open(now)

    def _open(self, now: float) -> Step:
        left = self._deadline_at - now
        if left <= 0:
            return self._late(None)
        self.tries += 1
        self._progress = False
        self._body = None
        headers = {
            "accept": "text/event-stream" if self.call.streamed else "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            TIMEOUT: f"{left + OVERTIME_S:.3f}",
            **dict(self.call.headers),
            "x-request-id": self.call.request_id,
        }
        if self._ledger.delivered:
            self._ledger.resuming()
            headers["last-event-id"] = self._ledger.last_id
        url = self._shared.gateways.urls[self._gateway] + self.call.path
        timeout_s = min(left, self._silence_s())
        return Open(url, headers, self.call.body, min(timeout_s, self._policy.connect_timeout_s), timeout_s)

    def _silence_s(self) -> float:
        if self.call.streamed:
            return self._policy.try_timeout_s
        return self._policy.answer_timeout_s or self.call.deadline_s

    def _answered(self, answered: Answered, now: float) -> Step:
        if answered.status < 500:
            self._shared.gateways.works(self._gateway)
        last_id = self._ledger.last_id
        body = body_of(answered.status, answered.headers, streamed=self.call.streamed, last_id=last_id)
        if isinstance(body, BadAnswer):
            return self._fail(body)
        self._body = body
        return self._read(now)

    def _received(self, received: Received, now: float) -> Step:
        assert self._body is not None
        return self._found(self._body.feed(received.data), now)

    def _ended(self, _: Ended, now: float) -> Step:
        assert self._body is not None
        return self._found(self._body.ended(), now)

    def _found(self, found: Found, now: float) -> Step:
        self._end = found.end
        fresh = []
        try:
            for event in found.events:
                if self._ledger.take(event):
                    fresh.append(event)
        except CannotResume as error:
            self._end = error
        if not fresh:
            return self._go_on(now)
        self._progress = True
        self._failures = 0
        return Deliver(tuple(fresh))

    def _delivered(self, _: Delivered, now: float) -> Step:
        return self._go_on(now)

    def _go_on(self, now: float) -> Step:
        match self._end:
            case None:
                return self._read(now)
            case Done():
                return Drain(DRAIN_TIMEOUT_S)
            case ConnectionFailed() | Unavailable() as error:
                return self._try_failed(error, now)
            case ApiError(code=code) as error if code == TAKEN_OVER and self.tries > 1:
                # By an earlier try of this call, more likely than not: a gateway that stood still has just read it.
                ours = Unavailable(error.message, status=error.status, code=code)
                return self._try_failed(ours, now)
            case error:
                return self._fail(error)

    def _read(self, now: float) -> Step:
        left = self._deadline_at - now
        return Read(min(left, self._silence_s())) if left > 0 else self._late(None)

    def _failed(self, failed: Failed, now: float) -> Step:
        if isinstance(self._body, ProblemBody):
            return self._found(self._body.ended(), now)
        name = self._shared.gateways.urls[self._gateway]
        detail = f": {failed.error}" if failed.error is not None and str(failed.error) else ""
        error = ConnectionFailed(f"{name} {_KINDS[failed.kind]}{detail}")
        error.__cause__ = failed.error
        return self._try_failed(error, now)

    def _try_failed(self, error: ConnectionFailed | Unavailable, now: float) -> Step:
        """It failed for now: to be tried again, or given up."""
        gone = not isinstance(error, Unavailable) or error.status in (502, 504) or error.code == GATEWAY_STOPPING
        if gone and now < self._deadline_at:
            self._shared.gateways.failed(self._gateway, now)
        self._failures += 1
        pause_s = self._pause_s(error)
        if now + pause_s >= self._deadline_at:
            return self._late(error)
        why = self._forbidden(now)
        if why is not None:
            return self._give_up(error, why)
        return Pause(pause_s, str(error))

    def _pause_s(self, error: ConnectionFailed | Unavailable) -> float:
        """The backoff, or what the gateway asks for, if that is more and it doesn't speak for itself alone."""
        pause_s = self._policy.pause_s(self._failures, self._shared.random())
        if not isinstance(error, Unavailable):
            return pause_s
        if error.code == GATEWAY_STOPPING and len(self._shared.gateways.urls) > 1:
            # The others are none the worse for it: on a planned stop nobody need wait.
            return 0.0 if self._failures == 1 else pause_s
        if error.retry_after_s is None:
            return pause_s
        return max(pause_s, min(error.retry_after_s, self._policy.retry_after_max_s))

    def _forbidden(self, now: float) -> str | None:
        """Why there must be no other try, if so. Takes from the budget, if not."""
        if self._ledger.delivered and not self._ledger.last_id:
            return "the server gives no ids to resume with"
        if self._failures > self._policy.retries_max:
            return f"{self._policy.retries_max} retries in a row brought nothing"
        if self.tries >= self._policy.tries_max:
            return f"{self._policy.tries_max} tries are the most of one call"
        if not self._progress and not self._shared.budget.withdraw(now):
            return "the client's retry budget is used up"
        return None

    def _give_up(self, error: ConnectionFailed | Unavailable, why: str) -> Step:
        if self._ledger.delivered:
            broken = StreamBroken(f"the stream broke and was not resumed ({why}): {error.message}")
            broken.__cause__ = error
            return self._fail(broken)
        error.message += f" (not tried again: {why})"
        return self._fail(error)

    def _late(self, cause: ClientError | None) -> Step:
        after = f"; before that: {cause.message}" if cause is not None else ""
        error = DeadlinePassed(f"the deadline of {self.call.deadline_s:g} s leaves no time{after}")
        error.__cause__ = cause
        return self._fail(error)

    def _fail(self, error: ClientError) -> Step:
        if self._ledger.delivered and isinstance(error, ApiError) and error.status is not None:
            refusal = CannotResume(f"the stream can't be resumed: {error.message}")
            refusal.__cause__ = error
            error = refusal
        error.request_id = self.call.request_id
        error.last_event_id = self._ledger.last_id
        error.tries = self.tries
        return Fail(error)

    def _drained(self, _: Happening, now: float) -> Step:
        return Finish()


_TABLE: Final[dict[tuple[type, type], Callable[..., Step]]] = {
    (type(None), Begin): CallMachine._begin,
    (Open, Answered): CallMachine._answered,
    (Open, Failed): CallMachine._failed,
    (Read, Received): CallMachine._received,
    (Read, Ended): CallMachine._ended,
    (Read, Failed): CallMachine._failed,
    (Pause, Woke): CallMachine._woke,
    (Deliver, Delivered): CallMachine._delivered,
    (Drain, Received): CallMachine._drained,
    (Drain, Ended): CallMachine._drained,
    (Drain, Failed): CallMachine._drained,
}
