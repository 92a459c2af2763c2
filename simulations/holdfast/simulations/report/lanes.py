"""What is drawn of a run: lanes of marks over virtual time, without a word yet about how that looks."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from holdfast.actors.identity import CUT_OFF, ENDED, LEADER_KEY, parse_holder
from holdfast.core import events as ev
from holdfast.core.cluster import ReplicaStatus
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.history import History
from holdfast.simulations.records import (
    COMPLETE,
    GATEWAY,
    NODE,
    REPLICA,
    SERVER,
    TOKEN,
    Attempt,
    Fault,
    LeaseEvent,
    Process,
    Request,
)

TIP_LINES_MAX: Final = 14
"""So many lines of details a mark has at most."""

TARGET_MAX: Final = 16
"""So many characters of a fault's target stand beside its bar; a partition may name every host."""

_GAP_S: Final = 0.6
"""Marks that share a lane stand at least so far apart, in virtual seconds, so that both can be told apart."""


COLOURS: Final = 6
"""Leaders are told apart by so many colours, which then repeat."""

_LABEL_PART: Final = 0.005
"""A letter takes about this part of the drawing's width; labels that stand free must not run into the next mark."""


_POINT_PART: Final = 0.003
"""The least width of a bar that stands for a moment, as a part of the drawing's width."""


class Mark(msgspec.Struct, frozen=True):
    """Something on a lane: a bar from `from_s` to `until_s`, or a sign at `from_s` where that is None.

    `look` names how it is drawn, `label` stands in a bar (or from it on, if it is `free`), `tip` has the details, a
    line each.
    """

    from_s: float
    until_s: float | None
    look: str
    tip: str
    label: str = ""
    free: bool = False


class Lane(msgspec.Struct, frozen=True):
    """Marks in a row; later ones are drawn over earlier ones. `slim` lanes have no room for labels."""

    label: str
    marks: list[Mark]
    slim: bool = False


class Section(msgspec.Struct, frozen=True):
    """Lanes that belong together."""

    title: str
    lanes: list[Lane]


def sections(history: History) -> list[Section]:
    """Everything, in the order in which it is looked at: what broke, who led, who lived, what clients got."""
    log = final_log(history)
    every = [
        Section("Faults", list(_faults(history))),
        Section("Leaders", list(_leaders(history, log))),
        Section("Leases", list(_leases(history))),
        Section("Nodes and their replicas", list(_nodes(history, log))),
        Section("Gateways", list(_processes(history, GATEWAY))),
        Section("Servers", list(_processes(history, SERVER))),
        Section("Requests", [_request(request, history.ended_s) for request in history.requests]),
    ]
    return [section for section in every if section.lanes]


def span(history: History) -> float:
    """How long the drawing has to be, in virtual seconds."""
    return max(history.ended_s, 1.0)


