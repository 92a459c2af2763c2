"""What happened in a run, as plain records: what checkers judge, and what the report draws.

All times are true virtual seconds since the run began, whatever the clock of the process in question says.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.core.cluster import ClusterState

NODE: Final = "node"
GATEWAY: Final = "gateway"
REPLICA: Final = "replica"
SERVER: Final = "server"
"""Roles of processes. `SERVER` is one of the log or of the leases. Others (clients, operators) are free."""

COMPLETE: Final = "complete"
ERROR: Final = "error"
UNREACHED: Final = "unreached"
CANCELLED: Final = "cancelled"
"""How a request ended, as its client saw it. `ERROR`: an answer of the API, or an event in the stream. `UNREACHED`: the
client gave up by itself, at its deadline or after its tries, on connections that failed or were silent. `CANCELLED`:
it went away because it wanted to."""

STREAMS_MIN: Final = 3
"""So many streams run at once on each replica, whatever is drawn for its engine, where gateways may begin so many."""

POISONED: Final = "poisoned request"
"""The kind of fault that a request is which breaks each engine that takes it in."""

STOP: Final = "stop"
KILL: Final = "kill"
"""How requests are cancelled by their ids."""

TOKEN: Final = "token"
ROLE: Final = "role"
FINISH: Final = "finish"
USAGE: Final = "usage"
WHOLE: Final = "whole"
"""Kinds of events that a client gets of a stream; `WHOLE` is one choice's text of an answer that is not streamed."""


class Process(msgspec.Struct, gc=False):
    """One life of a process. `pid` is unique within the run.

    `replica` is the replica that it runs, `parent` the process id of the node process that started it. `status` is the
    exit status as a parent sees it (`-9` after SIGKILL), None while it lives. `by` says who ended it (a fault, its
    node, a service manager), and is empty when it ended by itself. `frozen` has (from, until) for each time that it
    stood still; `until` is None while it does. A replica's `told_s` is when it got the signal to stop, with `grace_s`
    to finish its streams; `streams_left` is how many its engine still had when it ended.
    """

    name: str
    role: str
    host: str
    pid: int
    began_s: float
    replica: str = ""
    parent: int = 0
    ended_s: float | None = None
    status: int | None = None
    by: str = ""
    frozen: list[tuple[float, float | None]] = []
    told_s: float | None = None
    grace_s: float = 0.0
    streams_left: int = 0

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.ended_s is None

    def told(self, at_s: float, grace_s: float) -> None:
        """It is told to stop (SIGTERM), and may finish its streams for so long. Only the first time counts."""
        if self.told_s is None:
            self.told_s, self.grace_s = at_s, grace_s

    def ended(self, at_s: float, status: int, by: str = "", *, streams_left: int = 0) -> None:
        """It ended."""
        self.ended_s, self.status, self.by, self.streams_left = at_s, status, by, streams_left

    def froze(self, at_s: float) -> None:
        """It stands still from now on (SIGSTOP)."""
        self.frozen.append((at_s, None))

    def thawed(self, at_s: float) -> None:
        """It goes on (SIGCONT). Does nothing when it did not stand still."""
        if self.frozen and self.frozen[-1][1] is None:
            self.frozen[-1] = (self.frozen[-1][0], at_s)


class Appended(msgspec.Struct, frozen=True, gc=False):
    """An entry that the log's servers took in."""

    at_s: float
    sequence: int
    subject: str
    data: bytes
    message_id: str


class Lost(msgspec.Struct, frozen=True, gc=False):
    """The servers lost all entries above `after`: a power failure. Sequences go on from there.

    `appended` is how many entries had been appended until then, which puts this in order with them.
    """

    at_s: float
    after: int
    appended: int


class Acknowledged(msgspec.Struct, frozen=True, gc=False):
    """A process was told that its entry stands in the log, for good, at this sequence."""

    at_s: float
    process: str
    message_id: str
    sequence: int


class LeaseEvent(msgspec.Struct, frozen=True, gc=False):
    """What happened to a lease or to a key on it.

    Kinds: granted, kept, expired, revoked (of leases); created, put, deleted (of keys). Zero and empty: does not apply.
    Keys are the server's, prefix included; `holder` is the key's value in base64. Kind lost: all above this revision is
    gone, with the disks of too many members.
    """

    at_s: float
    kind: str
    lease: int = 0
    key: str = ""
    revision: int = 0
    holder: str = ""


class Term(msgspec.Struct, gc=False):
    """A node incarnation's time as the leader, as its controller saw it."""

    node: str
    incarnation: str
    epoch: int
    began_s: float
    ended_s: float | None = None


class Fault(msgspec.Struct, gc=False):
    """An injected fault. `target` is a process's name, a host, a link (`a>b`) or a deployment.

    `until_s` is when it was healed; None while it lasts. One that is over at once has `from_s`. `struck` is False where
    it turned out to have done nothing: nobody asked for what would have failed.
    """

    kind: str
    target: str
    from_s: float
    until_s: float | None = None
    details: str = ""
    struck: bool = True


class Folded(msgspec.Struct, frozen=True):
    """The state that a process had folded from the log. States are never changed, so this is no copy."""

    at_s: float
    actor: str
    state: ClusterState


class Sample(msgspec.Struct, gc=False):
    """The largest size that a queue, a buffer or the like was seen with, and its bound at that time."""

    actor: str
    name: str
    size: int
    bound: int
    at_s: float


class Reach(msgspec.Struct, frozen=True):
    """The replicas that a gateway could send streams to."""

    at_s: float
    gateway: str
    replicas: tuple[str, ...]


