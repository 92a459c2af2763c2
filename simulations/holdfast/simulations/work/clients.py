"""Clients in a simulation: they ask, read, dawdle, leave, come back, and note what they got.

Each client is a process on a host of its own, with the production client's machine, its gateways and its budget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from holdfast.gateway.client.errors import ApiError, ClientError, ConnectionFailed, DeadlinePassed, StreamBroken
from holdfast.gateway.client.events import Event
from holdfast.gateway.client.machine import CallMachine
from holdfast.gateway.client.policy import RetryPolicy
from holdfast.gateway.client.setup import CHAT, COMPLETIONS, Options, Setup
from holdfast.gateway.client.steps import (
    Answered,
    Begin,
    Deliver,
    Delivered,
    Fail,
    Failed,
    Finish,
    Happening,
    Open,
    Pause,
    Read,
    Step,
    Woke,
)
from holdfast.gateway.openai import COMPLETION_TOKENS_DEFAULT
from holdfast.gateway.problems import REASON
from holdfast.gateway.request_headers import PARENT, PRIORITY, TIMEOUT
from holdfast.simulations.history import History
from holdfast.simulations.records import CANCELLED, COMPLETE, ERROR, FINISH, ROLE, TOKEN, UNREACHED, WHOLE, Request
from holdfast.simulations.work.calls import VANISH, Pool, Wire
from holdfast.simulations.work.items import POISON, Ask, body_of, seen_prompt
from holdfast.simulations.world.process import SimProcess

LOGPROBS: Final = "logprobs"
"""The kind of event that is noted where log probabilities are not the mock engine's: checkers know no such kind."""

MOCK_LOGPROB: Final = -0.25

POLICY: Final = RetryPolicy(
    deadline_s=15.0, try_timeout_s=5.0, connect_timeout_s=1.0, backoff_max_s=3.0, retry_after_max_s=3.0
)
"""Impatient: a run is short, and a gateway that is silent is to be left while the run lasts."""


class Client:
    """One client process. `gateways` has their names by URL. One that asks `once` does not try again."""

    def __init__(
        self,
        process: SimProcess,
        history: History,
        gateways: Mapping[str, str],
        *,
        sticky: bool,
        once: bool = False,
    ) -> None:
        self.process = process
        self.gateways = gateways
        self.pool = Pool(process)
        policy = replace(POLICY, tries_max=1) if once else POLICY
        loop, rng = process.loop, process.rng
        self.setup = Setup(list(gateways), None, policy, sticky=sticky, clock=loop.time, random=rng.random)
        self._history = history

    @property
    def now_s(self) -> float:
        """The true time."""
        return self.process.world.now_s

    async def run(self, asks: Sequence[Ask]) -> None:
        """Ask each in its time, and never end."""
        async with asyncio.TaskGroup() as group:
            for ask in sorted(asks, key=lambda ask: (ask.at_s, ask.number)):
                await asyncio.sleep(max(0.0, ask.at_s - self.now_s))
                group.create_task(self._serve(ask))
            await asyncio.get_running_loop().create_future()

    async def _serve(self, ask: Ask) -> None:
        """One request, with all the habits of who asks it."""
        record = self._history.request(record_of(ask, self.now_s))
        call = self._call(ask, record, ask.leaves_after, "")
        try:
            async with asyncio.timeout(ask.leaves_after_s or None):
                await call.run()
        except TimeoutError:
            call.leave()
        if not call.left:
            return
        last_event_id = call.last_event_id
        if ask.returns_after_s >= 0 and last_event_id:
            left_s = max(0.0, record.deadline_s - self.now_s)
            away_s = min(ask.returns_after_s, left_s)
            record.paused_s += away_s
            await asyncio.sleep(away_s)
            if away_s < left_s:
                await self._call(ask, record, -1, last_event_id).run()
                return
        record.ended(self.now_s, CANCELLED)

    def _call(self, ask: Ask, record: Request, leaves_after: int, last_event_id: str) -> _Call:
        """A call that goes on behind an event, or begins at the beginning."""
        options = Options(
            deadline_s=record.deadline_s - self.now_s,
            request_id=f"request-{ask.number}",
            last_event_id=last_event_id or None,
            headers=headers_of(ask),
        )
        path = CHAT if ask.chat else COMPLETIONS
        machine = self.setup.call(path, body_of(ask), options, streamed=ask.streamed)
        return _Call(self, ask, record, machine, leaves_after)


