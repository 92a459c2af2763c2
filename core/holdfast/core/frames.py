"""The wire between gateway and replica: frames of msgpack behind a four-byte length (big-endian).

The gateway dials. It says `Hello`, the replica answers `Welcome` or closes; from then on the gateway sends `Start`,
`Stop`, `Fence`, `Release` and `Ping`, the replica `Admitted`, `Refused`, `Step` and `Heartbeat`. Attempts are numbered
by the gateway, per connection, and a number is never used twice: that is what fences an older attempt's late frames.

A stream that has a name outlives its connection: the replica goes on with it, and keeps its tokens. Any gateway may
ask for it (`Find`, `Found`) and take it over (`Attach`), which is answered like a `Start`, with all tokens so far.

One `Step` carries a whole engine step's tokens for this gateway, as parallel lists, because work per token
costs ten times what work per frame does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from holdfast.core.barren import Barren
from holdfast.core.decoding import UNDECODABLE
from holdfast.core.errors import FrameError
from holdfast.core.pace import Pace
from holdfast.core.requests import EngineInfo, EngineLoad, EngineRequest, TokenLogprob

PROTOCOL_VERSION = 4
FRAME_BYTES_MAX = 32 * 1024 * 1024
"""A frame larger than this is a violation: no request body is larger, and no step comes near."""

FIRST_FRAME_BYTES_MAX = 64 * 1024
"""Until the other end has introduced itself, no more than this is taken from it."""

UNKNOWN_STREAM = "unknown_stream"
"""The code of a refusal: the replica does not hold the stream that was to be attached to."""

TRACE_STATE_CHARS_MAX = 512
"""As much of a `tracestate` as W3C Trace Context has everybody pass on at least."""

TAKEN_OVER = "taken_over"
"""The code of a refusal: another gateway attached to the stream."""

_LENGTH = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all frames; the first element of each is its name."""


class Hello(Frame, frozen=True):
    """The gateway introduces itself and says whom it means to reach.

    A `probe` is no gateway: its streams are nobody's requests, and it gets a `Pulse` for each of its pings instead of
    heartbeats.
    """

    protocol: int
    cluster: str
    gateway: str
    replica: str
    probe: bool = False


class Start(Frame, frozen=True):
    """Generate a stream's tokens under this attempt number.

    `stream` is the name by which it can be found and attached to; one without a name ends with its connection.
    `ordinal` counts the stream's attempts from 1, over all gateways: of two copies the higher one is right.
    `trace` is the attempt's place in a trace (W3C `traceparent`), empty if nobody traces it; `trace_state` what others
    noted along the way (W3C `tracestate`), at most `TRACE_STATE_CHARS_MAX` of it.
    After `timeout_s` seconds nobody waits for the stream any more, whatever became of its gateway; 0 is no limit.
    """

    attempt: int
    request: EngineRequest
    stream: str = ""
    ordinal: int = 1
    trace: str = ""
    timeout_s: float = 0.0
    trace_state: str = ""


class Stop(Frame, frozen=True):
    """Forget the attempt and free what it holds: nobody wants more. One that has ended already is no error."""

    attempt: int


class Fence(Frame, frozen=True):
    """These went on elsewhere: forget them, whatever became of them here.

    `attempts` are this connection's. `streams`, by name and the highest ordinal that is fenced, may have been begun
    over an earlier connection of this gateway.
    """

    attempts: list[int]
    streams: list[tuple[str, int]]


class Release(Frame, frozen=True):
    """The attempt's client goes on at another gateway: keep it as if this connection were lost."""

    attempt: int


class Find(Frame, frozen=True):
    """Does the replica hold this stream? `question` comes back in the answer."""

    question: int
    stream: str


class Attach(Frame, frozen=True):
    """Send all tokens of a stream that the replica holds, and go on with it, for this gateway alone.

    It is the stream's attempt `ordinal` from now on, and `timeout_s` is its time, as in `Start`.
    """

    attempt: int
    stream: str
    ordinal: int
    timeout_s: float = 0.0


class Ping(Frame, frozen=True):
    """Sent every so often, with a rising number, which the replica's heartbeats give back."""

    number: int


