"""A simulated ephemeral pull consumer: in the memory of one server, without acknowledgements.

Pulls take messages in turn, end when they got what they asked for, when they expire, and when a message is larger than
what they have room for. While there is nothing to deliver the first of them gets idle heartbeats (nats-server sends
them to each; one is enough to tell that the consumer lives).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from holdfast.simulations.nats import faults
from holdfast.simulations.nats.store import NANOSECONDS, Entry, Stream
from holdfast.simulations.world.scheduler import Handle

if TYPE_CHECKING:
    from holdfast.simulations.nats.server import Server

PULLS_MAX = 512
"""As `max_waiting` of nats-server: a consumer keeps so many pulls, and refuses further ones."""

HEARTBEAT_MIN_S = 0.5
ROUNDING_S = 1e-6
"""A timer may be early by this much: clocks of processes begin at large numbers."""


class Sink(Protocol):
    """Where answers and deliveries go: a client's connection, here or at another server."""

    @property
    def open(self) -> bool: ...

    def send(self, inbox: str, subject: str, reply: str, data: bytes, headers: dict[str, str] | None) -> None: ...


class Pull(msgspec.Struct):
    """A request for messages."""

    sink: Sink
    inbox: str
    left: int
    bytes_left: int
    expires_s: float

    def status(self, status: str, text: str, *, pending: bool = False) -> None:
        """Tell its client how it stands."""
        headers = {"Status": status, "Description": text}
        if pending:
            headers |= {"Nats-Pending-Messages": str(self.left), "Nats-Pending-Bytes": str(self.bytes_left)}
        self.sink.send(self.inbox, self.inbox, "", b"", headers)


class Consumer:
    """One reader's place, at one server."""

    def __init__(self, server: Server, stream: Stream, name: str, config: dict[str, Any]) -> None:
        self.stream = stream
        self.name = name
        self.next = max(1, int(config["opt_start_seq"]))
        self.delivered = 0
        self.active_s = server.now_s
        self.inactive_s = config["inactive_threshold"] / NANOSECONDS
        self._server = server
        self._pulls: deque[Pull] = deque()
        self._heartbeat_s = HEARTBEAT_MIN_S
        self._timer: Handle | None = None
        self._held: Handle | None = None
        self._stalled_until_s = 0.0
        self._skips = 0

    # --- what clients ask -------------------------------------------------------------------------------

    def pull(self, sink: Sink, inbox: str, request: dict[str, Any]) -> None:
        """Take in a request for messages."""
        now_s = self._server.now_s
        pull = Pull(
            sink,
            inbox,
            int(request.get("batch", 1)),
            int(request.get("max_bytes", 0)),
            now_s + request.get("expires", 0) / NANOSECONDS,
        )
        if len(self._pulls) >= PULLS_MAX:
            pull.status("409", "Exceeded MaxWaiting")
            return
        self._heartbeat_s = max(HEARTBEAT_MIN_S, request.get("idle_heartbeat", 0) / NANOSECONDS)
        self._pulls.append(pull)
        self.active_s = now_s
        self.pump()
        self._watch()

    def delete(self) -> None:
        """The consumer is gone; who waits for it is told."""
        for pull in self._pulls:
            pull.status("409", "Consumer Deleted")
        self.close()

    def close(self) -> None:
        """No more of it."""
        self._pulls.clear()
        for timer in (self._timer, self._held):
            if timer is not None:
                timer.cancel()
        self._timer = self._held = None

    @property
    def waiting(self) -> int:
        """How many pulls wait for messages."""
        return len(self._pulls)

    # --- what goes wrong --------------------------------------------------------------------------------

    def end_pulls(self, *, told_pending: bool) -> int:
        """End the pulls that wait before their time; how many."""
        ended = len(self._pulls)
        while self._pulls:
            self._pulls.popleft().status("408", "Request Timeout", pending=told_pending)
        return ended

    def stall(self, for_s: float) -> None:
        """Say nothing for a while, not even heartbeats."""
        self._stalled_until_s = max(self._stalled_until_s, self._server.now_s + for_s)
        self._server.later(for_s, self.pump)

    def skip(self, count: int) -> None:
        """Lose the next deliveries on their way."""
        self._skips += count

    # --- delivering -------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Deliver what there is, unless that is held up."""
        if self._held is not None or not self._pulls or self.next > self._server.applied(self.stream):
            return
        window = self._server.strikes(faults.SLOW_DELIVERY)
        if window is None:
            self._deliver()
        else:
            self._held = self._server.later(window.held_up_s(self._server.now_s), self._release)

    def _release(self) -> None:
        self._held = None
        self._deliver()

    def _deliver(self) -> None:
        if self._server.now_s + ROUNDING_S < self._stalled_until_s:
            return
        last = self._server.applied(self.stream)
        pulls = self._pulls
        while pulls and self.next <= last:
            entry = self.stream.get(self.next)
            if entry is None:
                self.next += 1
                continue
            pull = pulls.popleft()
            if not self._fits(pull, entry):
                continue
            self.next += 1
            self.delivered += 1
            self._send(pull, entry, last)
            if pull.left > 0:
                pulls.append(pull)
        self.active_s = self._server.now_s

    def _fits(self, pull: Pull, entry: Entry) -> bool:
        """Whether the pull takes the entry. If not, it is over."""
        if not pull.sink.open:
            return False
        if 0 < pull.bytes_left < entry.size:
            pull.status("409", "Message Size Exceeds MaxBytes", pending=True)
            return False
        pull.left -= 1
        pull.bytes_left -= entry.size
        return True

    def _send(self, pull: Pull, entry: Entry, last: int) -> None:
        if self._skips and self._server.group.may_skip(entry.sequence):
            self._skips -= 1
            return
        stamp = int(entry.at_s * NANOSECONDS)
        counts = f"1.{entry.sequence}.{self.delivered}.{stamp}.{last - entry.sequence}"
        reply = f"$JS.ACK.{self.stream.name}.{self.name}.{counts}"
        pull.sink.send(pull.inbox, entry.subject, reply, entry.data, entry.headers)

    # --- heartbeats and ends ----------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._timer is None and self._pulls:
            due_s = min(self.active_s + self._heartbeat_s, self._pulls[0].expires_s)
            due_s = max(due_s, self._stalled_until_s, self._server.now_s)
            self._timer = self._server.later(due_s - self._server.now_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._server.now_s + ROUNDING_S
        if now_s < self._stalled_until_s:
            return self._watch()
        for _ in range(len(self._pulls)):
            pull = self._pulls.popleft()
            if not pull.sink.open:
                continue
            if pull.expires_s > now_s:
                self._pulls.append(pull)
            else:
                pull.status("408", "Request Timeout", pending=True)
        if self._pulls and now_s >= self.active_s + self._heartbeat_s:
            self.active_s = now_s
            self._beat(self._pulls[0])
        self._watch()

    def _beat(self, pull: Pull) -> None:
        headers = {
            "Status": "100",
            "Description": "Idle Heartbeat",
            "Nats-Last-Consumer": str(self.delivered),
            "Nats-Last-Stream": str(self.next - 1),
        }
        pull.sink.send(pull.inbox, pull.inbox, "", b"", headers)
