"""One stream of tokens, exactly once and in order, over as many attempts as it takes.

A `Stream` is sans-I/O: the gateway tells it what replicas sent, it keeps the accepted tokens and yields what
the client gets. The next token accepted is always the one at position `len(accepted)`; a repeated one is
dropped, one from the future is a violation by the replica. Frames of an older attempt never get here: the
wire's attempt numbers are never used twice.

Text is held back at token granularity while it may be the beginning of a stop string, so that what a client
has got always ends at a token's end and can be resumed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from holdfast.core.errors import PeerViolation, RequestRefused
from holdfast.core.requests import EngineRequest, TokenLogprob

FINISH_STOP = "stop"
FINISH_LENGTH = "length"

BARREN_ATTEMPTS_MAX = 3
"""So many attempts in a row break off without a token before the request itself is taken for what breaks them."""


class StreamStatus(StrEnum):
    """WAITING for an attempt, RUNNING on one, or at one of the two ends."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"


_LEGAL = {
    StreamStatus.WAITING: {StreamStatus.RUNNING, StreamStatus.FINISHED, StreamStatus.FAILED},
    StreamStatus.RUNNING: {StreamStatus.WAITING, StreamStatus.FINISHED, StreamStatus.FAILED},
    StreamStatus.FINISHED: set[StreamStatus](),
    StreamStatus.FAILED: set[StreamStatus](),
}


class Piece(msgspec.Struct, frozen=True):
    """Text that one token added. `count` is how many of the stream's tokens are delivered with it."""

    count: int
    text: str
    logprob: TokenLogprob | None


