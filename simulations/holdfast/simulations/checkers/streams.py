"""What clients got: the right tokens, each once and in order, and one end in time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from holdfast.actors.engines.mock import TOKENS_WITHOUT_LIMIT, base_hash, token_at
from holdfast.actors.engines.words import WORDS
from holdfast.core.frames import TAKEN_OVER
from holdfast.core.sampling import derive
from holdfast.core.stream import FINISH_LENGTH, FINISH_STOP
from holdfast.simulations.checkers.cancels import may_be_stopped
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import (
    CANCELLED,
    COMPLETE,
    ERROR,
    FINISH,
    GATEWAY,
    ROLE,
    TOKEN,
    UNREACHED,
    USAGE,
    WHOLE,
    Process,
    Request,
)

STREAMS: Final = "streams"
ENDS: Final = "ends"

END_MARGIN_S: Final = 2.0
"""So much later than its deadline, in seconds, the end of a request may reach its client: the way there takes time."""

ALLOWED_ERRORS: Final = frozenset(
    {
        (504, "deadline_exceeded"),
        (408, "request_timeout"),
        (499, "request_cancelled"),
        (499, "parent_cancelled"),
        (503, "overloaded"),
        (503, "no_replica"),
        (503, "gateway_stopping"),
        (503, "stream_lost"),
        (404, "model_not_found"),
        (409, TAKEN_OVER),
    }
)
"""Errors of docs/http-api.md that a request which is right may end in. A 500 or any 400 is a fault of ours: requests of
runs are right, and the mock engine, being deterministic, can go on with any stream."""

ALLOWED_IN_STREAM: Final = frozenset(code for _, code in ALLOWED_ERRORS)
"""Those that may come as an event, after the first token."""

_ID: Final = re.compile(r"(?:chatcmpl|cmpl)-[0-9a-f]{16}([0-9a-f]{16})")
_TEXTS: Final = tuple(f" {word}" for word in WORDS)


class Due(NamedTuple):
    """What one choice must be: a piece of text for each token, and why it ends.

    `drawn` is what the engine says, stop strings or not: one that is stopped before such a string is complete has what
    may have become its beginning.
    """

    pieces: list[str]
    finish: str
    drawn: list[str]


def due_of(request: Request, seed: int) -> list[Due]:
    """All choices, as the mock engine and the gateway's stop strings make them. `seed` is the first choice's."""
    return [_due(request, derive(seed, choice)) for choice in range(request.n)]


def _due(request: Request, seed: int) -> Due:
    base = base_hash(request.prompt, seed)
    count = request.max_tokens or TOKENS_WITHOUT_LIMIT
    pieces = [_TEXTS[token_at(base, position)] for position in range(count)]
    if request.stops:
        text = ""
        for at, piece in enumerate(pieces):
            text += piece
            found = [place for stop in request.stops if (place := text.find(stop)) >= 0]
            if found:
                return Due(_cut(pieces[: at + 1], min(found)), FINISH_STOP, pieces[: at + 1])
    return Due(pieces, FINISH_LENGTH if request.max_tokens else FINISH_STOP, pieces)


def _cut(pieces: list[str], characters: int) -> list[str]:
    """The first so many characters; the pieces behind them are empty, and still count."""
    kept = []
    for piece in pieces:
        kept.append(piece[:characters])
        characters -= len(kept[-1])
    return kept


def seed_of(response_id: str) -> int | None:
    """The seed that a response's id holds; None when it is no such id."""
    match = _ID.fullmatch(response_id)
    if match is None:
        return None
    seed = int(match[1], 16)
    return seed - (1 << 64) if seed >> 63 else seed


# --- streams --------------------------------------------------------------------------------------------


class _Wrong(Exception):
    """What a client got is not what it must be; the text says how."""


def streams(history: History, judged: Judged) -> list[Violation]:
    """Every delivered stream is a prefix of the right text, and one that is complete is all of it.

    Each token comes once, in order, also over resumes at other gateways; event ids count them, one count per choice;
    each choice finishes once, for the right reason, and the usage is right.
    """
    found = []
    for request in history.requests:
        judged["answers"] += bool(request.events)
        try:
            _check(request, stopped=may_be_stopped(history, request))
        except _Wrong as wrong:
            at_s = request.last_s if request.last_s is not None else request.asked_s
            found.append(Violation(STREAMS, at_s, f"request {request.id}: {wrong}"))
    return found


