"""Bugs that the simulation found, back again: each undoes the mend of a bug that is kept as a plan, under its name.

A plan that runs without a violation proves only something while it shows the bug when its mend is taken out.
"""

from __future__ import annotations

from typing import Final

from holdfast.actors import health
from holdfast.actors.controller import Controller
from holdfast.actors.reach import LogReach
from holdfast.actors.replica_watch import ReplicaWatch
from holdfast.core import admission, reconcile, starts
from holdfast.gateway import session
from holdfast.gateway.admission import Admission
from holdfast.gateway.client.machine import CallMachine
from holdfast.gateway.draining import GatewayDrain
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.session import StreamSession
from holdfast.simulations.checkers.health import BOUNDS, LIVENESS, QUIET
from holdfast.simulations.checkers.members import LEASES, MEMBERS
from holdfast.simulations.checkers.placement import DRAINS, UPDATES
from holdfast.simulations.checkers.streams import ENDS, STREAMS
from holdfast.simulations.mutants.edits import Constant, edit
from holdfast.simulations.mutants.mutant import Mutant
from holdfast.store import jetstream_follow
from holdfast.store.etcd_watch import Watcher
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.jetstream_api import JetStreamApi
from holdfast.store.nats_session import Session

_MENDS: Final = (
    Mutant(
        "left-early",
        "who leaves a stream early goes on behind the last event that it took, and not behind the last that came",
        (edit(CallMachine.last_event_id, ("return self._taken_id", "return self._ledger.last_id")),),
        (STREAMS,),
    ),
    Mutant(
        "stream-taken-back",
        "a stream that is resumed counts its attempts from far above those of the gateway that the client left",
        (
            Constant(session, "RESUMED_ORDINALS", 0),
            edit(ReplicaLink.attach, ("run.ordinal = max(run.ordinal, ordinal) + 1", "run.ordinal = ordinal")),
        ),
        (ENDS,),
    ),
    Mutant(
        "stopped-while-redrawn",
        "what the client of a resumed stream has counts while it is drawn again, also where its text is replayed",
        (edit(StreamSession.completion_tokens, ("run.resumed_at or 0", "run.stream.delivered")),),
        (STREAMS,),
    ),
    Mutant(
        "queue-of-lookups",
        "streams that are looked for count among those that wait",
        (edit(Admission._waiting, ("len(self._pool.queue) + len(self._pool.searches)", "len(self._pool.queue)")),),
        (BOUNDS,),
    ),
    Mutant(
        "queue-beside-room",
        "new requests wait behind who waits already, also where there is room",
        (
            edit(
                admission.decide,
                ("waits = asked if line.waiting else asked - places", "waits = asked - places"),
            ),
        ),
        (BOUNDS,),
    ),
    Mutant(
        "given-up-again-and-again",
        "a gateway that joins again gets the time that everybody gets, and waits for its own event",
        (
            edit(Controller._on_record, ("self._gateways.forget((payload.gateway, event.incarnation))", "pass")),
            edit(
                GatewayProcess._rejoin_when_given_up,
                (
                    "await self._follower.reached(await self._facts.flush())",
                    "await self._facts.flush(); await self._follower.until(lambda state: not given_up(state))",
                ),
            ),
        ),
        (MEMBERS,),
    ),
    Mutant(
        "start-held-back",
        "the pause after a failed start is timed by the leader's clock where the node's can't be right",
        (
            edit(
                starts.failed_since,
                ("timedelta(seconds=CLOCKS_APART_S)", "timedelta(seconds=30.0)"),
                (" and (failed_after is None or failed_at >= failed_after)", ""),
            ),
        ),
        (LIVENESS,),
    ),
    Mutant(
        "broken-host",
        "a node on which starts fail rests: replicas go there only where no other has room",
        (edit(reconcile._converge_all, ("resting_for(state, deployment, rest, now)", "{}")),),
        (LIVENESS,),
    ),
    Mutant(
        "hanging-start",
        "a replica that does not get ready in time is replaced",
        (edit(ReplicaWatch._get_ready, ("looks * LOOK_S >= deployment.config.start_timeout_s", "False")),),
        (LIVENESS,),
    ),
    Mutant(
        "cut-off-node",
        "a node that alone can't reach the log gives up its lease",
        (edit(LogReach._weigh, ("self._session.withhold()", "pass")),),
        (LIVENESS,),
    ),
    Mutant(
        "read-half-way",
        "a leader that reads what it missed decides by the end of it",
        (edit(Controller._read_on, ("self._follower.known", "0")),),
        (UPDATES,),
    ),
    Mutant(
        "lifted-further-down",
        "a gateway that is told to drain reads what stands behind that in the log",
        (edit(GatewayDrain._read_on, ("self._follower.known", "0")),),
        (DRAINS,),
    ),
    Mutant(
        "frozen-first-token",
        "an engine's first tokens have their time, without that in which the process stands still",
        (edit(health.warm_up, ("_timeout_awake(", "asyncio.timeout(")),),
        (QUIET,),
    ),
    Mutant(
        "dead-consumer",
        "a reader that hears that the log goes on, and is given nothing, takes a new consumer",
        (edit(jetstream_follow._Consumer._told, ("last > self.position", "False")),),
        (LEASES,),
    ),
    Mutant(
        "leaderless-server",
        "a connection to a log server on which no leader answers is given up for another server's",
        (edit(Session.leaderless, ("elif now - self._leaderless_since > LEADERLESS_MAX_S:", "elif False:")),),
        (LIVENESS,),
    ),
    Mutant(
        "quiet-old-log",
        "a reader of the log that gets nothing but heartbeats asks the leader how far the log is",
        (edit(jetstream_follow._Consumer.next, ("self._heard_s >= LOOK_S", "self._heard_s >= float('inf')")),),
        (LIVENESS,),
    ),
    Mutant(
        "lagging-server",
        "a log server that knows of no leader tells nothing of the stream's end, and one that may be a former leader "
        "is given time to learn: a stream that lost history is told from one that lags. Both are out",
        (
            edit(JetStreamApi.ask, ('if "leader" not in answer.get("cluster", {"leader": ""}):', "if False:")),
            Constant(jetstream_follow, "BEHIND_READS_MAX", 1),
        ),
        (QUIET,),
    ),
    Mutant(
        "last-delivery",
        "a heartbeat tells how much was delivered, and so of a message that was lost before a silence",
        (
            edit(
                jetstream_follow._Consumer._take_status,
                ("int(headers.get(DELIVERED_HEADER, 0)) > self._delivered", "False"),
            ),
        ),
        (LIVENESS,),
    ),
    Mutant(
        "former-leaders-refusal",
        "a refusal by what a former leader of the log knew is not taken for another writer's entry",
        (edit(JetStreamLog._may_pass, ("return self._settings.replicas > 1 and", "return False and")),),
        (QUIET,),
    ),
    Mutant(
        "unreadable-duplicate",
        "a duplicate that can't be read yet is tried again",
        (
            edit(
                JetStreamLog._resolve_duplicate,
                ("used is None or (used.subject == subject and used.sequence > expected_last)", "False"),
            ),
        ),
        (QUIET,),
    ),
    Mutant(
        "compacted-deletion",
        "a watch starts at the last revision seen, so that no deletion at the compacted one is missed",
        (edit(Watcher._stream, ("str(self._position or 1)", "str(self._position + 1)")),),
        (LIVENESS,),
    ),
)

MENDED: Final[dict[str, Mutant]] = {one.name: one for one in _MENDS}
"""All of them, by the names of the bugs."""