class Stream:
    """The state of one stream. Every method is a fact told to it; `take` gives what is ready for the client."""

    __slots__ = (
        "_barren",
        "_begun_at",
        "_held",
        "_held_text",
        "_ready",
        "_stops",
        "accepted",
        "attempts",
        "delivered",
        "failure",
        "finish_reason",
        "migrations_max",
        "prompt_tokens",
        "request",
        "status",
    )

    def __init__(
        self, request: EngineRequest, stops: Sequence[str] = (), migrations_max: int = 3, delivered: int = 0
    ) -> None:
        """`delivered` tokens the client has from another gateway: they are drawn again, but not handed out again."""
        self.request = request
        self.delivered = delivered
        self.accepted: list[int] = list(request.accepted)
        self.attempts = 0
        self.migrations_max = migrations_max
        self.prompt_tokens: int | None = None
        self.status = StreamStatus.WAITING
        self.finish_reason: str | None = None
        self.failure: Exception | None = None
        self._barren = 0
        self._begun_at: int | None = None
        self._stops = tuple(stops)
        self._ready: list[Piece] = []
        self._held: list[Piece] = []
        self._held_text = ""

    @property
    def suspect(self) -> bool:
        """Whether its last attempt broke off without a token: it may be what breaks them."""
        return self._barren > 0

    @property
    def proven(self) -> bool:
        """Whether the attempt under way has brought a token."""
        return self._begun_at is not None and len(self.accepted) > self._begun_at

    @property
    def admitted_now(self) -> bool:
        """Whether the engine of the attempt under way took it in."""
        return self._begun_at is not None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in (StreamStatus.FINISHED, StreamStatus.FAILED)

    @property
    def unsent(self) -> int:
        """How many pieces wait to be taken."""
        return len(self._ready)

    def start(self) -> EngineRequest:
        """Begin an attempt; the request that goes on after the tokens accepted so far."""
        self._become(StreamStatus.RUNNING)
        self.attempts += 1
        self._begun_at = None
        return self.again()

    def again(self) -> EngineRequest:
        """The request that goes on after the tokens accepted so far."""
        if not self.accepted:
            return self.request
        return msgspec.structs.replace(self.request, accepted=list(self.accepted))

    def admitted(self, prompt_tokens: int) -> None:
        """The engine took it in. The first attempt's count is the client's; later ones tell nothing new."""
        self._begun_at = len(self.accepted)
        if self.prompt_tokens is None:
            self.prompt_tokens = prompt_tokens

    def token(self, position: int, token: int, text: str, logprob: TokenLogprob | None = None) -> None:
        """A token came. Raises `PeerViolation` if one before it never did."""
        accepted = self.accepted
        if position != len(accepted):
            if position < len(accepted) or self.status is not StreamStatus.RUNNING:
                return
            raise PeerViolation(f"token {position} came while {len(accepted)} was due")
        if self.status is not StreamStatus.RUNNING:
            return
        accepted.append(token)
        piece = Piece(position + 1, text, logprob)
        if self._stops:
            self._hold(piece)
        else:
            self._ready.append(piece)

    def finished(self, reason: str) -> None:
        """The engine has no more tokens for it."""
        if self.status is StreamStatus.RUNNING:
            self._release(len(self._held))
            self.finish_reason = reason
            self._become(StreamStatus.FINISHED)

    def stop(self) -> None:
        """End it well with what it has, unless it has ended: nobody wants more."""
        if not self.ended:
            self._release(len(self._held))
            self.finish_reason = FINISH_STOP
            self._become(StreamStatus.FINISHED)

    def lost(self, cause: Exception) -> None:
        """The attempt broke off: wait for another, or fail at the limit.

        A request that an engine took in and then died of, again and again without a token, is not handed on to
        kill the next one too. An attempt that no engine took in tells nothing of the request.
        """
        if self.status is not StreamStatus.RUNNING:
            return
        if self._begun_at is not None:
            self._barren = 0 if self.proven else self._barren + 1
        if self.attempts > self.migrations_max or self._barren >= BARREN_ATTEMPTS_MAX:
            self.fail(cause)
        else:
            self._become(StreamStatus.WAITING)

    def postponed(self) -> None:
        """The replica had no room: wait for another attempt, which does not count as one more."""
        if self.status is StreamStatus.RUNNING:
            self.attempts -= 1
            self._become(StreamStatus.WAITING)

    def refused(self, refusal: RequestRefused) -> None:
        """No engine will take this request."""
        self.fail(refusal)

    def fail(self, cause: Exception) -> None:
        """End it with an error, unless it has ended.

        Text that may begin a stop string is not handed out: whoever takes the stream up after what the client has
        may find the stop string, and that text should then not have been there.
        """
        if not self.ended:
            self._held, self._held_text = [], ""
            self.failure = cause
            self._become(StreamStatus.FAILED)

    def take(self) -> list[Piece]:
        """What became ready for the client since the last call."""
        ready, self._ready = self._ready, []
        if self.delivered and ready and ready[0].count <= self.delivered:
            return [piece for piece in ready if piece.count > self.delivered]
        return ready

    def _become(self, status: StreamStatus) -> None:
        assert status in _LEGAL[self.status], f"{self.status} to {status}"
        self.status = status

    def _hold(self, piece: Piece) -> None:
        """Let out all text that can't be part of a stop string any more; end at the first that is complete."""
        self._held.append(piece)
        self._held_text += piece.text
        found = min(
            (at for stop in self._stops if (at := self._held_text.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            self._cut(found)
            return
        self._release_text(len(self._held_text) - self._possible_stop())

    def _possible_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        text = self._held_text
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def _release_text(self, characters: int) -> None:
        """Release the tokens whose text ends within the first `characters` of what is held."""
        end = 0
        count = 0
        for piece in self._held:
            end += len(piece.text)
            if end > characters:
                break
            count += 1
        self._release(count)

    def _release(self, count: int) -> None:
        released = self._held[:count]
        self._ready += released
        self._held = self._held[count:]
        self._held_text = self._held_text[sum(len(piece.text) for piece in released) :]

    def _cut(self, characters: int) -> None:
        """A stop string begins after `characters` of the held text: what is before it goes out, and that's all."""
        for piece in self._held:
            text = piece.text[:characters]
            characters -= len(text)
            self._ready.append(Piece(piece.count, text, piece.logprob))
        self._held = []
        self._held_text = ""
        self.finish_reason = FINISH_STOP
        self._become(StreamStatus.FINISHED)