def _check(request: Request, *, stopped: bool) -> None:
    if not request.events:
        if request.how == COMPLETE:
            raise _Wrong("it is called complete, and nothing came")
        return
    seed = seed_of(request.response_id)
    if seed is None:
        raise _Wrong(f"the answer's id {request.response_id!r} is none")
    if request.seed is not None and request.seed != seed:
        raise _Wrong(f"the answer's id has seed {seed}, and {request.seed} was asked for")
    delivered = _Delivered(request, due_of(request, seed), stopped=stopped)
    for kind, choice, text, event_id in request.events:
        delivered.take(kind, choice, text, event_id)
    if request.how == COMPLETE:
        delivered.complete()


class _Delivered:
    """One request's events, held against what is due as they come. One that is `stopped` may end with less of it."""

    def __init__(self, request: Request, due: list[Due], *, stopped: bool) -> None:
        self._request = request
        self._due = due
        self._stopped = stopped
        self._counts = [0] * request.n
        self._finished: set[int] = set()
        self._begun: set[int] = set()
        self._usages = 0
        self._id = ""
        self._expect_id()

    def take(self, kind: str, choice: int, text: str, event_id: str) -> None:
        """The next event."""
        if kind == USAGE:
            self._usages += 1
        elif kind in (COMPLETE, ERROR, UNREACHED, CANCELLED):
            raise _Wrong(f"another end came after the first: {kind} {text}".rstrip())
        elif kind not in (TOKEN, ROLE, FINISH, WHOLE):
            raise _Wrong(f"{kind} of choice {choice} is wrong: {text}")
        elif choice >= len(self._due) or choice in self._finished:
            raise _Wrong(f"choice {choice} went on behind its end, or was never asked for: {kind} {text!r}")
        elif kind == TOKEN:
            self._token(choice, text)
        elif kind == WHOLE:
            self._whole(choice, text)
        elif kind == FINISH:
            self._finish(choice, text)
        elif choice in self._begun:
            raise _Wrong(f"choice {choice} began twice")
        else:
            self._begun.add(choice)
        if self._request.streamed and event_id != self._id:
            raise _Wrong(f"an event ({kind} of choice {choice}) has the id {event_id!r}, and {self._id!r} is due")

    def complete(self) -> None:
        """The client says that this is all."""
        request = self._request
        if len(self._finished) < request.n:
            missing = sorted(set(range(request.n)) - self._finished)
            raise _Wrong(f"it is called complete, and choices {missing} have no finish reason")
        wanted = request.wants_usage or not request.streamed
        if self._usages != wanted:
            raise _Wrong(f"the usage came {self._usages} times, and {int(wanted)} is due")
        usage = (max(1, len(request.prompt.split())), sum(self._counts))
        if wanted and request.usage != usage and not self._may_be_used(usage):
            raise _Wrong(f"the usage is {request.usage}, and must be {usage}")

    def _may_be_used(self, usage: tuple[int, int]) -> bool:
        """Whether one that was stopped may have used what it says: it may have been before its prompt was read, and of
        an answer that came whole we can't tell how many of its last tokens have no text: `usage` counts none of them.
        """
        told = self._request.usage
        if not self._stopped or told is None or told[0] not in (0, usage[0]):
            return False
        most = usage[1] if self._request.streamed else sum(len(due.drawn) for due in self._due)
        return usage[1] <= told[1] <= most

    def _expect_id(self) -> None:
        self._id = f"{self._request.response_id}:{','.join(map(str, self._counts))}"

    def _token(self, choice: int, text: str) -> None:
        pieces, at = self._due[choice].pieces, self._counts[choice]
        if at >= len(pieces):
            raise _Wrong(f"choice {choice}: token {at} {text!r} came, and {len(pieces)} tokens are all")
        if text != pieces[at] and not (self._stopped and text == self._due[choice].drawn[at]):
            around = "".join(pieces[max(0, at - 3) : at + 4])
            raise _Wrong(f"choice {choice}: token {at} is {text!r}, and must be {pieces[at]!r}, in {around!r}")
        self._counts[choice] = at + 1
        self._expect_id()

    def _whole(self, choice: int, text: str) -> None:
        pieces, drawn = self._due[choice].pieces, self._due[choice].drawn
        due = "".join(pieces)
        if text != due and not (self._stopped and "".join(drawn).startswith(text)):
            raise _Wrong(f"choice {choice} is {text!r}, and must be {due!r}")
        if text != due:
            self._counts[choice] = _tokens(drawn, text)
        else:
            # All of it may be there before the stop string that ends it is.
            self._counts[choice] = _tokens(pieces, text) if self._stopped else len(pieces)

    def _finish(self, choice: int, reason: str) -> None:
        due = self._due[choice]
        if self._stopped and reason == FINISH_STOP:
            self._finished.add(choice)
            return
        if self._counts[choice] != len(due.pieces):
            raise _Wrong(f"choice {choice} finished after {self._counts[choice]} of {len(due.pieces)} tokens")
        if reason != due.finish:
            raise _Wrong(f"choice {choice} finished because of {reason!r}, and it must be {due.finish!r}")
        self._finished.add(choice)