def packed(label: str, marks: Iterable[Mark], ended_s: float) -> Iterator[Lane]:
    """As few lanes as hold these bars beside each other; the first has the label."""
    rows: list[list[Mark]] = []
    free_at: list[float] = []
    for mark in sorted(marks, key=lambda mark: mark.from_s):
        until_s = mark.until_s if mark.until_s is not None else mark.from_s
        row = next((row for row, free_s in enumerate(free_at) if free_s <= mark.from_s), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free_at.append(0.0)
        rows[row].append(mark)
        free_at[row] = max(until_s, mark.from_s + ended_s * _LABEL_PART * len(mark.label)) + _GAP_S
    for number, row_marks in enumerate(rows):
        yield Lane(label if number == 0 else "", row_marks)


def seconds(at_s: float | None) -> str:
    """A time as tips and tables show it."""
    return "-" if at_s is None else f"{at_s:.3f} s"


def _tip(*lines: str) -> str:
    shown = [line for line in lines if line]
    if len(shown) > TIP_LINES_MAX:
        shown[TIP_LINES_MAX - 1 :] = [f"and {len(shown) - TIP_LINES_MAX + 1} more"]
    return "\n".join(shown)


def _lasted(from_s: float, until_s: float | None) -> str:
    return f"{seconds(from_s)} to {seconds(until_s)}" if until_s is not None else f"from {seconds(from_s)}"


# --- faults ---------------------------------------------------------------------------------------------


def _faults(history: History) -> Iterator[Lane]:
    yield from packed("faults", (_fault(fault, history.ended_s) for fault in history.faults), history.ended_s)


def _fault(fault: Fault, ended_s: float) -> Mark:
    until_s = fault.until_s if fault.until_s is not None else ended_s
    tip = _tip(fault.kind, fault.target, _lasted(fault.from_s, fault.until_s), fault.details)
    # What is over at once is still to be seen.
    until_s = max(until_s, fault.from_s + ended_s * _POINT_PART)
    target = fault.target if len(fault.target) <= TARGET_MAX else f"{fault.target[:TARGET_MAX]}…"
    return Mark(fault.from_s, until_s, "fault", tip, f"{fault.kind} {target}", free=True)


# --- leaders --------------------------------------------------------------------------------------------


def _leaders(history: History, log: FinalLog) -> Iterator[Lane]:
    reigns = [
        (log.times[place], record.event.writer, record.event.epoch)
        for place, record in log.effective()
        if isinstance(record.event.payload, ev.LeaderElected)
    ]
    colours = {
        node: f"reign reign-{number % COLOURS}" for number, node in enumerate(sorted({who for _, who, _ in reigns}))
    }
    if reigns:
        yield Lane("in the log", list(_reigns(reigns, colours, history.ended_s)))
    yield from _terms(history, colours)
    decisions = [_decision(log.times[place], record) for place, record in log.effective()]
    if decisions:
        yield Lane("decisions", decisions)


def _reigns(reigns: list[tuple[float, str, int]], colours: dict[str, str], ended_s: float) -> Iterator[Mark]:
    ends = [at_s for at_s, _, _ in reigns[1:]] + [ended_s]
    for (at_s, node, epoch), until_s in zip(reigns, ends, strict=True):
        yield Mark(at_s, until_s, colours[node], _tip(f"{node}, epoch {epoch}", _lasted(at_s, until_s)), node)


def _terms(history: History, colours: dict[str, str]) -> Iterator[Lane]:
    """A lane for each node that held itself for the leader."""
    terms: dict[str, list[Mark]] = defaultdict(list)
    for term in history.terms:
        until_s = term.ended_s if term.ended_s is not None else history.ended_s
        lasted = _lasted(term.began_s, term.ended_s)
        tip = _tip(f"{term.node} holds itself for the leader", f"epoch {term.epoch}", lasted)
        look = colours.get(term.node, "reign")
        terms[term.node].append(Mark(term.began_s, until_s, look, tip, f"epoch {term.epoch}"))
    for node in sorted(terms):
        yield Lane(f"{node} leads", terms[node])


_DECISION_LOOKS: Final = {
    "LeaderElected": "elected",
    "ReplicaPlaced": "placed",
    "ReplicaReplaced": "placed",
    "ReplicaStopOrdered": "stopped",
    "NodeLost": "lost",
    "GatewayLost": "lost",
}


def _decision(at_s: float, record: ev.Record) -> Mark:
    name = ev.type_name(record.event.payload)
    payload = msgspec.to_builtins(record.event.payload)
    fields = (f"{key}: {value}" for key, value in payload.items() if key != "type" and isinstance(value, str | int))
    tip = _tip(f"{record.sequence} {name}", f"by {record.event.writer}, epoch {record.event.epoch}", *fields)
    return Mark(at_s, None, f"decision {_DECISION_LOOKS.get(name, '')}".rstrip(), tip)


# --- leases ---------------------------------------------------------------------------------------------

ENDS_OF_KEYS: Final = frozenset({"expired", "revoked", "deleted"})


def _leases(history: History) -> Iterator[Lane]:
    """A lane for each name that has keys on leases: a bar for as long as each key stood."""
    keys: dict[str, list[Mark]] = defaultdict(list)
    standing: dict[str, LeaseEvent] = {}
    for event in history.leases:
        if event.kind in ("created", "put") and event.lease:
            before = standing.setdefault(event.key, event)
            if before.lease != event.lease:
                _stood(keys, before, event.at_s, "hung on another lease")
                standing[event.key] = event
        elif event.kind in ENDS_OF_KEYS:
            gone = [
                key
                for key, began in standing.items()
                if key == event.key or (not event.key and began.lease == event.lease)
            ]
            for key in gone:
                _stood(keys, standing.pop(key), event.at_s, event.kind)
    for began in standing.values():
        _stood(keys, began, None, "")
    names = sorted(keys, key=lambda name: (name != LEADER_KEY, name))
    for name in names:
        yield Lane(name, [_until(mark, history.ended_s) for mark in keys[name]])


def _stood(keys: dict[str, list[Mark]], began: LeaseEvent, until_s: float | None, how: str) -> None:
    parts = began.key.strip("/").split("/")
    name = next((parts[at + 1] for at, part in enumerate(parts[:-1]) if part in ("nodes", "gateways")), parts[-1])
    if ENDED in parts or CUT_OFF in parts:
        return
    holder = _holder(began)
    tip = _tip(began.key, f"lease {began.lease:x}", holder, _lasted(began.at_s, until_s), how)
    label = holder if name == LEADER_KEY else parts[-1]
    keys[name].append(Mark(began.at_s, until_s, f"lease {how}" if how in ENDS_OF_KEYS else "lease", tip, label))
    if how == "expired" and until_s is not None:
        keys[name].append(Mark(until_s, None, "expiry", tip))


def _holder(event: LeaseEvent) -> str:
    """Who holds the key: its value tells, where that is a member's."""
    try:
        member = parse_holder(base64.b64decode(event.holder, validate=True))
    except ValueError:
        return event.holder
    return member.holder if member is not None else ""


def _until(mark: Mark, ended_s: float) -> Mark:
    return mark if mark.until_s is not None or mark.look == "expiry" else msgspec.structs.replace(mark, until_s=ended_s)


# --- processes ------------------------------------------------------------------------------------------


def _nodes(history: History, log: FinalLog) -> Iterator[Lane]:
    ready = {
        record.event.payload.replica: log.times[place]
        for place, record in enumerate(log.records)
        if isinstance(record.event.payload, ev.ReplicaReady)
    }
    suspected = _suspicions(log, history.ended_s)
    by_host: dict[str, list[Process]] = defaultdict(list)
    for process in history.processes:
        if process.role == REPLICA:
            by_host[process.host].append(process)
    for lane, host in _lives(history, NODE):
        yield lane
        replicas = by_host.pop(host, [])
        yield from _replicas(replicas, history.ended_s, ready, suspected)
    for host in sorted(by_host):
        yield from _replicas(by_host[host], history.ended_s, ready, suspected, host)


def _processes(history: History, role: str) -> Iterator[Lane]:
    for lane, _ in _lives(history, role):
        yield lane


def _lives(history: History, role: str) -> Iterator[tuple[Lane, str]]:
    """A lane for each name, with all its lives, and the host that it is on."""
    by_name: dict[str, list[Process]] = defaultdict(list)
    for process in history.processes:
        if process.role == role:
            by_name[process.name].append(process)
    for name in sorted(by_name):
        marks = [mark for process in by_name[name] for mark in _life(process, history.ended_s, role)]
        yield Lane(name, marks), by_name[name][-1].host


def _life(process: Process, ended_s: float, look: str) -> Iterator[Mark]:
    until_s = process.ended_s if process.ended_s is not None else ended_s
    how = ""
    if process.ended_s is not None:
        how = f"status {process.status}" + (f", ended by {process.by}" if process.by else "")
    tip = _tip(process.name, f"process {process.pid} on {process.host}", _lasted(process.began_s, process.ended_s), how)
    yield Mark(process.began_s, until_s, f"life {look}", tip, f"pid {process.pid}")
    for from_s, thawed_s in process.frozen:
        frozen_tip = _tip(f"{process.name} stands still", _lasted(from_s, thawed_s))
        yield Mark(from_s, min(until_s, thawed_s if thawed_s is not None else ended_s), "frozen", frozen_tip)
    if process.ended_s is not None:
        yield Mark(process.ended_s, None, "end" if process.status == 0 else "death", tip)


def _replicas(
    processes: list[Process],
    ended_s: float,
    ready: dict[str, float],
    suspected: dict[str, list[Mark]],
    host: str = "",
) -> Iterator[Lane]:
    """The replicas of a host, packed: each a bar, paler until it is ready."""
    rows: list[list[Mark]] = []
    free_at: list[float] = []
    for process in processes:
        until_s = process.ended_s if process.ended_s is not None else ended_s
        life, *rest = _life(process, ended_s, REPLICA)
        marks = [msgspec.structs.replace(life, label="")]
        ready_s = min(until_s, ready.get(process.replica, until_s))
        marks.append(Mark(process.began_s, ready_s, "starting", life.tip))
        if process.told_s is not None:
            marks.append(
                Mark(process.told_s, until_s, "draining", f"{life.tip}\ntold to stop at {process.told_s:.3f} s")
            )
        marks += [*rest, *suspected.get(process.replica, ())]
        marks.append(Mark(process.began_s, until_s, "label", "", process.replica))
        row = next((row for row, free_s in enumerate(free_at) if free_s + _GAP_S <= process.began_s), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free_at.append(0.0)
        rows[row] += marks
        free_at[row] = until_s
    for number, row_marks in enumerate(rows):
        yield Lane(f"  {host or 'replicas'}" if number == 0 else "", row_marks)


def _suspicions(log: FinalLog, ended_s: float) -> dict[str, list[Mark]]:
    """For each replica, when gateways suspected it: until they trust it, or it is gone from the log."""
    found: dict[str, list[Mark]] = defaultdict(list)
    since: dict[tuple[str, str], tuple[float, str]] = {}
    for place, record in enumerate(log.records):
        payload, at_s = record.event.payload, log.times[place]
        if isinstance(payload, ev.ReplicaSuspected):
            since.setdefault((payload.replica, payload.gateway), (at_s, payload.reason))
        replicas = log.states[place + 1].replicas
        for key in list(since):
            known = replicas.get(key[0])
            if known is None or known.status is ReplicaStatus.EXITED or key[1] not in known.suspected_by:
                _suspected(found, since, key, at_s)
    for key in list(since):
        _suspected(found, since, key, ended_s)
    return found


def _suspected(
    found: dict[str, list[Mark]], since: dict[tuple[str, str], tuple[float, str]], key: tuple[str, str], until_s: float
) -> None:
    if key in since:
        at_s, reason = since.pop(key)
        tip = _tip(f"{key[0]} is suspected by {key[1]}", reason, _lasted(at_s, until_s))
        found[key[0]].append(Mark(at_s, until_s, "suspected", tip))


# --- requests -------------------------------------------------------------------------------------------


def _request(request: Request, run_ended_s: float) -> Lane:
    ended_s = request.ended_s if request.ended_s is not None else run_ended_s
    first_s = min(ended_s, request.first_s if request.first_s is not None else ended_s)
    tip = _request_tip(request)
    marks = [Mark(request.asked_s, first_s, "waiting", tip)]
    if first_s < ended_s:
        marks.append(Mark(first_s, ended_s, f"streaming {request.how}", tip))
    marks += [
        Mark(attempt.at_s, None, "moved", f"moved to {attempt.replica}, after {attempt.accepted} tokens\n{tip}")
        for attempt in moves(request)
    ]
    marks += [
        Mark(sent.at_s, None, "resumed" if sent.resumes else "again", f"sent again, to {sent.gateway}\n{tip}")
        for sent in request.tries[1:]
    ]
    marks.append(Mark(ended_s, None, f"outcome {request.how or 'open'}", tip))
    return Lane(f"{request.id}", marks, slim=True)


def moves(request: Request) -> list[Attempt]:
    """The attempts behind the first one of each choice."""
    return request.attempts[request.n :]


def _request_tip(request: Request) -> str:
    tokens = sum(kind == TOKEN for kind, *_ in request.events)
    form = ("chat" if request.chat else "completion") + ("" if request.streamed else ", not streamed")
    choices = f", {request.n} choices" if request.n > 1 else ""
    error = f" {request.status or ''} {request.code}".rstrip() if request.how != COMPLETE else ""
    return _tip(
        f"request {request.id}: {form}{choices}, {request.max_tokens or 'no limit of'} tokens asked for",
        f"{request.how or 'no end'}{error}, {tokens} tokens delivered",
        f"asked {seconds(request.asked_s)}, first {seconds(request.first_s)}, ended {seconds(request.ended_s)}",
        *(f"{seconds(sent.at_s)} sent to {sent.gateway} {sent.resumes}".rstrip() for sent in request.tries),
        *(
            f"{seconds(attempt.at_s)} on {attempt.replica}, from token {attempt.accepted}"
            for attempt in request.attempts
        ),
    )
