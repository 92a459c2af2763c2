"""A gateway's link to one replica: keeps the attempts that run on it, and gives them up when it is gone.

Everything that comes in is handled in the callback that received it, without a task or a queue per stream:
a step's frame goes straight into the stream machines, and only the sessions that wait are woken.

What was taken from a replica is fenced there as soon as it can be told: it forgets those streams, and says so.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.actors.wire import Connection
from holdfast.core.errors import RequestRefused, StreamLost
from holdfast.core.frames import (
    UNKNOWN_STREAM,
    Admitted,
    Attach,
    Find,
    Found,
    Heartbeat,
    Refused,
    Release,
    Start,
    Step,
    Welcome,
    decode_from_replica,
)
from holdfast.core.liveness import Suspicion
from holdfast.core.requests import EngineInfo
from holdfast.core.thresholds import NONE_SET, Thresholds
from holdfast.gateway.contact import REDIAL_FIRST_S, Contact
from holdfast.gateway.delivery import deliver
from holdfast.gateway.fences import names_of
from holdfast.gateway.handover import Handover, Incoming
from holdfast.gateway.holding import is_behind
from holdfast.gateway.link_load import LinkLoad
from holdfast.gateway.link_record import LinkRecord
from holdfast.gateway.link_settings import LinkSettings
from holdfast.gateway.stalls import StallWatch

if TYPE_CHECKING:
    from holdfast.gateway.session import StreamRun

STALL_LOOK_S = 0.5
"""A link looks this often whether streams stand still, or their clients are behind (seconds)."""

logger = logging.getLogger(__name__)


def _nothing(*_told: object) -> None:
    """For what nobody wants to be told, or to hear any more."""


class ReplicaLink:
    """One replica, seen from this gateway. A candidate for routing while `room` is true."""

    def __init__(
        self,
        replica: str,
        address: str,
        in_flight_max: int,
        settings: LinkSettings,
        rng: random.Random,
        on_capacity: Callable[[ReplicaLink], None],
        on_orphans: Callable[[list[StreamRun], StreamLost], None],
        on_suspicion: Callable[[ReplicaLink, Suspicion, float, int], None] = _nothing,
        on_trust: Callable[[ReplicaLink, float], None] = _nothing,
        on_dismissed: Callable[[ReplicaLink], None] = _nothing,
        on_turned_away: Callable[[StreamRun], None] = _nothing,
        on_behind: Callable[[ReplicaLink, StreamRun], None] = _nothing,
        engine_stall_timeout_s: float = 2.0,
        record: LinkRecord | None = None,
        thresholds: Thresholds = NONE_SET,
    ) -> None:
        self.record = record or LinkRecord()
        self.passed_over = False
        """Whether it serves far worse than the others do, and gets nothing new for a while."""
        self.sick = False
        """Whether its node found that it makes no tokens: it gets nothing new while there are others."""
        self.replica = replica
        self.address = address
        self.in_flight_max = in_flight_max
        self.info: EngineInfo | None = None
        self.retired = False
        self.stepped_s = 0.0
        """When the last step came from the replica (time of the loop)."""
        self._settings = settings
        self._on_capacity = on_capacity
        self._on_orphans = on_orphans
        self._on_turned_away = on_turned_away
        self._on_suspicion = on_suspicion
        self._on_trust = on_trust
        self._on_dismissed = on_dismissed
        self._on_behind = on_behind
        self._suspected_s: float | None = None
        self._contact = Contact(replica, address, settings, engine_stall_timeout_s, rng, self._on_body, self._on_cut)
        self._questions: dict[int, Callable[[Found | None], None]] = {}
        self._stalls = StallWatch(settings)
        self._attempts: dict[int, StreamRun] = {}
        self._incoming = Incoming()
        self._on_probation: StreamRun | None = None
        self._numbers = itertools.count(1)
        self.pressure = LinkLoad(thresholds)
        self._draining = False
        self._full = False

    def found(self, *, sick: bool) -> None:
        """Its node says how it is."""
        was, self.sick = self.sick, sick
        if was and not sick:
            self._on_capacity(self)

    @property
    def ready(self) -> bool:
        """Whether streams can be sent here."""
        return self.reached and not self._draining and not self.retired

    @property
    def suspected(self) -> bool:
        """Whether its streams were moved away and nothing new goes there."""
        return self._suspected_s is not None

    @property
    def reached(self) -> bool:
        """Whether the replica can be asked, even if it takes nothing new."""
        return self._contact.welcomed and self._suspected_s is None

    @property
    def takes_moved(self) -> bool:
        """Whether a stream that lost its replica may begin here. Thresholds are for new ones."""
        return (
            self.ready and not self._full and self._taken < self.in_flight_max and not (self.passed_over or self.sick)
        )

    @property
    def room(self) -> bool:
        """As `Candidate.room`."""
        return self.takes_moved and self.pressure.spare(self._taken) > 0

    @property
    def kv_used(self) -> float:
        """The part of its KV cache that is in use, 0 to 1."""
        return self.pressure.kv_used

    @property
    def free_for_suspects(self) -> bool:
        """Whether no stream is on probation here: of those that may have broken an engine, one at a time begins."""
        return self._on_probation is None

    @property
    def places(self) -> int:
        """How many more streams may be sent here."""
        own = self._taken
        return min(self.in_flight_max - own, self.pressure.spare(own)) if self.takes_moved else 0

    @property
    def load(self) -> int:
        """As `Candidate.load`: our own streams are known at once, others' with the next heartbeat."""
        return self._taken + self.pressure.others

    @property
    def _taken(self) -> int:
        return len(self._attempts) + len(self._incoming)

    @property
    def in_flight(self) -> int:
        """This gateway's attempts on the replica."""
        return len(self._attempts)

    def begin(self, run: StreamRun) -> None:
        """Start the run's next attempt here."""
        request = run.stream.start()
        attempt = self._take(run)
        self.record.began(run)
        run.ordinal += 1
        if run.stream.suspect:
            self._on_probation = run
        place = run.trace.begun(run, self)
        self._contact.send(Start(attempt, request, run.name, run.ordinal, place.parent, run.left_s, place.state))

    def runs(self) -> list[StreamRun]:
        """The streams that run here, the oldest attempts first."""
        return list(self._attempts.values())

    def prepare(self, handover: Handover) -> None:
        """Begin here what goes on elsewhere until it is admitted."""
        attempt = next(self._numbers)
        self._incoming.add(attempt, handover)
        run, place = handover.run, handover.prepared(self)
        self._contact.send(
            Start(attempt, handover.request, run.name, handover.ordinal, place.parent, run.left_s, place.state)
        )

    def adopt(self, run: StreamRun, attempt: int) -> None:
        """What was prepared goes on here."""
        self._attempts[attempt] = run
        run.link, run.attempt, run.began_s = self, attempt, asyncio.get_running_loop().time()
        run.awaits_first = False  # it may have read the prompt already

    def decline(self, handover: Handover, attempt: int) -> None:
        """What was prepared is not wanted any more."""
        self._contact.stop(attempt, handover.run.name, handover.ordinal)

    def ask(self, stream: str, answer: Callable[[Found | None], None]) -> int | None:
        """Ask the replica for a stream; the question's number, None if the replica can't be asked now.

        `answer` is called once, with None when the connection is lost first, unless `forget` is.
        """
        if not self.reached:
            return None
        question = next(self._numbers)
        self._questions[question] = answer
        self._contact.send(Find(question, stream))
        return question

    def forget(self, question: int) -> None:
        """The answer is not wanted any more."""
        self._questions.pop(question, None)

    def attach(self, run: StreamRun, ordinal: int) -> None:
        """Take over the stream, which the replica holds as its attempt `ordinal`. It may refuse, if it is gone."""
        run.stream.start()
        run.ordinal = max(run.ordinal, ordinal) + 1
        run.trace.begun(run, self)
        self._contact.send(Attach(self._take(run), run.name, run.ordinal, run.left_s))

    def _take(self, run: StreamRun) -> int:
        if not self._attempts and self._settings.heartbeat_interval_s > STALL_LOOK_S:
            # With nothing here to look for, the next look would be at the next ping.
            self._contact.rouse()
        attempt = next(self._numbers)
        self._attempts[attempt] = run
        run.link, run.attempt, run.began_s = self, attempt, asyncio.get_running_loop().time()
        return attempt

    def end(self, run: StreamRun) -> None:
        """Tell the replica to forget the run's attempt, if it is still there."""
        if self._attempts.pop(run.attempt, None) is not None:
            self.record.left(run)
            self._contact.stop(run.attempt, run.name, run.ordinal)
            self._freed()

    def release(self, run: StreamRun) -> None:
        """Let the replica keep the run's attempt for another gateway, if that can ask for it."""
        if run.name and not self._contact.lost and self._attempts.pop(run.attempt, None) is not None:
            self._contact.send(Release(run.attempt))
            self._freed()
        else:
            self.end(run)

    def retire(self) -> None:
        """Send nothing new; close as soon as what is here has ended."""
        self.retired = True
        self._contact.rouse()

    async def run(self) -> None:
        """Dial, and dial again, until retired and vacant."""
        while await self._contact.reach(lambda: not self.retired):
            self._trust(asyncio.get_running_loop().time())
            self._on_capacity(self)
            try:
                await self._watch()
            finally:
                self._contact.cut()
            await asyncio.sleep(REDIAL_FIRST_S)

    async def _watch(self) -> None:
        """Return when the connection is lost, silent for too long, or no longer needed."""
        look_s = asyncio.get_running_loop().time()
        while not self._contact.lost:
            if self.retired and not self._attempts and not self._incoming:
                return
            now_s = await self._contact.wait(look_s if self._attempts else math.inf)
            if now_s is None:
                continue
            if self._lost_touch(now_s):
                return
            if now_s >= look_s:
                look_s = now_s + STALL_LOOK_S
                self._look_for_stalls(now_s)
                self._look_for_slow_clients()

    def _lost_touch(self, now_s: float) -> bool:
        """Suspect the replica if there is reason to; whether the connection is of no use any more."""
        unheard_s = self._contact.unheard_s(now_s)
        suspicion = self._contact.look(now_s)
        if suspicion is not None:
            self._suspect(now_s, suspicion, unheard_s)
        if unheard_s <= self._settings.heartbeat_timeout_s:
            return False
        logger.warning("replica %s: no word for %.1f s, or none of ours arrives; leaving it", self.replica, unheard_s)
        return True

    def _look_for_stalls(self, now_s: float) -> None:
        """Let streams migrate that bring nothing while their replica's engine goes on."""
        stalled = self._stalls.look(self._attempts, self._contact.step, now_s)
        if stalled:
            for attempt, run in stalled:
                del self._attempts[attempt]
                run.avoid = self
            self._contact.fence([attempt for attempt, _run in stalled], names_of(run for _attempt, run in stalled))
            cause = StreamLost(f"the stream stood still on replica {self.replica}", "stalled")
            self._on_orphans([run for _attempt, run in stalled], cause)
            self._freed()

    def _look_for_slow_clients(self) -> None:
        """Tell of streams of which too much waits for their clients."""
        unsent_max = self._settings.unsent_tokens_max
        if unsent_max:
            for run in [run for run in self._attempts.values() if is_behind(run, unsent_max)]:
                self._on_behind(self, run)

    def _suspect(self, now_s: float, suspicion: Suspicion, silence_s: float) -> None:
        """Move the streams elsewhere and route around it, but keep listening: it may be back in a moment."""
        self._suspected_s = now_s
        orphans = list(self._attempts.items())
        self._attempts.clear()
        self._on_probation = None
        self._on_suspicion(self, suspicion, silence_s, len(orphans))
        names = names_of(run for _attempt, run in orphans)
        incoming, more = self._incoming.drop()
        names += more
        self._contact.fence([*(attempt for attempt, _run in orphans), *incoming], names)
        # What is lost on the way, or with this connection, is told again over the next one.
        self._contact.fences.add(names)
        cause = StreamLost(f"replica {self.replica} is {suspicion}", suspicion)
        self._on_orphans([run for _attempt, run in orphans], cause)
        self._freed()

    def _trust(self, now_s: float) -> None:
        suspected_s, self._suspected_s = self._suspected_s, None
        if suspected_s is not None:
            self._contact.fences.clear()
            self._on_trust(self, now_s - suspected_s)
            self._on_capacity(self)

    # --- callbacks --------------------------------------------------------------------------------------

    def _on_body(self, connection: Connection, body: bytes) -> None:
        frame = decode_from_replica(body)
        if type(frame) is Step:
            self.stepped_s = connection.last_received_s
            self._on_step(frame)
        elif isinstance(frame, Heartbeat):
            self._on_heartbeat(connection, frame)
        elif isinstance(frame, Admitted):
            self._on_admitted(frame)
        elif isinstance(frame, Refused):
            self._on_refused(frame)
        elif isinstance(frame, Found):
            self._questions.pop(frame.question, _nothing)(frame)
        elif isinstance(frame, Welcome):
            self._contact.welcome(connection, frame)
            self.info = frame.info
            self.pressure.introduced(frame.info)

    def _on_admitted(self, frame: Admitted) -> None:
        handover = self._incoming.take(frame.attempt)
        if handover is not None:
            handover.admitted(self, frame.attempt, frame.prompt_tokens)
            return
        run = self._attempts.get(frame.attempt)
        if run is not None:
            run.waiting_since_s = None
            run.was_held = False
            run.stream.admitted(frame.prompt_tokens)
            self.pressure.taken_in(run, frame.prompt_tokens)

    def _on_step(self, step: Step) -> None:
        attempts = self._attempts
        deliver(step, attempts)
        for attempt, reason in step.finished:
            run = attempts.pop(attempt, None)
            if run is not None:
                self.record.finished(run)
                run.finished(reason)
        if self._on_probation is not None:
            self._end_probation(self._on_probation)
        if step.finished:
            self._freed()

    def _end_probation(self, run: StreamRun) -> None:
        """Once it has brought a token, or is not here any more, the next suspect may begin."""
        if run.stream.proven or run.link is not self:
            self._on_probation = None
            self._on_capacity(self)

    def _on_heartbeat(self, connection: Connection, beat: Heartbeat) -> None:
        self._contact.heard(connection, beat)
        self._stalls.beat(beat.barren)
        if self._suspected_s is not None and self._contact.suspicion is None:
            self._trust(connection.last_received_s)
        had_room = self.room
        self.pressure.reported(beat.load, self._taken, beat.pace)
        self._draining = beat.draining
        if beat.dismissed:
            self._on_dismissed(self)
        was_full, self._full = self._full, False
        if was_full or (self.room and not had_room):
            self._on_capacity(self)

    def _on_refused(self, frame: Refused) -> None:
        handover = self._incoming.take(frame.attempt)
        if handover is not None:
            self._full = self._full or frame.retry
            handover.failed()
            return
        run = self._attempts.pop(frame.attempt, None)
        if run is None:
            return
        if frame.code == UNKNOWN_STREAM:
            run.stream.postponed()
            self._on_orphans([run], StreamLost(f"replica {self.replica}: {frame.message}"))
        elif frame.retry:
            # It has no room just now: nothing more goes there until it told its load again.
            self._full = True
            run.stream.postponed()
            self._on_turned_away(run)
        else:
            run.refused(RequestRefused(frame.message, code=frame.code, param=frame.param))
        self._freed()

    def _on_cut(self) -> None:
        """The connection is dropped: its streams are orphans now."""
        self.pressure.forget()
        self._full = False
        self._on_probation = None
        orphans = list(self._attempts.values())
        self._attempts.clear()
        self._contact.fences.add(names_of(orphans) + self._incoming.drop()[1])
        questions, self._questions = self._questions, {}
        for answer in questions.values():
            answer(None)
        if orphans:
            self._on_orphans(orphans, StreamLost(f"replica {self.replica} was lost"))

    def _freed(self) -> None:
        if self._on_probation is not None and self._on_probation.link is not self:
            self._on_probation = None
        if self.retired and not self._attempts:
            self._contact.rouse()
        self._on_capacity(self)
