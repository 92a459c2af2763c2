"""The streams that a replica holds: for whom they run, what they have brought, and what is kept when nobody listens.

A stream with a name is not lost with its gateway. It goes on, its tokens are kept for `KEEP_S`, and the gateway at
which its client turns up attaches to it. Finished streams are kept packed, as bytes: a thousand of them are no work
for the garbage collector, and what they take is known.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

import msgspec

from holdfast.actors.engines.base import StepOutput
from holdfast.actors.wire import Connection
from holdfast.core.frames import TAKEN_OVER, Admitted, Refused, Start, Step
from holdfast.core.requests import TokenLogprob

KEEP_S = 600.0
"""How long a stream whose gateway is gone goes on, and how long a finished one is kept (seconds)."""

CROWDED_KEEP_S = 15.0
"""How long one without a gateway goes on while others wait for room in the engine (seconds): longer than a client
takes to come back with backoff. Gateways that end again and again must not fill the engine for nobody."""

OVERTIME_S = 1.0
"""A gateway ends a stream when its request's time is over. One that does not is taken for dead so much later."""

KEPT_BYTES_MAX = 64 * 1024 * 1024
KEPT_OVERHEAD_BYTES = 256
"""Finished streams take up to so many bytes; each counts this much more than its packed tokens."""

REPLAY_TOKENS_MAX = 1024
"""Tokens in one frame when a stream is handed over."""

_encode = msgspec.msgpack.Encoder().encode


class Tokens(msgspec.Struct, array_like=True):
    """What a stream has brought on this replica, after `accepted`, which an earlier attempt did."""

    ordinal: int
    prompt_tokens: int
    accepted: list[int]
    drawn: list[tuple[int, str]]
    logprobs: list[TokenLogprob | None] | None
    reason: str = ""

    def replay(self, attempt: int) -> Iterator[Step]:
        """All of it as frames; the texts of accepted tokens are not known here, and empty."""
        tokens = self.accepted + [token for token, _text in self.drawn]
        texts = [""] * len(self.accepted) + [text for _token, text in self.drawn]
        unknown: list[TokenLogprob | None] = [None] * len(self.accepted)
        logprobs = None if self.logprobs is None else unknown + self.logprobs
        for begin in range(0, len(tokens), REPLAY_TOKENS_MAX):
            end = min(begin + REPLAY_TOKENS_MAX, len(tokens))
            part = None if logprobs is None else logprobs[begin:end]
            positions = list(range(begin, end))
            yield Step([attempt] * (end - begin), positions, tokens[begin:end], texts[begin:end], part, [])
        if self.reason:
            yield Step([], [], [], [], None, [(attempt, self.reason)])


_decode = msgspec.msgpack.Decoder(Tokens).decode


class _Packed(msgspec.Struct, frozen=True):
    """A finished stream. `gateway` had it last, as its attempt `ordinal`."""

    until_s: float
    gateway: str
    ordinal: int
    tokens: bytes


class Shelf:
    """Finished streams by name, the oldest first to go. Times are monotonic seconds."""

    def __init__(self, bytes_max: int = KEPT_BYTES_MAX, keep_s: float = KEEP_S) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._keep_s = keep_s
        self._packed: OrderedDict[str, _Packed] = OrderedDict()

    def __len__(self) -> int:
        return len(self._packed)

    def put(self, name: str, gateway: str, tokens: Tokens, now_s: float) -> None:
        """Keep it, for as long as there is room and time."""
        self.drop(name)
        packed = _Packed(now_s + self._keep_s, gateway, tokens.ordinal, _encode(tokens))
        self._packed[name] = packed
        self.bytes += len(packed.tokens) + KEPT_OVERHEAD_BYTES
        while self.bytes > self._bytes_max:
            self.drop(next(iter(self._packed)))

    def get(self, name: str) -> Tokens | None:
        """What was kept under the name."""
        kept = self._packed.get(name)
        return None if kept is None else _decode(kept.tokens)

    def drop(self, name: str) -> None:
        """Keep it no longer, if it is kept."""
        kept = self._packed.pop(name, None)
        if kept is not None:
            self.bytes -= len(kept.tokens) + KEPT_OVERHEAD_BYTES

    def fence(self, name: str, gateway: str, ordinal: int) -> None:
        """Drop it if it is this gateway's, and no later attempt than this."""
        kept = self._packed.get(name)
        if kept is not None and kept.gateway == gateway and kept.ordinal <= ordinal:
            self.drop(name)

    def expire(self, now_s: float) -> None:
        """Drop what has been kept for long enough."""
        while self._packed and next(iter(self._packed.values())).until_s <= now_s:
            self.drop(next(iter(self._packed)))


