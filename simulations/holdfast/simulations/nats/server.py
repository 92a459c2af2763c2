"""One life of a simulated NATS server: its connections, JetStream's API, its part in a group of three.

What a majority has, and who leads, is decided by `nats.jetstream`, which knows everything: servers' consensus is
not what is tested here. What clients see of it is as of nats-server 2.15, tried on real ones: while there is no leader
publications have no responders, and the API first says nothing, then that it is unavailable; a member that is cut off
answers for the stream as far as it knows it, and its consumers go on to send heartbeats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.simulations.nats import faults, store
from holdfast.simulations.nats.api import API, Request, answer_request
from holdfast.simulations.nats.client import INFO, MSG, OVERHEAD_BYTES, PING, PONG, PUB
from holdfast.simulations.nats.consumer import Consumer, Sink
from holdfast.simulations.nats.faults import Window
from holdfast.simulations.nats.store import Append, Refusal, Stream
from holdfast.simulations.world.network import End
from holdfast.simulations.world.scheduler import Handle

if TYPE_CHECKING:
    from holdfast.simulations.nats.jetstream import JetStream, Member
    from holdfast.simulations.world.process import SimProcess

VERSION = "2.15.1"
TICK_S = 0.5
LOST_QUORUM_S = (8.0, 12.0)
"""A leader that has no majority steps down after so long (seconds, drawn)."""

LEADERLESS_AFTER_S = 6.0
"""So long (seconds) a server says nothing where only a leader may answer, before it says that there is none."""

CONNECTIONS_MAX = 1_000
BACKLOG_MAX = 10_000
"""More connections, or appends under way, than this are a flaw of the simulation."""

STALE_ENTRIES = 2
"""How many of the last entries a leader does not tell of while it lags."""
ROUNDING_S = 1e-6
"""Timers may be early by this much: the clocks of processes begin at large numbers."""

APART_S = 1e-5
"""Two things that come to a process by timers so far apart come in order."""

REFUSALS = (store.IN_FLIGHT, store.UNAVAILABLE, store.STORE_CLOSED, store.IN_PROCESS)
NO_RESPONDERS_HEADERS = {"Status": "503"}


class Client:
    """A client's connection."""

    def __init__(self, server: Server, end: End) -> None:
        self.held_until_s = 0.0
        self._server = server
        self._end = end
        end.attach(self._on_message, self._on_lost)

    @property
    def open(self) -> bool:
        return self._end.open

    def send(self, inbox: str, subject: str, reply: str, data: bytes, headers: dict[str, str] | None) -> None:
        self._end.send((MSG, inbox, subject, reply, data, headers), OVERHEAD_BYTES + len(data))

    def greet(self, *greeting: Any) -> None:
        self._end.send((INFO, *greeting))

    def close(self) -> None:
        self._end.abort()
        self._on_lost(None)

    def _on_message(self, message: tuple[Any, ...]) -> None:
        if message[0] == PUB:
            self._server.take(self, *message[1:])
        elif message[0] == PING:
            self._end.send((PONG, message[1]))

    def _on_lost(self, _error: Exception | None) -> None:
        self._server.forget(self)


class Proposal(msgspec.Struct):
    """An append under way, and who waits for it. `ready_s`: the disk has it then."""

    append: Append
    stream: Stream
    sink: Sink | None
    inbox: str
    ready_s: float = 0.0


