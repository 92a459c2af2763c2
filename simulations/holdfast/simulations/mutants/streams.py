"""Guards of streams: each token once and in order, an end in time, and no more at once than there is room for."""

from __future__ import annotations

from typing import Final

from holdfast.actors.engine_watch import EngineWatch
from holdfast.actors.held import HeldStreams
from holdfast.actors.replica import Replica
from holdfast.core import admission
from holdfast.core.liveness import Liveness
from holdfast.core.stream import Stream
from holdfast.gateway import resuming
from holdfast.gateway.client.machine import CallMachine
from holdfast.gateway.contact import Contact
from holdfast.gateway.dispatch import Dispatch
from holdfast.gateway.draining import GatewayDrain
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.pool import Pool
from holdfast.gateway.session import StreamSession
from holdfast.gateway.sse import Encoder
from holdfast.gateway.stalls import StallWatch
from holdfast.simulations.checkers.given_up import GIVEN_UP
from holdfast.simulations.checkers.health import BOUNDS, LIVENESS
from holdfast.simulations.checkers.moves import MOVES
from holdfast.simulations.checkers.owners import OWNERS
from holdfast.simulations.checkers.placement import DRAINS
from holdfast.simulations.checkers.starts import ATTEMPTS
from holdfast.simulations.checkers.streams import ENDS, STREAMS
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import CROWDED, CUT_OFF, Mutant, Setting
from holdfast.simulations.plan import CORE

_FROM_THE_FUTURE: Final = ('raise PeerViolation(f"token {position} came while {len(accepted)} was due")', "pass")
_FROM_THE_PAST: Final = ("if position < len(accepted) or self.status", "if self.status")

_WRONG_ANSWERS: Final = Setting(kinds=("wrong-length answer", "replica crash", "gateway crash"))
"""Engines leave out tokens while streams move."""

_FROZEN: Final = Setting(
    kinds=("freeze",),
    shape={"faults_min": 14, "faults_max": 18, "requests": 60, "operations": 0, "gateways": 1},
    knobs={
        "heartbeat_interval_s": 0.5,
        "heartbeat_timeout_s": 2.0,
        "itl_ms": 120.0,
        "health_check_period_s": 30.0,
        "canary_wait_s": 60.0,
        "stream_stall_timeout_s": 10.0,
    },
)
"""A few replicas, or others, stand still for a while."""

_RESET: Final = Setting(kinds=("reset connection",), shape={"requests": 60}, knobs={"itl_ms": 250.0})
"""Connections break, and are there again at once."""

_CUT_OFF_FROM_REPLICAS: Final = Setting(
    kinds=("partition", "one-way partition"),
    shape={"requests": 120, "operations": 0, "nodes": 2, "gateways": 4},
    knobs={
        "log_servers": 1,
        "lease_servers": 1,
        "heartbeat_interval_s": 0.5,
        "heartbeat_timeout_s": 2.0,
        "stream_stall_timeout_s": 20.0,
        "itl_ms": 400.0,
    },
)
"""Gateways lose sight of replicas, and see them again, while clients change their gateways."""

_LEFT_GATEWAYS: Final = Setting(
    kinds=("one-way partition", "replica crash", "freeze"),
    shape={"requests": 120, "operations": 0, "replicas": 3},
    knobs={"log_servers": 1, "lease_servers": 1, "itl_ms": 250.0, "migration_limit": 10},
)
"""Clients leave gateways that don't notice, and both gateways lose the stream's replica."""

_DESERTED: Final = Setting(
    kinds=("gateway crash",),
    shape={"requests": 120, "gateways": 1, "faults_min": 3, "faults_max": 6},
    knobs={"itl_ms": 1000.0, "streams_max": 2, "restart_s": 8.0, "request_timeout_s": 60.0, "canary_timeout_s": 60.0},
)
"""The only gateway crashes, and is away for long, while slow engines have more streams than room."""

_POISONED: Final = Setting(
    shape={
        "faults_min": 0,
        "faults_max": 0,
        "operations": 0,
        "replicas": 3,
        "gateways": 1,
        "requests": 90,
        "poisoned": 1,
        "healed_s": 28.0,
        "late_requests": 0,
    },
    knobs={
        "migration_limit": 10,
        "replica_wait_s": 10.0,
        "request_timeout_s": 30.0,
        "load_s": 0.05,
        "itl_ms": 120.0,
        "ttft_ms": 300.0,
    },
)
"""One request breaks engines, beside others, and nothing else breaks."""

_LOST_STREAMS: Final = Setting(
    kinds=("engine loses stream",),
    shape={"requests": 60, "operations": 0},
    knobs={"stream_stall_timeout_s": 1.0, "heartbeat_interval_s": 0.5, "itl_ms": 25.0, "migration_limit": 3},
)
"""Engines lose single streams, and nothing else breaks."""

