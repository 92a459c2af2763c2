"""The two routes that generate tokens: read, ask, run, answer.

This is the path that every token takes, so it goes straight from ASGI to the backend: no middleware, no
routing, one decode of the body, and one `send` for all events that wait together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from holdfast.actors.metric_families import REJECTIONS
from holdfast.core.admission import Priority, Reason, Service
from holdfast.core.errors import GatewayStopping, Overloaded
from holdfast.gateway.answers import Collected, chat_answer, completion_answer
from holdfast.gateway.asking import Asked, ask_chat, ask_completion
from holdfast.gateway.backend import Backend, Claim, Delta, Session
from holdfast.gateway.bodies import Bodies
from holdfast.gateway.claims import claim_of, model_of
from holdfast.gateway.exchange import ClientGone, Exchange, KeyRing
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.kinship import Kinship
from holdfast.gateway.machine import Entropy, Machine
from holdfast.gateway.metrics import Metrics, ModelMetrics
from holdfast.gateway.openai import Usage
from holdfast.gateway.problems import problem_of, rejected_with
from holdfast.gateway.request_headers import request_of
from holdfast.gateway.requests import Requests
from holdfast.gateway.resuming import Resume, resume_of, resumed, resumption_of
from holdfast.gateway.sse import CompletionEncoder, Encoder, Head
from holdfast.gateway.tool_stream import chat_encoder
from holdfast.gateway.tracing import RequestTrace, Tracer
from holdfast.gateway.watch import DisconnectWatch

OK = "ok"
CANCELLED = "cancelled"
"""The client went away before the end."""
SLOW_CLIENT = "slow_client"
"""The client took nothing for longer than a write may take, and was cut."""
MOVED = "moved"
"""The gateway stopped amid the stream, which goes on at another one."""


@dataclass(frozen=True, slots=True)
class Form:
    """What differs between chats and completions."""

    route: str
    id_prefix: str
    ask: Callable[[bytes, HttpSettings, Entropy], Asked]
    encoder: Callable[[Head, int, Sequence[int] | None], Encoder]
    answer: Callable[[Head, Collected, Usage], bytes]


CHAT = Form("/v1/chat/completions", "chatcmpl", ask_chat, chat_encoder, chat_answer)
COMPLETIONS = Form("/v1/completions", "cmpl", ask_completion, CompletionEncoder, completion_answer)


def response_id(prefix: str, seed: int, entropy: Entropy = os.urandom) -> str:
    """`<prefix>-<16 random hex digits><16 hex digits of the seed>`.

    The random half makes the id unique and not to be guessed. The seed, as a 64-bit two's complement, is in it
    so that any gateway can find a lost stream, or have a deterministic engine draw its tokens again, by its id alone.
    """
    return f"{prefix}-{entropy(8).hex()}{seed & 0xFFFF_FFFF_FFFF_FFFF:016x}"


class Meter:
    """Times one request by a monotonic clock, in seconds."""

    __slots__ = ("_began", "_last", "_model", "_now_s", "_trace", "entered_s", "had", "outcome")

    def __init__(self, now_s: Callable[[], float], trace: RequestTrace) -> None:
        self._now_s = now_s
        self._trace = trace
        self._began = now_s()
        self._last = 0.0
        self._model: ModelMetrics | None = None
        self.outcome = OK
        self.entered_s: float | None = None
        """When it was let in, if it was."""
        self.had: int | None = None
        """How many tokens its client has of another gateway, where it goes on with such a stream."""

    def accepted(self, model: ModelMetrics) -> None:
        """A backend took the request."""
        self._model = model

    def chunk(self, deltas: Sequence[Delta]) -> None:
        """Deltas came together. Their tokens count as spread evenly over the time since the last ones."""
        assert self._model is not None
        now = self._now_s()
        tokens = longest = 0
        for delta in deltas:
            count = len(delta.pieces)
            tokens += count
            longest = max(longest, count)
        if tokens == 0:
            return
        if self._last == 0.0:
            if self.had is None:
                self._model.ttft.observe(now - self._began)
            self._trace.first_token(now - self._began)
        else:
            self._model.itl.observe((now - self._last) / longest, tokens)
        self._last = now

    def ended(self, usage: Usage, drawn_tokens: int) -> None:
        """The session is over, well or not."""
        if self._model is not None:
            # What its client had was counted where it came from, the prompt as well.
            prompt_tokens = usage.prompt_tokens if self.had is None else 0
            self._model.used(prompt_tokens, max(0, drawn_tokens - (self.had or 0)))
            self._model.durations.observe(self._now_s() - self._began)
            self._trace.used(usage)


class Generator:
    """Answers both routes from a backend."""

    def __init__(
        self,
        backend: Backend,
        settings: HttpSettings,
        metrics: Metrics,
        keys: KeyRing,
        stamp: tuple[bytes, bytes],
        machine: Machine,
        requests: Requests,
        kinship: Kinship,
        tracer: Tracer,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._metrics = metrics
        self._keys = keys
        self._stamp = stamp
        self._machine = machine
        self._requests = requests
        self._kinship = kinship
        self._tracer = tracer
        self._service = Service()
        self._bodies = Bodies(settings.bodies_bytes_max, self._full)

    async def serve(self, form: Form, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange from beginning to end; whatever goes wrong becomes an answer, or an event."""
        entropy = self._machine.entropy
        exchange = Exchange(scope, receive, send, self._settings, self._stamp, entropy, self._bodies)
        trace = self._tracer.request(form.route, exchange.headers)
        meter = Meter(self._machine.monotonic_s, trace)
        model, request = "", None
        self._metrics.in_flight += 1
        try:
            self._keys.check(exchange.headers.get(b"authorization"))
            request = request_of(exchange, self._keys)
            claim = claim_of(exchange.headers, request.owner, self._keys)
            self._enter(meter)
            resume = resume_of(exchange.headers, form.id_prefix)
            meter.had = sum(resume.counts) if resume is not None else None
            asked = await self._asked(form, exchange, request.left_s(), claim, resume)
            answer = resume.response_id if resume is not None else response_id(form.id_prefix, asked.seed, entropy)
            trace.asked(asked, answer)
            async with DisconnectWatch(receive, exchange, self._settings.write_timeout_s) as watch:
                await self._kinship.adopt(request)
                session = self._backend.open(
                    asked.model,
                    asked.choices,
                    stops=asked.stops,
                    timeout_s=request.left_s(),
                    name=answer if asked.stream else "",
                    resumption=resumption_of(asked, resume) if resume is not None else None,
                    trace=trace,
                    claim=claim,
                )
                model = asked.model
                self._requests.opened(request, answer, model, session)
                meter.accepted(self._metrics.model(model))
                await self._run(form, answer, asked, resume, session, exchange, meter)
            if watch.gone:
                meter.outcome = CANCELLED
            elif watch.slow:
                meter.outcome = SLOW_CLIENT
                self._machine.cut_client(scope)
        except ClientGone:
            meter.outcome = CANCELLED
        except Exception as error:
            if isinstance(error, Overloaded) and error.model:
                # Clients may name what they like, so only deployed models are counted by name.
                model = error.model
                trace.found(model)
            meter.outcome = await self._fail(exchange, error)
        except BaseException:
            meter.outcome = CANCELLED
            raise
        finally:
            exchange.let_go()
            self._leave(meter)
            if request is not None:
                meter.outcome = self._requests.ended(request, meter.outcome)
            self._metrics.ended(form.route, model, meter.outcome, resumed=meter.had is not None)
            trace.ended(meter.outcome)

    def _enter(self, meter: Meter) -> None:
        """Raises `Overloaded` where as many requests are open as may be, of all models together."""
        open_max = self._settings.requests_max
        if self._metrics.in_flight > open_max:
            raise self._full(f"{open_max} are open at this gateway")
        meter.entered_s = self._machine.monotonic_s()
        self._service.began(Priority.DEFAULT, meter.entered_s)

    def _full(self, what: str) -> Overloaded:
        """Count a rejection for all models together; the error for it."""
        now_s = self._machine.monotonic_s()
        self._metrics.ledger.add(REJECTIONS, "", Reason.GATEWAY_FULL)
        self._service.rejected(now_s)
        in_flight = min(self._metrics.in_flight, self._settings.requests_max)
        after_s = self._service.retry_after_s(0, in_flight, now_s, self._machine.rng.random())
        message = f"The request was rejected ({Reason.GATEWAY_FULL}): {what}."
        return Overloaded(message, after_s, Reason.GATEWAY_FULL)

    def _leave(self, meter: Meter) -> None:
        """The request is open no longer, if it was let in."""
        self._metrics.in_flight -= 1
        if meter.entered_s is not None:
            self._service.stayed(self._machine.monotonic_s() - meter.entered_s)

    async def _asked(self, form: Form, exchange: Exchange, left_s: float, claim: Claim, resume: Resume | None) -> Asked:
        """What the request asks for. Its body, which may be long, is needed no longer than here."""
        body = await exchange.body(left_s)
        if resume is None:
            self._shed(body, claim)
        asked = form.ask(body, self._settings, self._machine.entropy)
        return asked if resume is None else resumed(asked, resume)

    def _shed(self, body: bytes, claim: Claim) -> None:
        """Reject what would be rejected anyway before the work of reading it. Raises `Overloaded`, `UnknownModel`."""
        if self._backend.crowded() and (model := model_of(body)):
            self._backend.check_open(model, claim)

    async def _run(
        self,
        form: Form,
        answer: str,
        asked: Asked,
        resume: Resume | None,
        session: Session,
        exchange: Exchange,
        meter: Meter,
    ) -> None:
        head = Head(
            answer,
            int(self._machine.clock.now().timestamp()),
            asked.model,
            asked.include_usage,
            asked.logprobs,
            asked.echo or (),
            asked.calls,
        )
        async with session:
            try:
                if asked.stream:
                    encoder = form.encoder(head, len(asked.choices), resume.counts if resume is not None else None)
                    await self._stream(encoder, asked, session, exchange, meter)
                else:
                    await self._collect(form, head, asked, session, exchange, meter)
            finally:
                meter.ended(_usage(asked, session), session.drawn_tokens)

    async def _stream(self, encoder: Encoder, asked: Asked, session: Session, exchange: Exchange, meter: Meter) -> None:
        deltas = await session.next()
        try:
            while deltas:
                meter.chunk(deltas)
                events = encoder.encode(deltas)
                if encoder.ended:
                    await self._end(exchange, events + encoder.done(_usage(asked, session)))
                    return
                if not exchange.started:
                    await exchange.events()
                if events:
                    await exchange.write(events, more=True)
                deltas = await session.next()
            raise AssertionError("the session ended before all of its choices had a finish reason")
        except Exception as error:
            if not exchange.started:
                raise
            problem = problem_of(error, exchange.request_id.decode())
            meter.outcome = MOVED if isinstance(error, GatewayStopping) else problem.outcome
            await exchange.write(encoder.error(problem.body()), more=False)

    async def _end(self, exchange: Exchange, events: bytes) -> None:
        """Send the last events; they may be the only ones."""
        if exchange.started:
            await exchange.write(events, more=False)
        else:
            await exchange.events(whole=events)

    async def _collect(
        self, form: Form, head: Head, asked: Asked, session: Session, exchange: Exchange, meter: Meter
    ) -> None:
        collected = Collected(len(asked.choices))
        while not collected.ended:
            deltas = await session.next()
            assert deltas, "the session ended before all of its choices had a finish reason"
            meter.chunk(deltas)
            collected.add(deltas)
        await exchange.answer(200, form.answer(head, collected, _usage(asked, session)))

    async def _fail(self, exchange: Exchange, error: Exception) -> str:
        """Tell the client, if it has not had the status yet. Returns the outcome."""
        problem = rejected_with(problem_of(error, exchange.request_id.decode()), self._settings.overload_status)
        if not exchange.started:
            await exchange.problem(problem)
        return problem.outcome


def _usage(asked: Asked, session: Session) -> Usage:
    if asked.prompts == 1:
        prompt = session.prompt_tokens
    else:
        prompt = sum(
            session.prompt_tokens_of(i) for i in range(0, len(asked.choices), len(asked.choices) // asked.prompts)
        )
    completion = session.completion_tokens
    return Usage(prompt, completion, prompt + completion)