class Unhandled(msgspec.Struct, frozen=True, gc=False):
    """An exception that nobody handled: one that ended a process, or one of a task or callback that nobody read."""

    at_s: float
    process: str
    text: str


class Note(msgspec.Struct, frozen=True, gc=False):
    """Something worth telling in a narration."""

    at_s: float
    actor: str
    text: str


class Try(msgspec.Struct, gc=False):
    """A request as sent once, to a gateway. `resumes` is the `Last-Event-ID` that went with it, `rejected` why it was
    rejected, if it was. `cut`: the connection broke behind the answer's status, before its end.
    """

    at_s: float
    gateway: str
    resumes: str = ""
    rejected: str = ""
    cut: bool = False


class Exchange(msgspec.Struct, gc=False):
    """A request for tokens as a gateway's process (by its id) has it. `due_s` is by when that must have ended it: after
    its own time limit, and what a client may take for the last write. `sent_away_s` is when its client was told in
    the middle of a stream to go on at another gateway, as this one ends. `request` is the number that the client says
    (-1: none); at `lost_s` it was told that a replica was lost, and the stream with it.
    """

    pid: int
    began_s: float
    due_s: float
    ended_s: float | None = None
    sent_away_s: float | None = None
    request: int = -1
    lost_s: float | None = None


class Begun(msgspec.Struct, frozen=True, gc=False):
    """A gateway's process (by its id) began a stream at a replica, or took it over there: the frame was sent. Either
    `prompt` says whose it is, or the answer's `response_id`. The replica was told that it may take `timeout_s`.
    """

    at_s: float
    pid: int
    timeout_s: float
    prompt: str = ""
    response_id: str = ""


class Attempt(msgspec.Struct, gc=False):
    """A replica's engine took the stream in, to go on after `accepted` tokens. At `last_s` it drew its last one.

    `finished`: it had no more to draw.
    """

    at_s: float
    replica: str
    accepted: int
    last_s: float = 0.0
    finished: bool = False


class Cancellation(msgspec.Struct, gc=False):
    """Somebody cancels a request by its number, with `STOP` or `KILL`. At `told_s` a gateway said that it is done."""

    at_s: float
    request: int
    mode: str
    told_s: float | None = None


class ThresholdChange(msgspec.Struct, frozen=True, gc=False):
    """A gateway said that a model's threshold is what was asked for; None: that it is not set any more."""

    at_s: float
    model: str
    threshold: str
    value: float | None


class Request(msgspec.Struct):
    """What a client asked, and all that it got.

    `prompt` is what the engine sees (`prompt_text`); it must be unique within the run. `seed` is None where the gateway
    draws it, `max_tokens` 0 where there is no limit. `deadline_s` is by when an end must have come. One that is
    `poisoned` breaks engines. `stood_still` has (when, on which replica) an engine lost it without a word.
    It belongs to the request with the number `parent` (-1: to none), and asks gateways for no more than `timeout_s`
    (0: does not). Its client took nothing, or was away, for `paused_s`. One that `leaves_openly` closes its connection.
    `priority`: as sent.

    `events` are (kind, choice, text, event id), in the order in which they came; the text of a `FINISH` is its reason.
    """

    id: int
    model: str
    prompt: str
    asked_s: float
    deadline_s: float
    seed: int | None = None
    max_tokens: int = 0
    n: int = 1
    stops: tuple[str, ...] = ()
    streamed: bool = True
    chat: bool = False
    wants_usage: bool = False
    poisoned: bool = False
    stood_still: list[tuple[float, str]] = []
    parent: int = -1
    timeout_s: float = 0.0
    paused_s: float = 0.0
    leaves_openly: bool = True
    priority: str = ""
    response_id: str = ""
    tries: list[Try] = []
    attempts: list[Attempt] = []
    events: list[tuple[str, int, str, str]] = []
    usage: tuple[int, int] | None = None
    first_s: float | None = None
    last_s: float | None = None
    ended_s: float | None = None
    how: str = ""
    code: str = ""
    status: int = 0

    def sent(self, at_s: float, gateway: str, resumes: str = "") -> None:
        """The client sends it, for the first time or again."""
        self.tries.append(Try(at_s, gateway, resumes))

    def got(self, at_s: float, kind: str, choice: int, text: str, event_id: str = "") -> None:
        """An event came, or a whole choice."""
        self.events.append((kind, choice, text, event_id))
        if self.first_s is None:
            self.first_s = at_s
        self.last_s = at_s

    def told_usage(self, at_s: float, prompt_tokens: int, completion_tokens: int, event_id: str = "") -> None:
        """The usage came. A second one is noted as an event too many."""
        self.got(at_s, USAGE, 0, "", event_id)
        self.usage = (prompt_tokens, completion_tokens)

    def ended(self, at_s: float, how: str, code: str = "", status: int = 0) -> None:
        """It is over for the client. `code` and `status` are an error's; status 0: it came as an event in the stream.

        The end must be told once: a second one is kept as an event of its kind, for the checkers.
        """
        if self.how:
            self.events.append((how, 0, code, ""))
            return
        self.ended_s, self.how, self.code, self.status = at_s, how, code, status


class Settle(msgspec.Struct, frozen=True):
    """From `began_s` on no fault is injected that matters to the goal, which must be reached within `bound_s`.

    `core`: the nodes and gateways (process names) that are healthy and can reach each other and the servers; empty for
    all, which is when all faults have healed.
    """

    began_s: float
    bound_s: float
    core: tuple[str, ...] = ()
