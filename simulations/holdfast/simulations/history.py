"""The history of a run: it takes in what happens, as records that the checkers judge.

Recording is cheap: it appends a small record, copies nothing and formats nothing. All times are true virtual seconds
since the run began, whatever the clock of the process in question says. Who records keeps the record that
`process_began` and the like return, and tells it what becomes of it.
"""

from __future__ import annotations

from typing import Any

from holdfast.core.cluster import ClusterState
from holdfast.simulations.leniency import Limits, Passing, Retry
from holdfast.simulations.records import (
    STREAMS_MIN,
    Acknowledged,
    Appended,
    Attempt,
    Begun,
    Cancellation,
    Exchange,
    Fault,
    Folded,
    LeaseEvent,
    Lost,
    Note,
    Process,
    Reach,
    Request,
    Sample,
    Settle,
    Term,
    ThresholdChange,
    Unhandled,
)
from holdfast.simulations.strays import Look, Stray


class History:
    """Everything recorded of one run.

    `narrating` tells whether notes are wanted: ask it before a text is put together.
    `move_bound_s` is how long a stream may stay on a replica that stands still, `stall_bound_s` on one whose engine
    lost it, `barren_bound_s` on one that makes nothing; 0: nothing is asked. `node_waits_s` is for how long a node
    that is told to stop waits to be relieved where somebody may do so. `room_min` is how many streams each replica
    takes at least, `first_token_s` how long the first token of one takes there at most, and `token_s` each.
    `attempts_max` is how often a gateway may begin a stream, and `limits` are its settings for passing replicas over
    and trying again; None: nothing is asked. `ended_s` is when the run was
    over, and `broken` why, if it raised. `derived` is for checkers that keep what they have worked out.
    """

    def __init__(self, *, narrating: bool = False) -> None:
        self.narrating = narrating
        self.move_bound_s = 0.0
        self.stall_bound_s = 0.0
        self.barren_bound_s = 0.0
        self.node_waits_s = 0.0
        self.room_min = STREAMS_MIN
        self.first_token_s = 0.0
        self.token_s = 0.0
        self.attempts_max: int | None = None
        self.limits: Limits | None = None
        self.processes: list[Process] = []
        self.appended: list[Appended] = []
        self.lost: list[Lost] = []
        self.acknowledged: list[Acknowledged] = []
        self.leases: list[LeaseEvent] = []
        self.terms: list[Term] = []
        self.requests: list[Request] = []
        self.exchanges: list[Exchange] = []
        self.begun: list[Begun] = []
        self.cancellations: list[Cancellation] = []
        self.threshold_changes: list[ThresholdChange] = []
        self.faults: list[Fault] = []
        self.folded: list[Folded] = []
        self.samples: dict[tuple[str, str], Sample] = {}
        self.reaches: list[Reach] = []
        self.strays: list[Stray] = []
        self.passings: list[Passing] = []
        self.retries: list[Retry] = []
        self.looks: list[Look] = []
        self.unhandled: list[Unhandled] = []
        self.notes: list[Note] = []
        self.settle: Settle | None = None
        self.ended_s = 0.0
        self.broken = ""
        self.derived: dict[str, Any] = {}
        self._by_prompt: dict[str, Request] = {}

    def broke_off(self, at_s: float, why: str) -> None:
        """The run raised: it is over, and there is nothing to be judged but that."""
        self.ended_s, self.broken, self.settle = at_s, why, None

    def process_began(
        self, at_s: float, name: str, role: str, host: str, pid: int, *, replica: str = "", parent: int = 0
    ) -> Process:
        """A process starts. Tell the record when it freezes, thaws and ends."""
        process = Process(name, role, host, pid, at_s, replica, parent)
        self.processes.append(process)
        return process

    def log_appended(self, at_s: float, sequence: int, subject: str, data: bytes, message_id: str) -> None:
        """The log's servers took an entry in. Not for duplicates that they recognised."""
        self.appended.append(Appended(at_s, sequence, subject, data, message_id))

    def log_lost(self, at_s: float, after: int) -> None:
        """The log's servers lost all entries above `after`."""
        self.lost.append(Lost(at_s, after, len(self.appended)))

    def log_acknowledged(self, at_s: float, process: str, message_id: str, sequence: int) -> None:
        """A process was told where its entry stands."""
        self.acknowledged.append(Acknowledged(at_s, process, message_id, sequence))

    def lease_event(
        self, at_s: float, kind: str, lease: int = 0, key: str = "", revision: int = 0, holder: str = ""
    ) -> None:
        """Something happened to a lease or a key; see `LeaseEvent`."""
        self.leases.append(LeaseEvent(at_s, kind, lease, key, revision, holder))

    def term_began(self, at_s: float, node: str, incarnation: str, epoch: int) -> Term:
        """A controller leads. Set `ended_s` of the record when it does no longer."""
        term = Term(node, incarnation, epoch, at_s)
        self.terms.append(term)
        return term

    def request(self, request: Request) -> Request:
        """A client asks. Tell the record what comes."""
        self.requests.append(request)
        self._by_prompt[request.prompt] = request
        return request

    def exchange(self, at_s: float, pid: int, due_s: float) -> Exchange:
        """A gateway begins to serve a request. Set `ended_s` of the record when it is done with it."""
        exchange = Exchange(pid, at_s, due_s)
        self.exchanges.append(exchange)
        return exchange

    def stream_begun(self, at_s: float, pid: int, timeout_s: float, *, prompt: str = "", response_id: str = "") -> None:
        """A gateway sent the frame that begins a stream at a replica, or takes it over."""
        self.begun.append(Begun(at_s, pid, timeout_s, prompt, response_id))

    def cancellation(self, at_s: float, request: int, mode: str) -> Cancellation:
        """Somebody cancels a request. Set `told_s` of the record once that is said to be done."""
        cancellation = Cancellation(at_s, request, mode)
        self.cancellations.append(cancellation)
        return cancellation

    def threshold_changed(self, at_s: float, model: str, threshold: str, value: float | None) -> None:
        """Somebody was told that a change of thresholds holds."""
        self.threshold_changes.append(ThresholdChange(at_s, model, threshold, value))

    def attempt(self, at_s: float, replica: str, prompt: str, accepted: int) -> Attempt:
        """A replica's engine took a stream in. Set `last_s` of the record with each token.

        Those of prompts of no recorded request are not kept.
        """
        attempt = Attempt(at_s, replica, accepted)
        request = self._by_prompt.get(prompt)
        if request is not None:
            request.attempts.append(attempt)
        return attempt

    def stream_stands_still(self, at_s: float, replica: str, prompt: str) -> None:
        """A replica's engine makes no more tokens for a stream, and does not say so."""
        request = self._by_prompt.get(prompt)
        if request is not None:
            request.stood_still.append((at_s, replica))

    def fault(self, at_s: float, kind: str, target: str, details: str = "", until_s: float | None = None) -> Fault:
        """A fault is injected. Set `until_s` of the record when it is healed."""
        fault = Fault(kind, target, at_s, until_s, details)
        self.faults.append(fault)
        return fault

    def state_folded(self, at_s: float, actor: str, state: ClusterState) -> None:
        """What a process has folded just now. A few times a run for each is enough, and once at its end."""
        self.folded.append(Folded(at_s, actor, state))

    def sample(self, at_s: float, actor: str, name: str, size: int, bound: int) -> None:
        """How large something is that is bounded. Only the largest part of its bound is kept."""
        known = self.samples.get((actor, name))
        if known is None:
            self.samples[actor, name] = Sample(actor, name, size, bound, at_s)
        elif size - bound > known.size - known.bound:
            known.size, known.bound, known.at_s = size, bound, at_s

    def stray(self, at_s: float, what: str, replica: str, gateway: str) -> Stray:
        """A stream is astray. Set `until_s` of the record for as long as each look sees it so."""
        stray = Stray(what, replica, gateway, at_s, at_s)
        self.strays.append(stray)
        return stray

    def looked_at(self, at_s: float, what: str, replica: str, gateway: str) -> None:
        """A stream was compared on both sides, whether it is astray or not."""
        self.looks.append(Look(at_s, what, replica, gateway))

    def gateway_reaches(self, at_s: float, gateway: str, replicas: tuple[str, ...]) -> None:
        """The replicas that a gateway can send streams to. Tell all while settling, several times a second."""
        self.reaches.append(Reach(at_s, gateway, replicas))

    def not_handled(self, at_s: float, process: str, text: str) -> None:
        """An exception that nobody handled."""
        self.unhandled.append(Unhandled(at_s, process, text))

    def note(self, at_s: float, actor: str, text: str) -> None:
        """Something worth telling; dropped unless the run is narrated."""
        if self.narrating:
            self.notes.append(Note(at_s, actor, text))