def _tokens(pieces: list[str], text: str) -> int:
    """How many tokens make this beginning of the text, at least. Raises `_Wrong` where one would be cut."""
    length = 0
    for count, piece in enumerate(pieces):
        if length == len(text):
            return count
        length += len(piece)
    if length == len(text):
        return len(pieces)
    raise _Wrong(f"it ends within a token: {text!r}")


# --- ends -----------------------------------------------------------------------------------------------


def ends(history: History, judged: Judged) -> list[Violation]:
    """Every request has an end by its deadline, at the client and in the gateway, and one that it may have: all of it,
    or an error that the API documents.
    """
    found = [violation for request in history.requests for violation in _end(history, request, judged)]
    return [*found, *_exchanges(history, judged)]


def _end(history: History, request: Request, judged: Judged) -> Iterator[Violation]:
    due_s = request.deadline_s + END_MARGIN_S
    ended_s = request.ended_s if request.ended_s is not None else history.ended_s
    name = f"request {request.id}"
    judged["requests of clients"] += bool(request.how) or ended_s > due_s
    if ended_s > due_s and request.how != CANCELLED:
        how = f"ended at {ended_s:.3f} s" if request.how else f"had no end when the run was over, at {ended_s:.3f} s"
        yield Violation(ENDS, request.deadline_s, f"{name} had to end by {request.deadline_s:.3f} s, and {how}")
    if request.how == ERROR:
        allowed = (request.status, request.code) in ALLOWED_ERRORS
        if not request.code and (ended_s >= request.deadline_s or (request.tries and request.tries[-1].cut)):
            # The client had read the status, and not yet the reason, when its time or the connection was over.
            allowed = any(request.status == status for status, _ in ALLOWED_ERRORS)
        if request.status in (0, 200):
            allowed = request.code in ALLOWED_IN_STREAM
        allowed = allowed and _has_reason(history, request)
        if not allowed:
            yield Violation(ENDS, ended_s, f"{name} ended in error {request.status or 'event'} {request.code!r}")
        elif request.status not in (0, 200) and request.events and not _resumed(request):
            yield Violation(ENDS, ended_s, f"{name} got error {request.status} {request.code!r} behind its first token")
    elif request.how not in (COMPLETE, UNREACHED, CANCELLED, ""):
        yield Violation(ENDS, ended_s, f"{name} ended in a way that is none: {request.how!r}")


def _has_reason(history: History, request: Request) -> bool:
    """Whether somebody cancelled it, or it belongs to another one, where it was ended for that; or whether its client
    went on from the same place twice, where another gateway took it.
    """
    if request.code == TAKEN_OVER:
        resumed = [sent.resumes for sent in request.tries if sent.resumes]
        return len(resumed) > len(set(resumed))
    if request.code == "request_cancelled":
        return any(one.request == request.id for one in history.cancellations)
    return request.code != "parent_cancelled" or request.parent >= 0


def _exchanges(history: History, judged: Judged) -> Iterator[Violation]:
    gateways = {process.pid: process for process in history.processes if process.role == GATEWAY}
    for exchange in history.exchanges:
        gateway = gateways[exchange.pid]
        due_s = _not_frozen(gateway, exchange.due_s, history.ended_s) + END_MARGIN_S
        ended_s = min(exchange.ended_s or history.ended_s, gateway.ended_s or history.ended_s)
        judged["requests at gateways"] += exchange.ended_s is not None or ended_s > due_s
        if ended_s > due_s:
            message = (
                f"{gateway.name} is busy until {ended_s:.3f} s with a request that it got at {exchange.began_s:.3f} s"
            )
            yield Violation(ENDS, exchange.due_s, f"{message} and had to end by {exchange.due_s:.3f} s")


def _not_frozen(process: Process, due_s: float, run_ended_s: float) -> float:
    """When the process can do what was due at `due_s`: once it stands still no more."""
    for from_s, until_s in process.frozen:
        if from_s <= due_s < (until_s or run_ended_s):
            return until_s or run_ended_s
    return due_s


def _resumed(request: Request) -> bool:
    return any(sent.resumes for sent in request.tries)


def error_counts(history: History) -> dict[str, int]:
    """How many requests ended in which error, or without reaching a gateway: no violations, but worth a look."""
    codes = [request.code for request in history.requests if request.how == ERROR]
    unreached = [UNREACHED for request in history.requests if request.how == UNREACHED]
    return dict(sorted(Counter(codes + unreached).items()))
