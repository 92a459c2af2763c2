"""The network between simulated hosts: connections that deliver in order, late, or not at all.

A connection is like TCP's: what is sent arrives once and in the order in which it was sent, as long as packets get
through at all. Where they don't, they wait, and when they do again all comes at once; after `GIVE_UP_S` both ends give
up. Connections don't wait for each other: what was sent later on another one may be there first. A process that is
killed resets its connections; a host that loses power says nothing, so that the other ends stay half-open until they
give up, or until the host is back and refuses what they send. Two processes of one host always reach each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from holdfast.simulations.world.scheduler import Handle

if TYPE_CHECKING:
    from holdfast.simulations.world.process import SimProcess
    from holdfast.simulations.world.world import Host, World

GIVE_UP_S = 11.0
"""As `actors.wire` sets keepalive: an end that hears nothing from the other one's kernel for so long is over."""

SYN_RETRY_S = 1.0
RESEND_MAX_S = 0.2
"""TCP tries again after a while: what was held up comes so much later than the network, at most (seconds)."""

LOCAL_S = (0.00002, 0.0001)
WIRE_S = (0.0001, 0.001)
"""One way takes between so long and so long (seconds), on one host and between two."""

APART_S = 1e-7
"""What one end sends arrives at least this much apart: in order."""

SLOW_PACKET_PART = 0.002
SLOW_PACKET_FACTOR = 30.0
"""Now and then a packet takes far longer."""

WINDOW_BYTES = 256 * 1024
"""So much may be under way, or wait in the receiver's kernel; the rest waits in the sender's buffer."""

OVERTAKING_PART = 0.5
"""How often a reset overtakes what was sent before it."""

FIRST_PORT = 20_000


class End:
    """One end of a connection, in one process. What comes before `attach` waits for it."""

    __slots__ = (
        "_deaf",
        "_inbox",
        "_lost",
        "_network",
        "_on_read",
        "_paused",
        "_receive",
        "arrives_s",
        "clogged",
        "half_open",
        "held",
        "number",
        "open",
        "other",
        "process",
        "unread_bytes",
    )

    def __init__(self, network: Network, process: SimProcess, number: int) -> None:
        self._network = network
        self.process = process
        self.number = number
        self.other: End = self
        self.open = True
        self.half_open = False
        self.clogged = 0
        self.unread_bytes = 0
        self.arrives_s = 0.0
        self.held: list[tuple[Callable[..., object], Any, int]] = []
        self._deaf = False
        self._paused = True
        self._receive: Callable[[Any], object] = _nobody
        self._lost: Callable[[Exception | None], object] = _nobody
        self._inbox: deque[tuple[bool, Any, int]] = deque()
        self._on_read: Callable[[], object] | None = None

    def attach(self, on_message: Callable[[Any], object], on_lost: Callable[[Exception | None], object]) -> None:
        """Take in what comes. `on_lost` is called once, unless this end is closed first."""
        self._receive, self._lost = on_message, on_lost
        self.resume()

    def send(self, message: Any, size: int = 64) -> None:
        """Send, as bytes of this size. Does nothing once the connection is over. Nobody may change it afterwards."""
        if self.open:
            self.unread_bytes += size
            self._network.transmit(self, self.other._arrive, message, size)

    def close(self) -> None:
        """Say no more. What was sent arrives before the other end hears of it."""
        if self.open:
            self._closed()
            self._network.transmit(self, self.other._arrive_end, None, 0)

    def abort(self) -> None:
        """Reset the connection, which may overtake what was sent."""
        if self.open:
            self._closed()
            if self._network.overtakes():
                self.other._deaf = True
            self._network.transmit(self, self.other._arrive_end, ConnectionResetError("reset by the other end"), 0)

    def vanish(self) -> None:
        """The host lost power: the other end hears nothing."""
        if self.open:
            self._closed()
            self.other.half_open = True

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        while self._inbox and not self._paused:
            self._take(*self._inbox.popleft())

    @property
    def waiting_bytes(self) -> int:
        """What does not fit into the kernels' buffers, and waits in this process."""
        return max(0, self.unread_bytes - WINDOW_BYTES)

    def when_read(self, callback: Callable[[], object]) -> None:
        """Call back once, in this process, when the other side has taken in so much that nothing waits here."""
        if self.waiting_bytes:
            self._on_read = callback
        else:
            callback()

    def lose(self, error: Exception) -> None:
        """This side's kernel gives the connection up."""
        self.process.call(self._arrive_end, error, 0)

    def _arrive(self, message: Any, size: int) -> None:
        if self._paused or self._inbox:
            self._inbox.append((True, message, size))
        else:
            self._take(True, message, size)

    def _arrive_end(self, error: Exception | None, _size: int) -> None:
        if self._inbox:
            self._inbox.append((False, error, 0))
        else:
            self._take(False, error, 0)

    def _take(self, is_message: bool, what: Any, size: int) -> None:
        other = self.other
        other.unread_bytes -= size
        if other._on_read is not None and not other.waiting_bytes:
            on_read, other._on_read = other._on_read, None
            other.process.call(on_read)
        if not self.open:
            return
        if is_message:
            if not self._deaf:
                self._receive(what)
        else:
            lost = self._lost
            self._closed()
            lost(what)

    def _closed(self) -> None:
        self.open = False
        # The other end may be kept for long; what a process that ended held is not to be kept by it.
        self._receive = self._lost = _nobody
        self._network.forget(self)