class _Call:
    """One call: the machine's steps, done, and what they bring noted."""

    def __init__(self, client: Client, ask: Ask, record: Request, machine: CallMachine, leaves_after: int) -> None:
        self._client = client
        self._ask = ask
        self._record = record
        self._machine = machine
        self._leaves_after = leaves_after
        self._wire = Wire(client.pool)
        self._tokens = 0
        self._pauses = 0
        self.left = False

    @property
    def last_event_id(self) -> str:
        """Where another call could go on: behind what was taken, which may be less than what came; "" for nothing."""
        return self._machine.last_event_id

    async def run(self) -> None:
        """Until the machine says that it is over, or the client leaves."""
        loop = asyncio.get_running_loop()
        happened: Happening | None = Begin()
        while happened is not None:
            happened = await self._do(self._machine.on(happened, loop.time()))

    def leave(self) -> None:
        """The client goes away."""
        self.left = True
        self._wire.close(self._ask.leaving)

    async def _do(self, step: Step) -> Happening | None:
        match step:
            case Open():
                return await self._open(step)
            case Read(timeout_s):
                happened = await self._wire.read(timeout_s)
                self._record.tries[-1].cut = isinstance(happened, Failed)
                return happened
            case Deliver(events):
                return await self._deliver(events)
            case Pause(seconds, _why):
                self._wire.close()
                await asyncio.sleep(seconds)
                return Woke()
            case Finish():
                self._wire.close()
                self._record.ended(self._client.now_s, COMPLETE)
            case Fail(error):
                self._wire.close()
                _note_failure(self._record, self._client.now_s, error)
        return None

    async def _open(self, step: Open) -> Happening:
        name = next(name for url, name in self._client.gateways.items() if step.url.startswith(url + "/"))
        self._record.sent(self._client.now_s, name, step.headers.get("last-event-id", ""))
        happened = await self._wire.open(step)
        if isinstance(happened, Answered):
            self._record.tries[-1].rejected = happened.headers.get(REASON, "")
        return happened

    async def _deliver(self, events: tuple[Event, ...]) -> Happening | None:
        for event in events:
            self._note(event)
            self._machine.take(event)
            if 0 <= self._leaves_after <= self._tokens:
                self.leave()
                return None
        if self._pauses < self._ask.pauses:
            self._pauses += 1
            left_s = self._record.deadline_s - self._client.now_s
            pause_s = max(0.0, min(self._ask.pause_s, left_s))
            self._record.paused_s += pause_s
            await self._wire.take_nothing(pause_s)
        return Delivered()

    # --- what came --------------------------------------------------------------------------------------

    def _note(self, event: Event) -> None:
        record, now_s, data = self._record, self._client.now_s, event.data
        record.response_id = data["id"]
        for choice in data["choices"]:
            index = choice["index"]
            if not record.streamed:
                record.got(now_s, WHOLE, index, choice["message"]["content"] if record.chat else choice["text"])
                record.got(now_s, FINISH, index, choice["finish_reason"])
                continue
            delta = choice["delta"] if record.chat else choice
            if choice["finish_reason"] is not None:
                record.got(now_s, FINISH, index, choice["finish_reason"], event.id)
            elif record.chat and "role" in delta:
                record.got(now_s, ROLE, index, "", event.id)
            else:
                text = delta["content"] if record.chat else delta["text"]
                self._check_logprobs(choice, text, event.id)
                record.got(now_s, TOKEN, index, text, event.id)
                self._tokens += 1
        usage = data.get("usage")
        if usage is not None:
            record.told_usage(now_s, usage["prompt_tokens"], usage["completion_tokens"], event.id)

    def _check_logprobs(self, choice: Mapping[str, Any], text: str, event_id: str) -> None:
        """Each token comes with its own log probability, and at its own place in the text."""
        ask = self._ask
        if ask.logprobs < 0 or ask.stops:
            return
        told, index = choice.get("logprobs"), choice["index"]
        if self._record.chat:
            (content,) = told["content"] if told else ({},)
            fits = (content.get("token"), content.get("logprob")) == (text, MOCK_LOGPROB)
        else:
            offset = sum(len(seen) for kind, at, seen, _ in self._record.events if (kind, at) == (TOKEN, index))
            fits = told is not None and (told["tokens"], told["token_logprobs"], told["text_offset"]) == (
                [text],
                [MOCK_LOGPROB],
                [offset],
            )
        if not fits:
            self._record.got(self._client.now_s, LOGPROBS, index, f"{told} with {text!r}", event_id)


def _note_failure(record: Request, now_s: float, error: ClientError) -> None:
    """Tell what the API said from what the client found out by itself. What neither may be is noted as it is."""
    cause = error.__cause__ if isinstance(error, StreamBroken) else error
    if isinstance(cause, ApiError):
        record.ended(now_s, ERROR, cause.code or "", cause.status or 0)
    elif isinstance(cause, ConnectionFailed | DeadlinePassed):
        record.ended(now_s, UNREACHED)
    else:
        record.ended(now_s, f"{type(error).__name__}: {error.message}")


def record_of(ask: Ask, now_s: float) -> Request:
    """What the history keeps of it."""
    return Request(
        id=ask.number,
        model=ask.model,
        prompt=seen_prompt(ask),
        asked_s=now_s,
        deadline_s=now_s + ask.deadline_s,
        seed=ask.seed,
        max_tokens=ask.max_tokens or (0 if ask.chat else COMPLETION_TOKENS_DEFAULT),
        n=ask.n,
        stops=ask.stops,
        streamed=ask.streamed,
        chat=ask.chat,
        wants_usage=ask.wants_usage,
        poisoned=POISON in ask.prompt,
        parent=ask.parent,
        timeout_s=ask.timeout_s,
        leaves_openly=ask.leaving != VANISH,
        priority=ask.priority,
    )


def headers_of(ask: Ask) -> dict[str, str]:
    """What goes with it beside its body."""
    given = {PARENT: f"request-{ask.parent}" if ask.parent >= 0 else "", TIMEOUT: f"{ask.timeout_s or ''}"}
    given[PRIORITY.decode()] = ask.priority
    return {name: value for name, value in given.items() if value}
