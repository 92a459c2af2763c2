"""Histories made by hand: a run in which all goes well, to be spoilt in one place by each test."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from holdfast.actors.identity import DECISIONS
from holdfast.core import events as ev
from holdfast.core.entries import GENESIS, SCHEMA_VERSION, digest, encode_event
from holdfast.core.events import Decision, Event, Fact
from holdfast.core.requests import EngineInfo
from holdfast.simulations.checkers import CHECKERS, Violation, check_all
from holdfast.simulations.checkers.streams import due_of
from holdfast.simulations.history import History
from holdfast.simulations.records import (
    COMPLETE,
    FINISH,
    GATEWAY,
    NODE,
    REPLICA,
    ROLE,
    TOKEN,
    WHOLE,
    Process,
    Request,
    Settle,
)
from tests.unit.support.history import application
from tests.unit.support.virtual_time import EPOCH

INFO = EngineInfo("tiny", 2048, 64, 8, True, "none")
EPOCH_1 = 10
SEED = 77
RESPONSE_ID = f"chatcmpl-{'ab' * 8}{SEED:016x}"


class Run:
    """A history in the making. `at_s` is when the next thing happens; entries chain by themselves."""

    def __init__(self) -> None:
        self.history = History()
        self.at_s = 0.0
        self.leader = ("node-1", "i1")
        self._heads: dict[str, str] = {}
        self._sequence = 0
        self._count = 0
        self.processes: dict[str, Process] = {}

    def fact(self, fact: Fact, by: str, incarnation: str = "i1", **changes: Any) -> int:
        """A fact of `node.node-1`, say; its sequence."""
        return self.append(f"facts.{by}", self.event(fact, by.partition(".")[2], incarnation), **changes)

    def decide(self, decision: Decision, *, epoch: int = EPOCH_1, by: tuple[str, str] | None = None) -> int:
        """A decision of the leader, or of another; its sequence."""
        name, incarnation = by or self.leader
        return self.append(DECISIONS, self.event(decision, name, incarnation, epoch))

    def wish(self, wish: Fact) -> str:
        """An operator's wish; its event."""
        self.fact(wish, "operator.op")
        return self.history.appended[-1].message_id

    def grant(self, wish: str, decision: Decision) -> str:
        """The leader's decision on a wish; its event."""
        granted = msgspec.structs.replace(self.event(decision, *self.leader, EPOCH_1), cause=wish)
        self.append(DECISIONS, granted)
        return granted.id

    def event(self, payload: ev.Payload, writer: str, incarnation: str, epoch: int = 0) -> Event:
        """The payload in its envelope."""
        self._count += 1
        return Event(
            id=f"e{self._count}",
            time=EPOCH + timedelta(seconds=self.at_s),
            writer=writer,
            incarnation=incarnation,
            epoch=epoch,
            cause=None,
            schema=SCHEMA_VERSION,
            previous=GENESIS,
            payload=payload,  # type: ignore[arg-type]
        )

    def append(self, subject: str, event: Event, *, message_id: str = "", previous: str = "") -> int:
        """The event as the log's next entry, acknowledged to its writer."""
        previous = previous or self._heads.get(subject, GENESIS)
        data = encode_event(msgspec.structs.replace(event, previous=previous))
        self._heads[subject] = digest(data)
        self._sequence += 1
        self.history.log_appended(self.at_s, self._sequence, subject, data, message_id or event.id)
        self.history.log_acknowledged(self.at_s, event.writer, message_id or event.id, self._sequence)
        return self._sequence

    def node(self, name: str, pid: int, incarnation: str = "i1", slots: int = 2) -> None:
        """A node's process that joins."""
        self.processes[name] = self.history.process_began(self.at_s, name, NODE, f"host-{name}", pid)
        self.leased(f"nodes/{name}/{incarnation}", pid)
        self.fact(ev.NodeJoined(name, f"host-{name}", pid, "0", slots), f"node.{name}", incarnation)

    def gateway(self, name: str, pid: int) -> None:
        """A gateway's process that joins."""
        self.processes[name] = self.history.process_began(self.at_s, name, GATEWAY, f"host-{name}", pid)
        self.leased(f"gateways/{name}/i1", pid)
        self.fact(ev.GatewayJoined(name, "host", pid, f"http://{name}", "0"), f"gateway.{name}")

    def leased(self, key: str, lease: int) -> None:
        """A member's key on a lease of its own."""
        self.history.lease_event(self.at_s, "created", lease, f"/holdfast/c/{key}")

    def place(self, number: int, node: str, incarnation: str = "i1") -> str:
        """The decision that places the app's replica of this number."""
        name = f"app.tiny.{number}"
        self.decide(ev.ReplicaPlaced(name, "app", "tiny", node, incarnation))
        return name

    def starts(self, replica: str, node: str, pid: int) -> None:
        """The replica's process starts and gets ready."""
        parent = self.processes[node].pid
        self.processes[replica] = self.history.process_began(
            self.at_s, replica, REPLICA, f"host-{node}", pid, replica=replica, parent=parent
        )
        self.fact(ev.ReplicaStarted(replica, node, pid), f"node.{node}")
        self.fact(ev.ReplicaReady(replica, node, f"{node}:{pid}", INFO), f"node.{node}")


