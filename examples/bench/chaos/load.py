"""The load of the long run: requests without end, each checked to its last token."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from examples.bench.chaos.checking import StreamCheck, Wrong, check_answer
from examples.bench.chaos.questions import Question, draw
from holdfast.gateway.client import AsyncHoldfast, ClientError, Options

HUNG_S: Final = 120.0
"""A request that has not ended after so long hangs (seconds)."""

SLOWEST: Final = 10
"""So many of the longest pauses are told."""


class Violation(msgspec.Struct, frozen=True):
    """Something that must not be: `what` is wrong, broken, hung, or what of the cluster it is about."""

    what: str
    text: str
    at: float
    """Seconds of the epoch."""

    request_id: str = ""
    question: Question | None = None


class Pause(msgspec.Struct, frozen=True, order=True):
    """The longest silence that a stream's client saw, and when it ended (`at`, seconds of the epoch)."""

    seconds: float
    request_id: str
    at: float
    tries: int


class Pauses(msgspec.Struct):
    """The longest ones, each in the first list that fits.

    `frozen`: a gateway stood frozen then, which its clients have to wait for. `resumed`: the request was sent again,
    since its gateway was killed. `other`: replicas, nodes, servers.
    """

    frozen: list[Pause] = msgspec.field(default_factory=list)
    resumed: list[Pause] = msgspec.field(default_factory=list)
    other: list[Pause] = msgspec.field(default_factory=list)

    def note(self, pause: Pause, freezes: Sequence[tuple[float, float]]) -> None:
        """One more. `freezes`: from when to when gateways stood frozen, seconds of the epoch."""
        begin = pause.at - pause.seconds
        if any(begin <= thawed and frozen_at <= pause.at for frozen_at, thawed in freezes):
            self.frozen = _longest(self.frozen, pause)
        elif pause.tries > 1:
            self.resumed = _longest(self.resumed, pause)
        else:
            self.other = _longest(self.other, pause)


class Load:
    """Asks and checks. `found` is told of what must not be, `freezes` is as in `Pauses.note`."""

    def __init__(
        self,
        client: AsyncHoldfast,
        rng: random.Random,
        tokens_max: int,
        found: Callable[[Violation], None],
        freezes: Sequence[tuple[float, float]] = (),
    ) -> None:
        self._client = client
        self._rng = rng
        self._tokens_max = tokens_max
        self._found = found
        self._freezes = freezes
        self.asked = 0
        self.ended: Counter[str] = Counter()
        """right, left (by the client, right until then), wrong, broken, hung."""
        self.kinds: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.tokens = 0
        self.tried_again = 0
        self.pauses = Pauses()
        self.stopping = False

    async def work(self) -> None:
        """One request after the other, until `stopping`."""
        while not self.stopping:
            question = draw(self._rng, self.asked, self._tokens_max)
            self.asked += 1
            await self._ask(question)

    async def _ask(self, question: Question) -> None:
        """One request. However it ends, it is counted once."""
        request_id = f"chaos-{question.number}"
        options = Options(request_id=request_id)
        self.kinds.update(_kinds(question))
        outcome, text = "right", ""
        try:
            async with asyncio.timeout(HUNG_S):
                if not question.streamed:
                    await self._whole(question, options)
                elif not await self._stream(question, options):
                    outcome = "left"
        except TimeoutError:
            outcome, text = "hung", f"it had not ended after {HUNG_S:g} s"
        except Wrong as error:
            outcome, text = "wrong", str(error)
        except ClientError as error:
            outcome, text = "broken", f"{type(error).__name__}: {error}"
            self.errors[f"{type(error).__name__} {getattr(error, 'code', None) or ''}".strip()] += 1
        except (LookupError, TypeError, ValueError, AssertionError) as error:
            outcome, text = "wrong", f"an answer of another shape, or a fault of the client: {error!r}"
        self.ended[outcome] += 1
        if outcome not in ("right", "left"):
            self._found(Violation(outcome, text, time.time(), request_id, question))

    async def _stream(self, question: Question, options: Options) -> bool:
        """Whether the client stayed to the end."""
        check = StreamCheck(question)
        longest_s, last_s, at = 0.0, time.monotonic(), time.time()
        async with self._client.stream(question.path, question.body, options) as events:
            async for event in events:
                now_s = time.monotonic()
                if now_s - last_s > longest_s:
                    longest_s, at = now_s - last_s, time.time()
                last_s = now_s
                check.take(event)
                if 0 < question.leaves <= check.tokens:
                    break
            else:
                check.end()
            self._note(Pause(longest_s, events.request_id, at, events.tries), check.tokens)
            return not 0 < question.leaves <= check.tokens

    async def _whole(self, question: Question, options: Options) -> None:
        answer = await self._client.post(question.path, question.body, options)
        check_answer(question, answer)
        self.tokens += int(answer.data["usage"]["completion_tokens"])
        self.tried_again += answer.tries > 1

    def _note(self, pause: Pause, tokens: int) -> None:
        self.tokens += tokens
        self.tried_again += pause.tries > 1
        self.pauses.note(pause, self._freezes)


def _longest(known: list[Pause], more: Pause) -> list[Pause]:
    return sorted([*known, more], reverse=True)[:SLOWEST]


def _kinds(question: Question) -> list[str]:
    """What is special about a request."""
    body: dict[str, Any] = question.body
    kinds = ["chat" if question.chat else "completion", "streamed" if question.streamed else "whole"]
    kinds += [name for name in ("n", "stop", "logprobs") if name in body]
    return kinds if "seed" in body else [*kinds, "no seed"]
