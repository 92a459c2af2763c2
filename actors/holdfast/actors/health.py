"""A replica's own look after its engine: a first token before it is ready, and the engine's `check_health` after that.

What fails in a check is told to the node, which judges the replica (`replica_watch`); the reasons stand on the system
port as well. A check that hangs is not called again before it has ended, and fails for as long as it has not.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from holdfast.actors.engines.base import ENGINE_OVERLOADED, Engine
from holdfast.actors.specification import Checked, ReplicaSpecification, Report
from holdfast.actors.threads import in_thread
from holdfast.core.errors import HoldfastError, RequestRefused, in_words
from holdfast.core.requests import EngineInfo, EngineRequest, Sampling

WARM_UP_TOKENS = 3
"""A replica makes so many tokens before it is ready: devices warm up and kernels are compiled in an engine's first
steps, which no user should wait for."""

SMALL_CONTEXT = 64
"""An engine with a smaller context than this makes one token only."""

WARM_UP_LOOKS = 20
"""In so many parts the time for the first tokens is counted: none that a process stands still is longer than one."""

WARM_UP_KEY = 0
"""The key of the warm-up's stream; a replica counts those of its attempts from 1."""

logger = logging.getLogger(__name__)


class NoToken(HoldfastError):
    """The engine was loaded, and could not make a token."""


def canary_request(prompt: str, tokens: int) -> EngineRequest:
    """A request that costs next to nothing. Greedy, so that it is always the same."""
    return EngineRequest(prompt=prompt, max_tokens=tokens, ignore_eos=True, sampling=Sampling(temperature=0.0))


async def warm_up(engine: Engine, specification: ReplicaSpecification) -> bool:
    """Let the engine make its first tokens; whether it has. Raises `NoToken`, and whatever breaks the engine."""
    if not specification.warm_up_prompt:
        return False
    info: EngineInfo = engine.info
    tokens = WARM_UP_TOKENS if info.context_tokens_max >= SMALL_CONTEXT else 1
    limit_s = specification.engine_first_step_timeout_s
    try:
        async with _timeout_awake(tokens * limit_s):
            await engine.admit(WARM_UP_KEY, canary_request(specification.warm_up_prompt, tokens))
            while not (await engine.step()).finished:
                continue
    except RequestRefused as refusal:
        if refusal.code == ENGINE_OVERLOADED:
            return False
        told = f"the engine refuses the canary_prompt: {refusal.message} Give it another one, or set canary to false."
        raise NoToken(told) from refusal
    except TimeoutError as error:
        raise NoToken(f"the engine did not make {tokens} tokens within {tokens * limit_s:g} s") from error
    except asyncio.CancelledError:
        engine.drop(WARM_UP_KEY)
        raise
    return True


@contextlib.asynccontextmanager
async def _timeout_awake(limit_s: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but for how long this process stood still itself: that counts as one look at most."""
    loop, look_s, looks = asyncio.get_running_loop(), limit_s / WARM_UP_LOOKS, 0
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as timeout:

        def look() -> None:
            nonlocal looks, timer
            looks += 1
            if looks < WARM_UP_LOOKS:
                timer = loop.call_later(look_s, look)
            else:
                timeout.reschedule(loop.time())

        timer = loop.call_later(look_s, look)
        try:
            yield
        finally:
            timer.cancel()


class HealthChecks:
    """Calls the engine's `check_health`, which may be a coroutine function or not, every so often.

    `failing` is why the engine is unhealthy by its own checks, empty while it is well.
    """

    def __init__(self, engine: Engine, specification: ReplicaSpecification, report: Callable[[Report], None]) -> None:
        self.failing = ""
        self._check: Callable[[], Any] | None = getattr(engine, "check_health", None)
        self._specification = specification
        self._report = report
        self._is_coroutine = inspect.iscoroutinefunction(self._check)
        self._failures = 0

    async def run(self) -> None:
        """Check until cancelled; return at once where there is nothing to check."""
        if self._check is None:
            return
        specification = self._specification
        running: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.sleep(specification.health_check_period_s)
                if running is not None and running.done():
                    _failure_of(running)  # for the log: that it took too long has been judged
                    running = None
                running = running or asyncio.create_task(self._call())
                await asyncio.wait({running}, timeout=specification.health_check_timeout_s)
                if running.done():
                    self._judge(_failure_of(running))
                    running = None
                    continue
                self._judge(f"check_health did not return within {specification.health_check_timeout_s:g} s")
                if self._is_coroutine:
                    running.cancel()  # a thread goes on whatever we do: it is waited for
        finally:
            if running is not None:
                running.cancel()

    async def _call(self) -> None:
        assert self._check is not None
        if self._is_coroutine:
            await self._check()
        else:
            # In a thread, so that one that blocks holds up no streams.
            answer = await in_thread(self._check)
            if inspect.isawaitable(answer):
                # It only hands on a coroutine that somebody else wrote.
                await answer

    def _judge(self, failure: str) -> None:
        """One call's outcome; empty if it passed. Told every time: the node may not have listened before."""
        self._failures = self._failures + 1 if failure else 0
        if failure:
            logger.warning("health check failed (%d in a row): %s", self._failures, failure)
        failing = failure if self._failures >= self._specification.health_check_failures else ""
        if failing or not failure:
            self.failing = failing
            self._report(Checked(failing))


def _failure_of(call: asyncio.Task[None]) -> str:
    """What came of a call that has ended: its exception in words, empty if it passed."""
    if call.cancelled():
        return "check_health was cancelled, having taken too long"
    error = call.exception()
    if error is None:
        return ""
    logger.warning("check_health raised", exc_info=error)
    return f"check_health raised {in_words(error)}"