class Welcome(Frame, frozen=True):
    """The replica answers a `Hello` that was meant for it."""

    protocol: int
    replica: str
    info: EngineInfo


class Admitted(Frame, frozen=True):
    """The engine took the attempt in; the prompt's length in tokens."""

    attempt: int
    prompt_tokens: int


class Refused(Frame, frozen=True):
    """The attempt ends without more tokens. `retry`: another replica may well take it."""

    attempt: int
    code: str
    message: str
    param: str | None
    retry: bool


class Found(Frame, frozen=True):
    """The answer to `Find`: the ordinal of the attempt that is held here, 0 for none.

    Of its first `base` tokens, which an earlier attempt made, the replica knows the ids but not the texts.
    """

    question: int
    ordinal: int
    base: int


class Step(Frame, frozen=True):
    """Tokens: attempt `attempts[i]` got `tokens[i]` with `texts[i]` at its stream's `positions[i]`.

    `finished` are attempts that end with this step, and why.
    """

    attempts: list[int]
    positions: list[int]
    tokens: list[int]
    texts: list[str]
    logprobs: list[TokenLogprob | None] | None
    finished: list[tuple[int, str]]


class Heartbeat(Frame, frozen=True):
    """Sent every so often: alive, and this busy. `draining`: send nothing new, it is about to end. `dismissed`: take
    the streams that are here elsewhere; they go on here until then, for a while.

    `heard` is the number of the last `Ping` that came: a gateway that is not heard can tell. `pace` is how fast streams
    are served here, of all gateways; `barren` whether nothing comes of the engine's steps.
    """

    load: EngineLoad
    draining: bool
    heard: int
    dismissed: bool = False
    pace: Pace = Pace()
    barren: Barren = Barren()


class Pulse(Frame, frozen=True):
    """The answer to a probe's `Ping` of this number: this busy, and so long (seconds) without a token for anybody.

    `barren` is how much of that the engine stepped for nothing.
    """

    number: int
    load: EngineLoad
    draining: bool
    idle_s: float
    barren: Barren = Barren()


FromGateway = Hello | Start | Stop | Fence | Release | Find | Attach | Ping
FromReplica = Welcome | Admitted | Refused | Found | Step | Heartbeat | Pulse

_ENCODER = msgspec.msgpack.Encoder()
_FROM_GATEWAY: msgspec.msgpack.Decoder[FromGateway] = msgspec.msgpack.Decoder(FromGateway)
_FROM_REPLICA: msgspec.msgpack.Decoder[FromReplica] = msgspec.msgpack.Decoder(FromReplica)


def encode(frame: Frame) -> bytes:
    """The frame with its length in front."""
    body = _ENCODER.encode(frame)
    return _LENGTH.pack(len(body)) + body


def decode_from_gateway(body: bytes) -> FromGateway:
    """A frame that a replica received. Raises `FrameError`."""
    try:
        return _FROM_GATEWAY.decode(body)
    except UNDECODABLE as error:
        raise FrameError(f"from a gateway: {error}") from error


def decode_from_replica(body: bytes) -> FromReplica:
    """A frame that a gateway received. Raises `FrameError`."""
    try:
        return _FROM_REPLICA.decode(body)
    except UNDECODABLE as error:
        raise FrameError(f"from a replica: {error}") from error


class FrameBuffer:
    """Cuts a byte stream into frame bodies. Keeps at most one incomplete frame, of at most `bytes_max`."""

    __slots__ = ("_buffer", "bytes_max")

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self.bytes_max = bytes_max

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that `data` completes. Raises `FrameError` on a length over `bytes_max`."""
        self._buffer += data
        start = 0
        available = len(self._buffer)
        try:
            while available - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > self.bytes_max:
                    raise FrameError(f"a frame of {length} bytes; at most {self.bytes_max} are allowed")
                end = start + _LENGTH.size + length
                if available < end:
                    return
                body = bytes(memoryview(self._buffer)[start + _LENGTH.size : end])
                start = end
                yield body
        finally:
            del self._buffer[:start]