def well() -> Run:
    """Two nodes with a replica each and a gateway; some requests; all is well from 2 s on, and over at 30 s."""
    run = Run()
    run.node("node-1", 101)
    run.node("node-2", 102)
    run.history.lease_event(0.5, "created", 7, "/holdfast/c/leader", EPOCH_1, "node-1")
    run.at_s = 1.0
    run.decide(ev.LeaderElected("node-1", "i1"))
    run.gateway("gateway-1", 103)
    run.grant(run.wish(ev.DeployRequested(application(replicas=2))), ev.ApplicationDeployed(application(replicas=2)))
    for number, node in ((1, "node-1"), (2, "node-2")):
        run.starts(run.place(number, node), node, 110 + number)
    run.at_s = 2.0
    for number in range(3):
        run.history.request(answered(number))
    run.history.settle = Settle(10.0, 5.0)
    run.at_s = 12.0
    run.history.gateway_reaches(12.0, "gateway-1", ("app.tiny.1", "app.tiny.2"))
    run.history.ended_s = 30.0
    return run


def asked(number: int = 1, **changes: Any) -> Request:
    """A request for 5 tokens."""
    settings: dict[str, Any] = {"seed": SEED, "max_tokens": 5, "response_id": RESPONSE_ID, **changes}
    return Request(number, "tiny", f"question {number}: what holds fast", 3.0, 10.0, **settings)


def answered(number: int = 1, *, upto: int | None = None, **changes: Any) -> Request:
    """A request with all of its answer; or with the first `upto` tokens of each choice, and no end."""
    request = asked(number, **changes)
    request.sent(3.0, "gateway-1")
    counts = [0] * request.n

    def event_id() -> str:
        return f"{request.response_id}:{','.join(map(str, counts))}" if request.streamed else ""

    dues = due_of(request, SEED)
    for choice, due in enumerate(dues):
        if not request.streamed:
            request.got(4.0, WHOLE, choice, "".join(due.pieces))
        elif request.chat:
            request.got(4.0, ROLE, choice, "", event_id())
        for piece in due.pieces[:upto] if request.streamed else ():
            counts[choice] += 1
            request.got(4.0, TOKEN, choice, piece, event_id())
        if upto is None:
            request.got(4.0, FINISH, choice, due.finish, event_id())
    if upto is None:
        if request.wants_usage or not request.streamed:
            tokens = sum(len(due.pieces) for due in dues)
            request.told_usage(4.0, len(request.prompt.split()), tokens, event_id())
        request.ended(5.0, COMPLETE)
    return request


def broken(run: Run) -> list[Violation]:
    """All violations, once it is made sure that each checker finds on its own what they find together."""
    run.history.derived.clear()
    violations = check_all(run.history)
    alone = [
        violation
        for checker, things in CHECKERS.items()
        for violation in checker(run.history, dict.fromkeys(things, 0))
    ]
    assert violations == alone
    return violations


def only(violations: list[Violation], checker: str) -> str:
    """The messages, all of which must be this checker's; there must be one."""
    assert violations, f"{checker} found nothing"
    assert {violation.checker for violation in violations} == {checker}, violations
    return "\n".join(violation.message for violation in violations)