def _nobody(_what: object) -> None:
    """Nobody listens yet."""


class Listener:
    """A port on which a process takes connections."""

    def __init__(self, network: Network, process: SimProcess, port: int, accept: Callable[[End], object]) -> None:
        self._network = network
        self.process = process
        self.port = port
        self.accept = accept

    def close(self) -> None:
        """Take no more."""
        self._network.unlisten(self)


class Network:
    """All connections, and what holds them up."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._scheduler = world.scheduler
        self._rng = world.rng("network")
        self._random = self._rng.random
        self._listeners: dict[tuple[str, int], Listener] = {}
        self._blocked: dict[tuple[str, str], int] = {}
        self._delays_s: dict[tuple[str, str], list[float]] = {}
        self._ports: dict[str, int] = {}
        self._numbers = 0
        self._ends: dict[SimProcess, dict[int, End]] = {}
        self._holding: dict[int, End] = {}

    # --- for processes ----------------------------------------------------------------------------------

    async def connect(self, process: SimProcess, host: str, port: int) -> End:
        """A connection. Raises `ConnectionRefusedError`; waits for as long as nothing gets through: bound it."""
        waiter: asyncio.Future[End] = process.loop.create_future()
        self._syn(process, self._world.host(host), port, waiter)
        return await waiter

    def listen(self, process: SimProcess, port: int, accept: Callable[[End], object]) -> Listener:
        """Take connections; port 0 is any. `accept(end)` runs in the process and must `attach` to it."""
        host = process.host.name
        if port == 0:
            port = self._ports[host] = self._ports.get(host, FIRST_PORT) + 1
        if (host, port) in self._listeners:
            raise OSError(f"port {port} of {host} is taken")
        listener = self._listeners[host, port] = Listener(self, process, port, accept)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """As `Listener.close`."""
        key = (listener.process.host.name, listener.port)
        if self._listeners.get(key) is listener:
            del self._listeners[key]

    # --- what holds it up -------------------------------------------------------------------------------

    def block(self, source: str, target: str) -> None:
        """Let nothing through from one host to another, until `unblock` was called as often."""
        key = (source, target)
        self._blocked[key] = self._blocked.get(key, 0) + 1
        if self._blocked[key] == 1:
            for end in self.crossing(source, target):
                wait_s = GIVE_UP_S * (1 + 0.1 * self._random())
                self._scheduler.call_later(wait_s, self._give_up, end, self._scheduler.now_s)

    def unblock(self, source: str, target: str) -> None:
        """Let through what waits, and what comes."""
        key = (source, target)
        self._blocked[key] -= 1
        if not self._blocked[key]:
            del self._blocked[key]
            for end in sorted(self._holding.values(), key=lambda end: end.number):
                if (end.process.host.name, end.other.process.host.name) == key:
                    self._flush(end)

    def delay(self, source: str, target: str, extra_s: float) -> None:
        """Let all packets of this way take up to so much longer, each as drawn, until `undelay`. Delays add up."""
        self._delays_s.setdefault((source, target), []).append(extra_s)

    def undelay(self, source: str, target: str, extra_s: float) -> None:
        """Take back one such delay."""
        delays_s = self._delays_s[source, target]
        delays_s.remove(extra_s)
        if not delays_s:
            del self._delays_s[source, target]

    def passes(self, source: str, target: str) -> bool:
        """Whether packets get from one host to another now, as far as no single connection is clogged."""
        if source == target:
            return True
        hosts = self._world.hosts
        return hosts[source].up and hosts[target].up and (source, target) not in self._blocked

    def clog(self, end: End) -> None:
        """Hold up what this end sends, until `unclog` was called as often."""
        end.clogged += 1

    def unclog(self, end: End) -> None:
        end.clogged -= 1
        self._flush(end)

    def crossing(self, source: str, target: str) -> list[End]:
        """The ends on one host of connections with another, in the order in which they were made."""
        found = [
            end
            for process, ends in self._ends.items()
            if process.host.name == source
            for end in ends.values()
            if end.other.process.host.name == target
        ]
        return sorted(found, key=lambda end: end.number)

    def ends(self) -> list[End]:
        """All open ends between different hosts, in the order in which they were made."""
        found = [end for ends in self._ends.values() for end in ends.values() if _crosses(end)]
        return sorted(found, key=lambda end: end.number)

    def ends_of(self, process: SimProcess) -> list[End]:
        """The open ends of one process."""
        return list(self._ends.get(process, {}).values())

    # --- carrying ---------------------------------------------------------------------------------------

    def transmit(self, end: End, arrive: Callable[..., object], what: Any, size: int) -> None:
        """Carry something from an end to the other one."""
        target = end.other.process
        source_host, target_host = end.process.host, target.host
        if source_host is not target_host:
            if not (source_host.up and target_host.up):
                return
            if end.clogged or (source_host.name, target_host.name) in self._blocked:
                # An end that is closed meanwhile still says so once that gets through.
                end.held.append((arrive, what, size))
                self._holding[end.number] = end
                return
            if end.half_open:
                self._scheduler.call_later(2 * WIRE_S[1], end.lose, ConnectionResetError("nobody is there any more"))
                return
        at_s = self._scheduler.now_s + self._way_s(source_host, target_host)
        if at_s <= end.arrives_s:
            at_s = end.arrives_s + APART_S
        end.arrives_s = at_s
        self._scheduler.push(at_s, Handle(arrive, (what, size), None, target.lane))

    def overtakes(self) -> bool:
        """Whether a reset overtakes what was sent before it."""
        return self._random() < OVERTAKING_PART

    def forget(self, end: End) -> None:
        """The end is closed."""
        ends = self._ends.get(end.process)
        if ends is not None:
            ends.pop(end.number, None)

    def process_ended(self, process: SimProcess) -> None:
        """Its kernel closes what it held; without power nobody does."""
        for key in [key for key, listener in self._listeners.items() if listener.process is process]:
            del self._listeners[key]
        for end in list(self._ends.pop(process, {}).values()):
            if process.host.up:
                end.abort()
            else:
                end.vanish()
                self._scheduler.call_later(GIVE_UP_S, end.other.lose, TimeoutError("the other host is silent"))

    def close(self) -> None:
        """Forget everything."""
        self._ends.clear()
        self._holding.clear()
        self._listeners.clear()

    def _way_s(self, source: Host, target: Host) -> float:
        low_s, high_s = LOCAL_S if source is target else WIRE_S
        draw = self._random()
        way_s = low_s + (high_s - low_s) * draw
        if source is not target:
            if draw < SLOW_PACKET_PART:
                way_s = high_s * SLOW_PACKET_FACTOR * self._random()
            if self._delays_s:
                way_s += sum(self._delays_s.get((source.name, target.name), ())) * self._random()
        return way_s

    def _flush(self, end: End) -> None:
        """Send again what was held up, if it gets through now."""
        if not end.held or end.clogged or (end.process.host.name, end.other.process.host.name) in self._blocked:
            return
        held, end.held = end.held, []
        del self._holding[end.number]
        end.arrives_s = max(end.arrives_s, self._scheduler.now_s + RESEND_MAX_S * self._random())
        for arrive, what, size in held:
            self.transmit(end, arrive, what, size)

    def _give_up(self, end: End, blocked_s: float) -> None:
        """Nothing has come through for as long as keepalive allows, unless that was over in between."""
        ways = ((end.process, end.other.process), (end.other.process, end.process))
        if any((source.host.name, target.host.name) in self._blocked for source, target in ways):
            error = TimeoutError(f"nothing came through since {blocked_s:.3f} s")
            end.lose(error)
            end.other.lose(error)

    def _syn(self, process: SimProcess, host: Host, port: int, waiter: asyncio.Future[End]) -> None:
        if waiter.done() or not process.alive:
            return
        source, target = process.host.name, host.name
        cut_off = (source, target) in self._blocked or (target, source) in self._blocked
        if source != target and (cut_off or not host.up):
            self._scheduler.call_later(SYN_RETRY_S, self._syn, process, host, port, waiter)
        else:
            way_s = self._way_s(process.host, host)
            self._scheduler.call_later(way_s, self._syn_arrives, process, host, port, waiter, 2 * way_s)

    def _syn_arrives(
        self, process: SimProcess, host: Host, port: int, waiter: asyncio.Future[End], back_s: float
    ) -> None:
        listener = self._listeners.get((host.name, port))
        if not process.alive or waiter.done():
            return
        if listener is None:
            refused = ConnectionRefusedError(f"nobody listens on {host.name}:{port}")
            self._scheduler.call_later(back_s, process.call, _refuse, waiter, refused)
            return
        ours, theirs = self._pair(process, listener.process)
        listener.process.call(listener.accept, theirs)
        self._scheduler.call_later(back_s, process.call, _establish, waiter, ours)

    def _pair(self, process: SimProcess, other: SimProcess) -> tuple[End, End]:
        self._numbers += 2
        pair = End(self, process, self._numbers - 1), End(self, other, self._numbers)
        pair[0].other, pair[1].other = pair[1], pair[0]
        for end in pair:
            self._ends.setdefault(end.process, {})[end.number] = end
        return pair


def _crosses(end: End) -> bool:
    return end.process.host is not end.other.process.host


def _refuse(waiter: asyncio.Future[End], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)


def _establish(waiter: asyncio.Future[End], end: End) -> None:
    if waiter.done():
        end.abort()
    else:
        waiter.set_result(end)