class Server:
    """The process of a member, from its start to its end."""

    def __init__(self, group: JetStream, member: Member, process: SimProcess) -> None:
        self.group = group
        self.member = member
        self.process = process
        self.ready = False
        self.leads = False
        self.alone_since_s = self.now_s
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self.queue: list[Proposal] = []
        self._work: Handle | None = None
        self._quorum_s = 0.0
        self._lost_quorum_s = process.rng.uniform(*LOST_QUORUM_S)
        self._clients: dict[Client, None] = {}
        # Kept here: a task that waits for what only it knows may be collected.
        self._for_ever: asyncio.Future[None] = process.loop.create_future()

    @property
    def now_s(self) -> float:
        """The true time."""
        return self.group.world.now_s

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Call back in this process."""
        return self.process.loop.call_later(delay_s, callback, *args)

    def strikes(self, kind: str) -> Window | None:
        """The fault of this kind, if one strikes now."""
        return self.group.troubles.strikes(kind, self.now_s)

    async def run(self) -> None:
        """Recover, then serve for ever."""
        await asyncio.sleep(self.group.recovery_s())
        self.ready = True
        self.alone_since_s = self._quorum_s = self.now_s
        self.process.world.network.listen(self.process, self.member.port, self._accept)
        if not self.group.clustered:
            self.lead()
            await self._for_ever
        while True:
            self._tick()
            await asyncio.sleep(TICK_S * (0.8 + 0.4 * self.process.rng.random()))

    # --- connections ------------------------------------------------------------------------------------

    def _accept(self, end: End) -> None:
        client = Client(self, end)
        self._clients[client] = None
        assert len(self._clients) <= CONNECTIONS_MAX
        others = [member.url for member in self.group.members if member is not self.member]
        client.greet(VERSION, self.member.name, others)

    def forget(self, client: Client) -> None:
        """The connection is over."""
        self._clients.pop(client, None)

    def disconnect_all(self) -> int:
        """Throw all clients out, as a server does with those who read too slowly; how many."""
        clients = list(self._clients)
        for client in clients:
            client.close()
        return len(clients)

    def take(self, client: Client, subject: str, reply: str, data: bytes, headers: dict[str, str] | None) -> None:
        """A client publishes: an append, or a request to the API."""
        if subject.startswith(API):
            self._take_request(client, subject, reply, data)
            return
        stream = self.group.stream_of(subject)
        leader = self.group.leader_for(self)
        if stream is None or leader is None or self.strikes(faults.NO_RESPONDERS) is not None:
            self._no_responders(client, reply)
            return
        append = store.append_of(subject, data, headers or {})
        window = self.strikes(faults.LATE)
        delay_s = 0.0 if window is None else window.held_up_s(self.now_s)
        if delay_s or client.held_until_s > self.now_s:
            # What one connection carries stays in order, also where it is late.
            client.held_until_s = max(client.held_until_s, self.now_s + delay_s) + APART_S
            delay_s = client.held_until_s - self.now_s
        sink = self.group.routes.sink(self, leader, client)
        self.group.route(self, leader, delay_s, leader.append, append, stream, sink, reply)
        if (window := self.strikes(faults.TWICE)) is not None:
            delay_s += window.held_up_s(self.now_s + delay_s)
            self.group.route(self, leader, delay_s, leader.append, append, stream, sink, reply)

    def _take_request(self, client: Client, subject: str, reply: str, data: bytes) -> None:
        words = subject[len(API) :].split(".")
        if words[:2] == ["CONSUMER", "MSG"]:
            self._take_pull((words[-2], words[-1]), client, reply, data)
        elif self.strikes(faults.MUTE_API) is None:
            leader = self.group.leader_for(self)
            if leader is not None:
                request = Request(words, data, self.group.routes.sink(self, leader, client), reply)
                self.group.route(self, leader, 0.0, answer_request, leader, request)
            elif self.now_s - self.alone_since_s > LEADERLESS_AFTER_S:
                answer_request(self, Request(words, data, client, reply))

    def _take_pull(self, name: tuple[str, str], client: Client, reply: str, data: bytes) -> None:
        home = self.group.home_of(self, name)
        if home is None:
            self._no_responders(client, reply)
        else:
            sink = self.group.routes.sink(self, home, client)
            self.group.route(self, home, 0.0, home.pull, name, sink, reply, data)

    def pull(self, name: tuple[str, str], sink: Sink, reply: str, data: bytes) -> None:
        """A pull on a consumer that is, or was just now, here."""
        consumer = self.consumers.get(name)
        if consumer is None:
            self._no_responders(sink, reply)
        else:
            consumer.pull(sink, reply, msgspec.json.decode(data))

    def _no_responders(self, sink: Sink, reply: str) -> None:
        if reply:
            sink.send(reply, reply, "", b"", NO_RESPONDERS_HEADERS)

    # --- appending --------------------------------------------------------------------------------------

    def append(self, append: Append, stream: Stream, sink: Sink | None, inbox: str) -> None:
        """Take an append in, as the leader."""
        proposal = Proposal(append, stream, sink, inbox)
        if not self.leads:
            return
        if (window := self.strikes(faults.REFUSED)) is not None:
            self._refuse(proposal, REFUSALS[int(window.rng.random() * len(REFUSALS))])
            return
        if self.strikes(faults.FULL) is not None:
            self._refuse(proposal, store.FULL)
            return
        if self.group.clustered and self._answered(proposal):
            return
        if self.strikes(faults.REFUSED_YET_LANDS) is not None:
            self._refuse(proposal, store.STORE_CLOSED)
            proposal.sink = None
        self._propose(proposal)

    def _propose(self, proposal: Proposal) -> None:
        window = self.strikes(faults.SLOW_DISK)
        delay_s = self.group.commit_s() if window is None else window.held_up_s(self.now_s)
        proposal.ready_s = self.now_s + delay_s
        self.queue.append(proposal)
        assert len(self.queue) <= BACKLOG_MAX
        if self._work is None:
            self._work = self.later(delay_s, self._commit)

    def _commit(self) -> None:
        """Store what a majority has by now."""
        self._work = None
        if not self.leads or not self.group.has_majority(self):
            return
        while self.queue and self.queue[0].ready_s <= self.now_s + ROUNDING_S:
            proposal = self.queue[0]
            if not self._answered(proposal, in_queue=True):
                self.group.stored(self, proposal)
                self._acknowledge(proposal)
            del self.queue[0]
        if self.queue:
            self._work = self.later(max(0.0, self.queue[0].ready_s - self.now_s), self._commit)

    def _answered(self, proposal: Proposal, *, in_queue: bool = False) -> bool:
        """Whether it is answered already: a duplicate, or refused."""
        append, stream = proposal.append, proposal.stream
        known_to = self.applied(stream)
        refusal = stream.refusal(append, known_to)
        if not self.group.clustered and refusal is not None:
            self._refuse(proposal, refusal)
            return True
        known = stream.duplicate_of(append.message_id, self.now_s, known_to) if append.message_id else None
        if known is not None:
            self._answer(proposal, b'{"stream":"%s","seq":%d,"duplicate": true}' % (stream.name.encode(), known))
            return True
        if self.group.clustered and not in_queue:
            refusal = self._refusal_of_queued(append) or refusal
        if refusal is not None:
            self._refuse(proposal, refusal)
        return refusal is not None

    def _refusal_of_queued(self, append: Append) -> Refusal | None:
        if append.message_id and any(queued.append.message_id == append.message_id for queued in self.queue):
            return store.IN_PROCESS
        if append.expected is not None and any(queued.append.subject == append.subject for queued in self.queue):
            return store.IN_FLIGHT
        return None

    def _acknowledge(self, proposal: Proposal) -> None:
        sequence = proposal.stream.last
        if proposal.sink is None or self.strikes(faults.ACK_LOST) is not None:
            return
        self.group.acknowledged(proposal.append, sequence)
        self._answer(proposal, b'{"stream":"%s","seq":%d}' % (proposal.stream.name.encode(), sequence))

    def _refuse(self, proposal: Proposal, refusal: Refusal) -> None:
        answer = refusal.answer() | {"stream": proposal.stream.name, "seq": 0}
        self._answer(proposal, msgspec.json.encode(answer))

    def _answer(self, proposal: Proposal, data: bytes) -> None:
        if proposal.sink is not None and proposal.inbox:
            proposal.sink.send(proposal.inbox, proposal.inbox, "", data, None)

    # --- reading ----------------------------------------------------------------------------------------

    def applied(self, stream: Stream) -> int:
        """The last sequence that this member knows of."""
        if not self.group.clustered:
            return stream.last
        return min(stream.last, self.member.applied.get(stream.name, 0))

    def pump(self, stream: Stream) -> None:
        """There is something new to deliver."""
        for consumer in list(self.consumers.values()):
            if consumer.stream is stream:
                consumer.pump()

    def visible(self, stream: Stream) -> int:
        """The last sequence that reads tell of: a leader just elected may lag behind what it knows."""
        last = self.applied(stream)
        if self.now_s < self.member.stale_until_s:
            return max(0, last - STALE_ENTRIES)
        return last

    # --- the group --------------------------------------------------------------------------------------

    def lead(self) -> None:
        """This member leads from now on."""
        self.leads = True
        self._quorum_s = self.now_s
        self.group.elected(self)

    def step_down(self) -> None:
        """It leads no longer. What was under way is the next leader's, or nobody's."""
        if self.leads:
            self.leads = False
            self.alone_since_s = self.now_s
            self.group.resigned(self)
            self.queue = []

    def _tick(self) -> None:
        now_s = self.now_s
        group = self.group
        if self.leads:
            if group.superseded(self):
                self.step_down()
            elif group.has_majority(self):
                self._quorum_s = now_s
                group.replicate(self)
                if self._work is None and self.queue:
                    self._commit()
            elif now_s - self._quorum_s > self._lost_quorum_s:
                self.step_down()
        elif group.leader_for(self) is not None:
            self.alone_since_s = now_s
        elif now_s - self.alone_since_s > self.member.patience_s and group.may_lead(self):
            self.lead()