_BARREN: Final = Setting(
    kinds=("barren engine",),
    shape={"faults_min": 3, "faults_max": 5, "shortest_s": 12.0, "requests": 60, "operations": 0},
    knobs={
        "heartbeat_interval_s": 0.5,
        "heartbeat_timeout_s": 2.0,
        "itl_ms": 25.0,
        "stream_stall_timeout_s": 1.0,
        "health_check_period_s": 30.0,
        "canary_wait_s": 60.0,
        "migration_limit": 3,
        "max_ongoing_requests": 16,
        "kv_blocks": 256,
        "streams_max": 16,
    },
)
"""A few engines make nothing for long, their nodes don't notice, and others have room."""

_HUNG: Final = Setting(
    CORE, ("engine hangs",), {"requests": 120, "gateways": 1, "faults_from_s": 20.0, "faults_min": 2, "faults_max": 3}
)
"""A few engines stand still for ever, beside others that are well."""

MUTANTS: Final = (
    Mutant(
        "attempt-fence",
        "the number of an attempt is never used again, so that what comes late for it is nobody's, and would "
        "not fit the next one's place: both are out",
        (
            edit(ReplicaLink._take, ("attempt = next(self._numbers)", "attempt = len(self._attempts) + 1")),
            edit(Stream.token, _FROM_THE_PAST, _FROM_THE_FUTURE),
        ),
        (STREAMS,),
        CROWDED,
    ),
    Mutant(
        "token-contiguity",
        "a token is taken only in its place; and an answer of the wrong length ends its engine: both are out",
        (
            edit(Replica._step_loop, ("_check(output)", "pass")),
            edit(
                HeldStreams.deliver,
                ("zip(output.tokens, output.texts, strict=True), strict=True)", "zip(output.tokens, output.texts))"),
            ),
            edit(
                HeldStreams._split,
                (
                    "enumerate(output.keys)",
                    "enumerate(output.keys[: min(map(len, (output.positions, output.tokens, output.texts)))])",
                ),
            ),
            edit(Stream.token, _FROM_THE_FUTURE),
        ),
        (STREAMS,),
        _WRONG_ANSWERS,
    ),
    Mutant(
        "token-once",
        "a migration goes on behind the tokens that came already, and one that comes again is dropped: both are out",
        (
            edit(Stream.again, ("if not self.accepted:", "if True:")),
            edit(Stream.token, _FROM_THE_PAST, _FROM_THE_FUTURE),
        ),
        (STREAMS,),
    ),
    Mutant(
        "held-back-text",
        "text that may be the beginning of a stop string is held back",
        (
            edit(
                Stream._hold,
                (
                    "self._release_text(len(self._held_text) - self._possible_stop())",
                    "self._release_text(len(self._held_text))",
                ),
            ),
        ),
        (STREAMS,),
    ),
    Mutant(
        "resumed-position",
        "a client that comes back gets what is behind its last event, in the stream and in its encoding: both are out",
        (
            edit(Stream.take, ("if self.delivered and ready and ready[0].count <= self.delivered:", "if False:")),
            edit(Encoder.encode, ("self._new(frame, delta) if self._resumed else delta.pieces", "delta.pieces")),
        ),
        (STREAMS,),
    ),
    Mutant(
        "resumed-seed",
        "a stream that is taken up is drawn from the seed in its id",
        (edit(resuming.resumed, ("seed=derive(resume.seed, at % per_prompt)", "seed=choice.sampling.seed")),),
        (STREAMS,),
    ),
    Mutant(
        "deadline",
        "a request ends at its deadline, whatever became of its streams",
        (edit(StreamSession._expire, ("self.fail(DeadlineExceeded", "_ = (DeadlineExceeded")),),
        (ENDS,),
        Setting(knobs={"request_timeout_s": 1.0, "write_timeout_s": 2.0, "itl_ms": 200.0}),
    ),
    Mutant(
        "queue-bound",
        "who would wait in a full queue is turned away",
        (edit(admission.decide, ("if line.waiting + waits > line.waiting_max:", "if False:")),),
        (BOUNDS,),
        CROWDED,
    ),
    Mutant(
        "streams-per-replica",
        "a replica gets no more streams of a gateway than it may have",
        (
            edit(
                ReplicaLink.takes_moved,
                ("self.ready and not self._full and self._taken < self.in_flight_max", "self.ready and not self._full"),
            ),
        ),
        (BOUNDS,),
        CROWDED,
    ),
    Mutant(
        "redial",
        "a replica that can't be reached is dialled again for as long as the log has it",
        (edit(Contact.reach, ("redial_s = min(redial_s * 2, REDIAL_MAX_S)", "return False")),),
        (LIVENESS,),
        CUT_OFF,
    ),
    Mutant(
        "silence",
        "a replica that is silent, or does not hear, loses its streams to others and gets no new ones",
        (
            edit(ReplicaLink._lost_touch, ("unheard_s = self._contact.unheard_s(now_s)", "return False")),
            edit(Liveness.due_s, ("if self.suspicion is not None:", "if True:")),
        ),
        (MOVES,),
        _FROZEN,
    ),
    Mutant(
        "engine-watch",
        "an engine that makes no step is noticed, by its replica and by gateways: both are out",
        (
            edit(
                EngineWatch.run,
                ("raise EngineHung(self._told.format(took_s))", "pass"),
            ),
            edit(
                Liveness.doubt,
                ("if self._busy and now_s - self._stepped_s > self._step_may_take_s():", "if False:"),
            ),
            edit(Liveness.due_s, ("if self._busy else due_s", "if False else due_s")),
        ),
        (LIVENESS,),
        _HUNG,
    ),
    Mutant(
        "stop-frame",
        "a stream whose client has gone ends at its replica too",
        (edit(Replica._on_frame, ("Stop):\n        self._stop(peer, frame.attempt)", "Stop):\n        pass")),),
        (OWNERS,),
    ),
    Mutant(
        "fence-frame",
        "a stream that was taken elsewhere ends at the replica that is suspected",
        (edit(Replica._on_frame, ("self._fence(peer, frame)", "pass")),),
        (OWNERS,),
        CROWDED,
    ),
    Mutant(
        "fence-again",
        "what a replica could not be told of streams that are elsewhere it is told once it is reached again",
        (edit(Contact.welcome, ("self.fence([], [])", "pass")),),
        (OWNERS,),
        _RESET,
    ),
    Mutant(
        "fence-of-former-gateway",
        "a gateway fences only attempts of its own, and none that another has taken up since: both are out",
        (
            edit(
                HeldStreams.fence,
                ("elif held.gateway == peer.gateway and held.tokens.ordinal <= ordinal:", "else:"),
            ),
        ),
        (OWNERS,),
        _CUT_OFF_FROM_REPLICAS,
    ),
    Mutant(
        "later-attempt",
        "a start or an attachment that comes late does not take a stream from a later attempt, and a client whose "
        "stream was taken by its own earlier try takes it back: all are out",
        (
            edit(HeldStreams.begin, ("if other.tokens.ordinal > start.ordinal:", "if False:")),
            edit(HeldStreams.attach, ("tokens.ordinal > ordinal", "False")),
            edit(CallMachine._go_on, ("if code == TAKEN_OVER and self.tries > 1:", "if False:")),
        ),
        (ENDS,),
        _LEFT_GATEWAYS,
    ),
    Mutant(
        "kept-for-nobody",
        "a stream without a gateway ends with its request's time, or makes way where others wait: both are out",
        (edit(HeldStreams.expire, ("late = [", "late = [] and [")),),
        (OWNERS,),
        _DESERTED,
    ),
    Mutant(
        "wait-for-a-replica",
        "who finds no replica with room waits for a while, and is told then that there is none",
        (
            edit(
                Dispatch._enqueue,
                ("run.waiting_since_s + self._settings.replica_wait_s", "run.waiting_since_s + 1_000_000.0"),
            ),
        ),
        (BOUNDS,),
        CROWDED,
    ),
    Mutant(
        "migration-limit",
        "a stream that loses one replica after the other ends",
        (edit(Stream.lost, ("self.attempts > self.migrations_max", "False")),),
        (ATTEMPTS,),
    ),
    Mutant(
        "goes-on-elsewhere",
        "a stream that loses its replica goes on at another one, and does not end",
        (edit(Stream.lost, ("self.attempts > self.migrations_max", "True")),),
        (GIVEN_UP,),
    ),
    Mutant(
        "breaks-engines",
        "a request whose attempts break off without a token again and again ends",
        (edit(Stream.lost, ("self._barren >= BARREN_ATTEMPTS_MAX", "False")),),
        (ATTEMPTS,),
        _POISONED,
    ),
    Mutant(
        "probation",
        "streams that may have broken an engine begin one at a time at each replica",
        (edit(Pool.choose, ("if suspect:", "if False:")),),
        (ATTEMPTS,),
        _POISONED,
    ),
    Mutant(
        "gateway-drain",
        "a gateway that is told to stop lets its streams end first",
        (edit(GatewayDrain.drain, ("asyncio.timeout(deadline_s)", "asyncio.timeout(0.0)")),),
        (DRAINS,),
        Setting(shape={"operations": 8, "requests": 60}),
    ),
    Mutant(
        "stalled-stream",
        "a stream that brings nothing while its engine goes on is moved",
        (edit(StallWatch.look, ("if self._stalls(run, now_s - mark[1], step - mark[2]):", "if False:")),),
        (MOVES,),
        _LOST_STREAMS,
    ),
    Mutant(
        "barren-engine",
        "a stream without its first token leaves an engine that steps and steps while nobody gets anything",
        (edit(StallWatch._stalls, ("and self._barren.steps >= BARREN_STEPS", "and False")),),
        (MOVES,),
        _BARREN,
    ),
)