class Peer:
    """A gateway's connection: its attempts by number, and the last of its pings."""

    __slots__ = ("attempts", "connection", "gateway", "heard")

    def __init__(self, connection: Connection, gateway: str) -> None:
        self.connection = connection
        self.gateway = gateway
        self.attempts: dict[int, Held] = {}
        self.heard = 0


class Held:
    """A stream that runs. `peer` is None while it is detached, since `detached_s`; `gateway` had it last.

    `record` keeps a token and its text, if the stream has a name. At `until_s` its request's time is over.
    """

    __slots__ = ("attempt", "detached_s", "gateway", "key", "name", "peer", "record", "tokens", "until_s")

    def __init__(self, key: int, name: str, peer: Peer, attempt: int, tokens: Tokens, until_s: float) -> None:
        self.key = key
        self.name = name
        self.peer: Peer | None = peer
        self.gateway = peer.gateway
        self.attempt = attempt
        self.tokens = tokens
        self.record: Callable[[tuple[int, str]], None] = tokens.drawn.append if name else _ignore
        self.detached_s = 0.0
        self.until_s = until_s

    def is_late(self, now_s: float, detached_since_s: float) -> bool:
        """Whether it goes on for nobody: its request is over, or nobody has asked for it since that time."""
        if self.peer is None:
            return self.detached_s <= detached_since_s or self.until_s <= now_s
        return self.until_s + OVERTIME_S <= now_s


def until_s(timeout_s: float, now_s: float) -> float:
    """When a request is over that may take so long from now (seconds; 0 is no limit)."""
    return now_s + timeout_s if timeout_s > 0 else math.inf


def _ignore(_drawn: tuple[int, str]) -> None:
    """Nobody can ask for a stream without a name."""


class _Lineup(msgspec.Struct, frozen=True):
    """The streams of a step, looked up once for all steps that have the same ones."""

    keys: list[int]
    streams: list[Held]
    attempts: list[int]
    records: list[Callable[[tuple[int, str]], None]]


