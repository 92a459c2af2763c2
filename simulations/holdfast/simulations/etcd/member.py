"""A member of a simulated etcd, as the production adapter sees one through its JSON gateway.

It answers what `store.etcd` asks (keys, transactions, leases, watches) with the bodies, codes and texts of etcd 3.5.1,
which the contract tests of the leases compare. Requests come over simulated connections, one after the other on each,
as HTTP/1.1 has it. Not simulated: users and tokens, TLS, fragments of large answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from holdfast.simulations.etcd.group import Entry, Group
from holdfast.simulations.etcd.lessor import Lessor
from holdfast.simulations.etcd.state import Change, Refused, Wire, bounds, within
from holdfast.simulations.etcd.trouble import Trouble
from holdfast.simulations.etcd.voter import TICK_S, Voter
from holdfast.simulations.world.network import End
from holdfast.simulations.world.process import SimProcess

CLIENT_PORT = 2379
CLUSTER_ID = "14841639068965178418"

Message = tuple[str, Wire | None, dict[str, str]]
"""A request: path, payload (None for GET), headers. An answer is (status, body)."""

OK = 200
STATUS = {3: 400, 5: 404, 8: 429, 9: 400, 11: 400, 14: 503}
"""HTTP's status for gRPC's code."""

AUTH_DISABLED = (9, "etcdserver: authentication is not enabled")
NO_LEADER = (14, "etcdserver: no leader")

NO_LEADER_MAX_S = 2.5
"""A watch that asked for a leader is cut when there has been none for so long."""

UNREAD_MAX_BYTES = 256 * 1024
"""A watch whose reader has so much to read falls behind."""

ANSWER_BYTES = 256
KEY_BYTES = 160
"""About what answers take on the wire: the header and lines of HTTP, and a key with its numbers."""

GONE = "lease/expire", "lease/revoke"


class Call:
    """One request and where its answer goes. `mute`: nowhere."""

    __slots__ = ("_end", "_member", "instead", "mute")

    def __init__(self, member: Member, end: End, mute: bool = False) -> None:
        self._member = member
        self._end = end
        self.mute = mute
        self.instead: tuple[int, str] | None = None

    def ok(self, body: Wire, revision: int | None = None) -> None:
        """Answer, with a header of this revision (the member's own without)."""
        self._send(OK, {"header": self._member.header(revision), **body})

    def stream(self, body: Wire) -> None:
        """Answer as a stream of one object."""
        self._send(OK, {"result": {"header": self._member.header(), **body}})

    def plain(self, status: int, body: Any) -> None:
        """Answer just so."""
        self._send(status, body)

    def fail(self, code: int, text: str) -> None:
        """Answer with an error."""
        self._send(STATUS[code], {"error": text, "code": code, "message": text})

    def entry(self, entry: Entry) -> None:
        """Answer with what became of an entry."""
        if entry.error is not None:
            self.fail(*entry.error)
        else:
            self.ok(entry.body, entry.revision)

    def _send(self, status: int, body: Any) -> None:
        if self.mute:
            return
        if self.instead is not None:
            code, text = self.instead
            status, body = STATUS[code], {"error": text, "code": code, "message": text}
        keys = body.get("kvs", ()) if body is not None else ()
        self._end.send((status, body), ANSWER_BYTES + KEY_BYTES * len(keys))


class Watch:
    """One watch. `next` is the first revision that it has not been sent, once `behind`."""

    __slots__ = ("behind", "end", "last", "needs_leader", "next", "progress", "sent_s", "start")

    def __init__(self, end: End, create: Wire, first: int, needs_leader: bool) -> None:
        self.end = end
        self.start, self.last = bounds(create)
        self.next = first
        self.progress = bool(create.get("progress_notify"))
        self.needs_leader = needs_leader
        self.behind = False
        self.sent_s = 0.0

    def send(self, result: Wire, now_s: float) -> None:
        """Send one line."""
        self.sent_s = now_s
        self.end.send((OK, {"result": result}), ANSWER_BYTES + KEY_BYTES * len(result.get("events", ())))


class Member:
    """One member, from its start to its end. Run `run()` as its process's main coroutine."""

    def __init__(self, group: Group, name: str, process: SimProcess, trouble: Trouble) -> None:
        self.name = name
        self.process = process
        self.trouble = trouble
        self.voter = Voter(group, name, process, self)
        self.lessor = Lessor(process.loop.time)
        self.watches: dict[End, Watch] = {}
        self._group = group
        self._id = str(1000 + sorted(group.disks).index(name))
        self._leaderless_s = 0.0
        self._delivered = 0
        self._ended = asyncio.Event()
        self._handlers: dict[str, Callable[[Call, Wire], None]] = {
            "/v3/kv/range": self._range,
            "/v3/lease/keepalive": self._keep_alive,
            "/v3/lease/timetolive": self._time_to_live,
            "/v3/lease/leases": self._leases,
            "/v3/maintenance/status": self._status,
            "/v3/auth/authenticate": lambda call, _payload: call.fail(*AUTH_DISABLED),
        }
        for path in ("kv/put", "kv/txn", "kv/deleterange", "kv/compaction", "lease/grant", "lease/revoke"):
            self._handlers[f"/v3/{path}"] = self._proposal(path)

    async def run(self) -> None:
        """Serve until the process ends."""
        # Whatever ends the process, without power its host forgets what was not synced.
        self.process.on_exit(lambda _status: None if self.process.host.up else self.voter.lose_power())
        self.voter.start()
        self._delivered = self._group.state.first_after(self.voter.revision)
        self.process.world.network.listen(self.process, CLIENT_PORT, self._accept)
        await self._ended.wait()

    def header(self, revision: int | None = None) -> Wire:
        """What every answer begins with."""
        revision = self.voter.revision if revision is None else revision
        term = str(self.voter.term)
        return {"cluster_id": CLUSTER_ID, "member_id": self._id, "revision": str(revision), "raft_term": term}

    # --- requests ---------------------------------------------------------------------------------------

    def _accept(self, end: End) -> None:
        end.attach(lambda message: self._receive(end, message), lambda _error: self._lost(end))

    def _lost(self, end: End) -> None:
        self.watches.pop(end, None)

    def _receive(self, end: End, message: Message) -> None:
        call = Call(self, end)
        self.trouble.asked += 1
        if self.trouble.now:
            now_s = self._group.world.now_s
            if not self.trouble.lets_in(call, now_s, lambda after_s: self._again(after_s, end, message)):
                return
        self._handle(call, end, message)

    def _again(self, after_s: float, end: End, message: Message) -> None:
        """The same request comes a second time; its answer goes nowhere."""
        if message[0] != "/v3/watch":
            call = Call(self, end, mute=True)
            self._group.world.scheduler.call_later(after_s, self.process.call, self._handle, call, end, message)

    def _handle(self, call: Call, end: End, message: Message) -> None:
        path, payload, headers = message
        if path == "/version":
            call.plain(OK, {"etcdserver": self._group.knobs.version, "etcdcluster": "3.5.0"})
        elif path == "/v3/watch" and payload is not None:
            self._watch(call, end, payload["create_request"], "Grpc-Metadata-hasleader" in headers)
        elif payload is not None and (handler := self._handlers.get(path)) is not None:
            try:
                handler(call, payload)
            except Refused as refused:
                call.fail(*refused.args)
        else:
            call.plain(404, None)

    def _proposal(self, path: str) -> Callable[[Call, Wire], None]:
        """What handles a request by having it agreed upon."""
        voter = self.voter

        def handle(call: Call, payload: Wire) -> None:
            if path in ("kv/put", "kv/deleterange"):
                bounds(payload)
            voter.propose(Entry(path, payload, voter, call.entry))

        return handle

    def _range(self, call: Call, payload: Wire) -> None:
        def read() -> None:
            try:
                call.ok(self._group.state.range(payload, self.voter.revision, self.voter.compacted))
            except Refused as refused:
                call.fail(*refused.args)

        bounds(payload)
        if payload.get("serializable"):
            read()
        else:
            self.voter.confirm(read)

    def _status(self, call: Call, _payload: Wire) -> None:
        voter = self.voter
        leader = voter if voter.leads else voter.follows
        index = str(voter.applied)
        body: Wire = {
            "version": self._group.knobs.version,
            "dbSize": "20480",
            "dbSizeInUse": "16384",
            "raftIndex": index,
        }
        if leader is not None and isinstance(leader.server, Member):
            body["leader"] = leader.server._id
        else:
            body["errors"] = [NO_LEADER[1]]
        call.ok({**body, "raftTerm": str(voter.term), "raftAppliedIndex": index})

    # --- leases -----------------------------------------------------------------------------------------

    def _keep_alive(self, call: Call, payload: Wire) -> None:
        lease_id = int(payload["ID"])

        def answer(ttl_s: int) -> None:
            call.stream({"ID": str(lease_id), "TTL": str(ttl_s)} if ttl_s else {"ID": str(lease_id)})

        self.renew(lease_id, self.voter, answer)

    def renew(self, lease_id: int, asked_of: Voter, answer: Callable[[int], None]) -> None:
        """See `Server`."""
        if not self.voter.leads:
            self.voter.ask_leader(lambda leader: leader.server.renew(lease_id, asked_of, answer))
            return

        def renewed(ttl_s: int) -> None:
            if ttl_s:
                self._group.history.lease_event(self._group.world.now_s, "kept", lease_id)
            self._answer(asked_of, answer, ttl_s)

        self.lessor.renew(self._group.state.leases.get(lease_id), renewed)

    def _time_to_live(self, call: Call, payload: Wire) -> None:
        self.remaining(int(payload["ID"]), self.voter, call.ok)

    def remaining(self, lease_id: int, asked_of: Voter, answer: Callable[[Wire], None]) -> None:
        """See `Server`."""
        if not self.voter.leads:
            self.voter.ask_leader(lambda leader: leader.server.remaining(lease_id, asked_of, answer))
            return
        remaining_s, lease = self.lessor.remaining_s(lease_id), self._group.state.leases.get(lease_id)
        if remaining_s is None or lease is None:
            self._answer(asked_of, answer, {"ID": str(lease_id), "TTL": "-1"})
            return
        body: Wire = {"ID": str(lease_id), "TTL": str(int(remaining_s)), "grantedTTL": str(lease.ttl_s)}
        if lease.keys:
            body["keys"] = list(lease.keys.values())
        self._answer(asked_of, answer, body)

    def _answer(self, asked_of: Voter, answer: Callable[[Any], None], value: Any) -> None:
        if asked_of is self.voter:
            answer(value)
        else:
            self._group.carry(self.voter, asked_of, answer, value)

    def _leases(self, call: Call, _payload: Wire) -> None:
        """As this member knows them, which may be of old."""
        known = dict.fromkeys(self._group.state.leases)
        for entry in reversed(self._group.log[self.voter.applied :]):
            if entry.error is None and entry.path == "lease/grant":
                known.pop(int(entry.body["ID"]), None)
            elif entry.error is None and entry.path in GONE:
                known[int(entry.payload["ID"])] = None
        call.ok({"leases": [{"ID": str(lease_id)} for lease_id in known]} if known else {})

    # --- what the voter tells ---------------------------------------------------------------------------

    def on_applied(self, entry: Entry) -> None:
        """See `Server`."""
        if entry.path == "lease/grant" and entry.error is None:
            lease = self._group.state.leases.get(int(entry.body["ID"]))
            if lease is not None:
                self.lessor.granted(lease)
        elif entry.path in GONE:
            for answer in self.lessor.gone(int(entry.payload["ID"])):
                answer(0)

    def on_leading(self) -> None:
        """See `Server`."""
        self._leaderless_s = 0.0
        self.lessor.promote(self._group.state.leases.values())

    def on_deposed(self) -> None:
        """See `Server`."""
        ended, waiting = self.lessor.demote()
        if self.voter.follows is not None and self._group.knobs.revokes_when_deposed:
            self._expire(ended)
        for lease_id, answers in waiting.items():
            for answer in answers:
                self.renew(lease_id, self.voter, answer)

    def on_tick(self) -> None:
        """See `Server`."""
        if self.lessor.primary:
            if not self.trouble.holds_expiry:
                self._expire(self.lessor.due())
            elif self.lessor.overdue:
                self.trouble.kept_leases += 1
        self._leaderless_s = 0.0 if self.voter.knows_leader else self._leaderless_s + TICK_S
        if self._leaderless_s >= NO_LEADER_MAX_S:
            self.cut_watches(lambda watch: watch.needs_leader, NO_LEADER)
        self._tend_watches()

    def _expire(self, lease_ids: list[int]) -> None:
        for lease_id in lease_ids:
            self.voter.propose(Entry("lease/expire", {"ID": str(lease_id)}))

    # --- watches ----------------------------------------------------------------------------------------

    def _watch(self, call: Call, end: End, create: Wire, needs_leader: bool) -> None:
        if needs_leader and not self.voter.knows_leader:
            code, text = NO_LEADER
            call.plain(STATUS[code], {"error": _streamed(code, text)})
            return
        revision = self.voter.revision
        watch = Watch(end, create, int(create.get("start_revision", 0)) or revision + 1, needs_leader)
        watch.send({"header": self.header(), "created": True}, self._group.world.now_s)
        self.watches[end] = watch
        if watch.next <= revision:
            self._catch_up(watch, opened=True)

    def on_caught_up(self) -> None:
        """See `Server`. Send the changes that are new here to all watches that are not behind."""
        changes = self._new_changes()
        if not changes:
            return
        for watch in self.watches.values():
            if watch.behind:
                self.trouble.kept_changes += 1
                continue
            if watch.end.unread_bytes > UNREAD_MAX_BYTES:
                self.fall_behind(watch, changes[0].revision)
            else:
                self._send(watch, changes)

    def fall_behind(self, watch: Watch, revision: int | None = None) -> None:
        """Send a watch nothing for now; from this revision on (the next one without) it misses what happens."""
        if not watch.behind:
            watch.behind = True
            watch.next = max(watch.next, self.voter.revision + 1 if revision is None else revision)

    def cut_watches(self, which: Callable[[Watch], bool], error: tuple[int, str] | None = None) -> None:
        """End some of the watches, with an error or without a word."""
        cut = [watch for watch in self.watches.values() if which(watch)]
        for watch in cut:
            del self.watches[watch.end]
            if error is not None:
                watch.end.send((OK, {"error": _streamed(*error)}))
            watch.end.close()

    def _new_changes(self) -> list[Change]:
        history, voter = self._group.state.history, self.voter
        until = len(history)
        if voter.revision != self._group.state.revision:
            until = self._group.state.first_after(voter.revision)
        changes = history[self._delivered : until]
        self._delivered = until
        return changes

    def _send(self, watch: Watch, changes: list[Change]) -> None:
        events = [
            change.event
            for change in changes
            if change.revision >= watch.next and within(change.key, watch.start, watch.last)
        ]
        if events:
            watch.send({"header": self.header(), "events": events}, self._group.world.now_s)

    def _tend_watches(self) -> None:
        now_s, progress_s = self._group.world.now_s, self._group.knobs.progress_s
        for watch in list(self.watches.values()):
            if watch.behind:
                if watch.end.unread_bytes <= UNREAD_MAX_BYTES and not self.trouble.holds_watches:
                    self._catch_up(watch)
            elif watch.progress and now_s - watch.sent_s >= progress_s:
                watch.send({"header": self.header()}, now_s)

    def _catch_up(self, watch: Watch, *, opened: bool = False) -> None:
        """Send what a watch has missed, unless that is compacted away.

        As etcd before 3.5.18 does it, one that is opened is told nothing of what was deleted at the very revision that
        was compacted (issue 19179).
        """
        state, voter = self._group.state, self.voter
        watch.behind = False
        if watch.next < voter.compacted:
            header = self.header()
            del header["revision"]
            result = {"header": header, "canceled": True, "compact_revision": str(voter.compacted)}
            watch.send(result, self._group.world.now_s)
            del self.watches[watch.end]
            return
        missed = state.history[state.first_after(watch.next - 1) : state.first_after(voter.revision)]
        if opened:
            missed = [each for each in missed if each.after is not None or each.revision != voter.compacted]
        self._send(watch, missed)


def _streamed(code: int, text: str) -> Wire:
    return {"grpc_code": code, "http_code": STATUS[code], "message": text, "http_status": "Service Unavailable"}
