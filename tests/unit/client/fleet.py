"""Gateways without a network: a whole answer, and for each try the fault that it meets. In virtual time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from holdfast.gateway.client.budget import RetryBudget
from holdfast.gateway.client.errors import ClientError
from holdfast.gateway.client.events import Event
from holdfast.gateway.client.gateways import Gateways
from holdfast.gateway.client.machine import Call, CallMachine, Shared
from holdfast.gateway.client.policy import RetryPolicy
from holdfast.gateway.client.setup import CHAT
from holdfast.gateway.client.steps import (
    Answered,
    Begin,
    Deliver,
    Delivered,
    Drain,
    Ended,
    Fail,
    Failed,
    Finish,
    Happening,
    Open,
    Pause,
    Read,
    Received,
    Step,
    Woke,
)

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
RESPONSE_ID = "chatcmpl-1"


@dataclass(frozen=True)
class Sent:
    """An event as a gateway sends it."""

    id: str
    data: dict[str, Any] | str
    ends_choice: bool = False

    def bytes(self) -> bytes:
        data = self.data if isinstance(self.data, str) else json.dumps(self.data)
        return f"id: {self.id}\ndata: {data}\n\n".encode()


def answer(tokens: int = 5, choices: int = 1, *, usage: bool = True) -> list[Sent]:
    """All events of a chat's answer, the choices in turn, each longer by one. Nearly all tokens are alike."""
    counts = [0] * choices
    sent: list[Sent] = []

    def add(data: dict[str, Any] | str, ends_choice: bool = False) -> None:
        sent.append(Sent(f"{RESPONSE_ID}:{','.join(map(str, counts))}", data, ends_choice))

    def chunk(index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        return {"id": RESPONSE_ID, "choices": [choice], "usage": None}

    for index in range(choices):
        add(chunk(index, {"role": "assistant", "content": ""}))
    for number in range(tokens + choices):
        for index in range(choices):
            if number < tokens + index:
                counts[index] += 1
                add(chunk(index, {"content": "\u2028é" if number == 2 else "a"}))
            elif number == tokens + index:
                add(chunk(index, {}, "length"), ends_choice=True)
    if usage:
        add({"id": RESPONSE_ID, "choices": [], "usage": {"completion_tokens": sum(counts)}})
    add("[DONE]")
    return sent


def datas(sent: list[Sent]) -> list[dict[str, Any]]:
    """What a client is to be given of these."""
    return [event.data for event in sent if isinstance(event.data, dict)]


def continued(sent: list[Sent], last_id: str | None) -> list[Sent]:
    """What a gateway sends behind an id: what follows its token. Which of the events that bring none the client has
    it can't know, so it repeats the ends of choices, too."""
    if last_id is None:
        return sent
    at = next(index for index, event in enumerate(sent) if event.id == last_id)
    return [replace(event, id=last_id) for event in sent[:at] if event.ends_choice] + sent[at + 1 :]


@dataclass(frozen=True)
class Fault:
    """What a try meets. `at` is the byte of the answer's body at which it ends, for the kinds that begin one."""

    kind: Literal["connect", "silent", "status", "cut", "polite_end", "stall", "error_event", "none"]
    at: int = 0
    status: int = 503
    code: str = "stream_lost"
    retry_after: str | None = None


@dataclass
class Run:
    """One call's history. `fruitful` tells of each try whether it brought events."""

    call: CallMachine
    shared: Shared
    events: list[Event] = field(default_factory=list)
    opens: list[Open] = field(default_factory=list)
    fruitful: list[bool] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    error: ClientError | None = None
    finished: bool = False
    elapsed_s: float = 0.0


def shared_of(policy: RetryPolicy, gateways: int = 2, rand: Callable[[], float] = lambda: 0.0) -> Shared:
    """What a client's calls share."""
    urls = [f"http://g{index}" for index in range(gateways)]
    budget = RetryBudget(ratio=policy.budget_ratio, per_s=policy.budget_per_s, burst=policy.budget_burst, now=0.0)
    found = Gateways(urls, penalty_s=policy.gateway_penalty_s, sticky=False)
    return Shared(policy, found, budget, rand)


class Fleet:
    """Meets one call's steps with the faults of a schedule; tries beyond it meet none."""

    def __init__(self, sent: list[Sent], faults: list[Fault], sizes: list[int], tick_s: float = 0.0) -> None:
        self._sent = sent
        self._faults = iter(faults)
        self._sizes = sizes or [1 << 20]
        self._tick_s = tick_s
        self._body: Iterator[Happening] = iter(())
        self.now = 0.0

    def run(self, shared: Shared, last_event_id: str = "", deadline_s: float | None = None) -> Run:
        deadline = shared.policy.deadline_s if deadline_s is None else deadline_s
        call = CallMachine(Call(CHAT, b"{}", "req_1", True, deadline, last_event_id), shared)
        run = Run(call, shared)
        began = self.now
        happening: Happening = Begin()
        for _ in range(1_000_000):
            step = call.on(happening, self.now)
            if isinstance(step, Finish | Fail):
                run.finished = isinstance(step, Finish)
                run.error = step.error if isinstance(step, Fail) else None
                run.elapsed_s = self.now - began
                return run
            happening = self._meet(step, run)
        raise AssertionError("the call has no end")

    def _meet(self, step: Step, run: Run) -> Happening:
        match step:
            case Open():
                run.opens.append(step)
                run.fruitful.append(False)
                return self._open(step)
            case Drain():
                return Ended()
            case Read(timeout_s):
                return self._read(timeout_s)
            case Pause(seconds):
                run.pauses.append(seconds)
                self.now += seconds
                return Woke()
            case Deliver(events):
                run.events.extend(events)
                run.fruitful[-1] = True
                return Delivered()
        raise AssertionError(step)

    def _open(self, step: Open) -> Happening:
        fault = next(self._faults, Fault("none"))
        self.now += min(self._tick_s, step.timeout_s)
        if fault.kind == "connect":
            return Failed("connect")
        if fault.kind == "silent":
            self.now += step.timeout_s
            return Failed("timeout")
        if fault.kind == "status":
            self._body = iter(())
            return Answered(fault.status, {"retry-after": fault.retry_after} if fault.retry_after else {})
        self._body = self._pieces(continued(self._sent, step.headers.get("last-event-id")), fault)
        return Answered(200, EVENTS)

    def _read(self, timeout_s: float) -> Happening:
        happening = next(self._body, Ended())
        if happening == Failed("timeout"):
            self.now += timeout_s
        elif self._tick_s > timeout_s:
            self.now += timeout_s
            return Failed("timeout")
        self.now += self._tick_s
        return happening

    def _pieces(self, sent: list[Sent], fault: Fault) -> Iterator[Happening]:
        whole = b"".join(event.bytes() for event in sent)
        body = whole if fault.kind == "none" else whole[: fault.at % (len(whole) - len(b"data: [DONE]\n\n"))]
        if fault.kind == "error_event":
            body = body[: body.rfind(b"\n\n") + 2] if b"\n\n" in body else b""
        turn = 0
        while body:
            size = self._sizes[turn % len(self._sizes)]
            yield Received(body[:size])
            body, turn = body[size:], turn + 1
        match fault.kind:
            case "cut":
                yield Failed("broken")
            case "stall":
                yield Failed("timeout")
            case "error_event":
                yield Received(b'data: {"error": {"message": "lost thrice", "code": "%b"}}\n\n' % fault.code.encode())