class HeldStreams:
    """All streams of one replica, by the engine's key. The engine drops what is not in `by_key` any more."""

    def __init__(self, shelf: Shelf | None = None, keep_s: float = KEEP_S) -> None:
        self.by_key: dict[int, Held] = {}
        self.shelf = shelf or Shelf(keep_s=keep_s)
        self._keep_s = keep_s
        self._names: dict[str, Held] = {}
        self._detached = 0
        self._with_logprobs = 0
        self._lineup = _Lineup([], [], [], [])

    def begin(self, key: int, peer: Peer, start: Start, prompt_tokens: int, until_s: float = math.inf) -> bool:
        """The engine took a stream in; whether it is kept. Another copy of the same name is worth nothing any more.

        Unless that one is a later attempt that somebody waits for: this one was held up on the way, and is refused.
        Whoever waits for a copy that is replaced is told, for nothing more will come.
        """
        other = self._names.get(start.stream)
        if other is not None and other.peer is not None:
            if other.tokens.ordinal > start.ordinal:
                _tell_taken_over(peer, start.attempt)
                return False
            _tell_taken_over(other.peer, other.attempt)
        if start.stream:
            self.forget(start.stream)
        request = start.request
        logprobs: list[TokenLogprob | None] | None = [] if request.logprobs >= 0 else None
        tokens = Tokens(start.ordinal, prompt_tokens, list(request.accepted), [], logprobs)
        held = Held(key, start.stream, peer, start.attempt, tokens, until_s)
        self.by_key[key] = peer.attempts[start.attempt] = held
        self._with_logprobs += logprobs is not None
        if start.stream:
            self._names[start.stream] = held
        return True

    def stop(self, peer: Peer, attempt: int) -> bool:
        """Nobody wants more of it; whether it was there."""
        held = peer.attempts.get(attempt)
        if held is not None:
            self._remove(held)
        return held is not None

    def fence(self, peer: Peer, attempts: list[int], streams: list[tuple[str, int]]) -> int:
        """Forget what went on elsewhere, unless another gateway has it by now; how many of them were running."""
        running = sum(self.stop(peer, attempt) for attempt in attempts)
        for name, ordinal in streams:
            held = self._names.get(name)
            if held is None:
                self.shelf.fence(name, peer.gateway, ordinal)
            elif held.gateway == peer.gateway and held.tokens.ordinal <= ordinal:
                self._remove(held)
                running += 1
        return running

    def forget(self, name: str) -> None:
        """Drop the stream of that name, running or finished."""
        self.shelf.drop(name)
        held = self._names.get(name)
        if held is not None:
            self._remove(held)

    def find(self, name: str) -> Tokens | None:
        """What is held under the name."""
        held = self._names.get(name)
        return self.shelf.get(name) if held is None else held.tokens

    def attach(self, peer: Peer, attempt: int, name: str, ordinal: int, until_s: float = math.inf) -> bool:
        """Send all that is held of the stream, and go on with it for this gateway; whether there is one.

        It is attempt `ordinal` then: a gateway that was slow to notice that its client has gone has an earlier one.
        """
        tokens = self.find(name)
        if tokens is None:
            return False
        held = self._names.get(name)
        if held is not None:
            if held.peer is not None and tokens.ordinal > ordinal:
                _tell_taken_over(peer, attempt)
                return True
            tokens.ordinal = max(tokens.ordinal, ordinal)
            self._hand_over(held, peer, attempt)
            held.until_s = until_s
        peer.connection.send(Admitted(attempt, tokens.prompt_tokens))
        for frame in tokens.replay(attempt):
            peer.connection.send(frame)
        return True

    def release(self, peer: Peer, attempt: int, now_s: float) -> bool:
        """This client of the gateway is about to go elsewhere; as `lost`, and whether the stream goes on."""
        held = peer.attempts.get(attempt)
        if held is None or not self._detach(held, now_s):
            return False
        del peer.attempts[attempt]
        self._changed()
        return True

    def _detach(self, held: Held, now_s: float) -> bool:
        if not held.name or not (held.tokens.drawn or held.tokens.accepted):
            return False
        held.peer = None
        held.detached_s = now_s
        self._detached += 1
        return True

    def drop_detached(self) -> None:
        """Forget the streams that no gateway has."""
        for held in list(self.by_key.values()):
            if held.peer is None:
                self._remove(held)

    def lost(self, peer: Peer, now_s: float) -> None:
        """The gateway is gone. What has a name, and tokens by which a client may know it, goes on."""
        for held in list(peer.attempts.values()):
            if not self._detach(held, now_s):
                self._remove(held)
        peer.attempts.clear()
        self._changed()

    def expire(self, now_s: float, *, crowded: bool) -> bool:
        """Drop what nobody asked for in time, which is shorter when `crowded`, and what is beyond its request's time.

        Whether the engine has any to drop.
        """
        self.shelf.expire(now_s)
        since_s = now_s - (min(self._keep_s, CROWDED_KEEP_S) if crowded else self._keep_s)
        late = [held for held in self.by_key.values() if held.is_late(now_s, since_s)]
        for held in late:
            self._remove(held)
        return bool(late)

    def deliver(self, output: StepOutput, peers: int) -> dict[Connection, Step]:
        """Keep a step's tokens; the step as one frame for each gateway that has streams in it.

        This is what every token costs here. Most steps have the same streams as the one before, all of one gateway.
        """
        lineup = self._line_up(output.keys)
        if lineup is None:
            self._record_known(output)
            return self._split(output)
        for record, drawn in zip(lineup.records, zip(output.tokens, output.texts, strict=True), strict=True):
            record(drawn)
        if self._with_logprobs:
            _keep_logprobs(lineup.streams, output)
        if peers == 1 and not self._detached:
            return self._whole(lineup, output)
        return self._split(output)

    def finish(self, finished: list[tuple[int, str]], now_s: float) -> None:
        """These have had their last token: keep what has a name."""
        for key, reason in finished:
            held = self.by_key.get(key)
            if held is not None:
                self._remove(held)
                if held.name:
                    held.tokens.reason = reason
                    self.shelf.put(held.name, held.gateway, held.tokens, now_s)

    def _hand_over(self, held: Held, peer: Peer, attempt: int) -> None:
        """Another gateway has it from now on, and the one before, if it is still there, is told."""
        if held.peer is None:
            self._detached -= 1
        else:
            del held.peer.attempts[held.attempt]
            _tell_taken_over(held.peer, held.attempt)
        held.peer, held.attempt, held.gateway = peer, attempt, peer.gateway
        peer.attempts[attempt] = held
        self._changed()

    def _remove(self, held: Held) -> None:
        del self.by_key[held.key]
        self._changed()
        self._with_logprobs -= held.tokens.logprobs is not None
        if held.peer is None:
            self._detached -= 1
        else:
            held.peer.attempts.pop(held.attempt, None)
        if held.name:
            del self._names[held.name]

    def _changed(self) -> None:
        self._lineup = _Lineup([], [], [], [])

    def _line_up(self, keys: list[int]) -> _Lineup | None:
        """The streams of these keys; None if one was dropped while the engine made the step."""
        lineup = self._lineup
        if lineup.keys != keys:
            try:
                streams = [self.by_key[key] for key in keys]
            except KeyError:
                return None
            attempts = [held.attempt for held in streams]
            lineup = self._lineup = _Lineup(keys, streams, attempts, [held.record for held in streams])
        return lineup

    def _record_known(self, output: StepOutput) -> None:
        for at, key in enumerate(output.keys):
            held = self.by_key.get(key)
            if held is not None:
                held.record((output.tokens[at], output.texts[at]))
                if held.tokens.logprobs is not None:
                    held.tokens.logprobs.append(output.logprobs[at] if output.logprobs is not None else None)

    def _whole(self, lineup: _Lineup, output: StepOutput) -> dict[Connection, Step]:
        """The step for the only gateway there is, without copies."""
        known = [(held, reason) for key, reason in output.finished if (held := self.by_key.get(key)) is not None]
        finished = [(held.attempt, reason) for held, reason in known]
        first = lineup.streams[0] if lineup.streams else known[0][0] if known else None
        if first is None or first.peer is None:
            return {}
        frame = Step(lineup.attempts, output.positions, output.tokens, output.texts, output.logprobs, finished)
        return {first.peer.connection: frame}

    def _split(self, output: StepOutput) -> dict[Connection, Step]:
        frames: dict[Connection, Step] = {}

        def frame_for(peer: Peer) -> Step:
            logprobs: list[TokenLogprob | None] | None = None if output.logprobs is None else []
            return frames.setdefault(peer.connection, Step([], [], [], [], logprobs, []))

        for at, key in enumerate(output.keys):
            held = self.by_key.get(key)
            if held is not None and held.peer is not None:
                frame = frame_for(held.peer)
                frame.attempts.append(held.attempt)
                frame.positions.append(output.positions[at])
                frame.tokens.append(output.tokens[at])
                frame.texts.append(output.texts[at])
                if frame.logprobs is not None and output.logprobs is not None:
                    frame.logprobs.append(output.logprobs[at])
        for key, reason in output.finished:
            held = self.by_key.get(key)
            if held is not None and held.peer is not None:
                frame_for(held.peer).finished.append((held.attempt, reason))
        return frames


def _tell_taken_over(peer: Peer, attempt: int) -> None:
    message = "Another gateway went on with this stream."
    peer.connection.send(Refused(attempt, TAKEN_OVER, message, None, False))


def _keep_logprobs(streams: list[Held], output: StepOutput) -> None:
    """Keep the log probabilities of those streams that asked for some, one for each of their tokens."""
    for held, logprob in zip(streams, output.logprobs or itertools.repeat(None, len(streams)), strict=True):
        if held.tokens.logprobs is not None:
            held.tokens.logprobs.append(logprob)
