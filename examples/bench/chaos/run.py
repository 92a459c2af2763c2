"""One long run: a cluster under load, blow after blow, and everything that must hold at its end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

from examples.bench.chaos.cluster import Cluster, Failed, Memory, Size, send
from examples.bench.chaos.load import Load, Pauses, Violation
from examples.bench.chaos.log_check import Fold, LogReport, read_ended, settings_for
from examples.bench.chaos.victims import Blow, Kind, Process, View, choose, draw_blow
from holdfast.actors.follower import Follower
from holdfast.core.errors import HoldfastError
from holdfast.core.state import state_hash
from holdfast.gateway.cli.reading import existing_log
from holdfast.gateway.client import AsyncHoldfast

SAFE_TIMEOUT_S: Final = 60.0
"""The cluster must be fit for another single failure within this time (seconds)."""

REDRAW_S: Final = 5.0
"""A blow that would be more than a single failure for so long is drawn anew (seconds)."""

LOOK_S: Final = 0.05
STRENGTH_TIMEOUT_S: Final = 120.0
SETTLED_S: Final = 5.0
"""At the end everything must be there again within the first of these, and stay for the second (seconds)."""

IDLE_TIMEOUT_S: Final = 10.0
"""After the last request gateways have nothing under way any more within this time (seconds)."""

THAWING_S: Final = 0.5
"""Until a thawed gateway has caught up, and its clients with it (seconds)."""

CATCH_UP_TIMEOUT_S: Final = 30.0


class Plan(msgspec.Struct, frozen=True):
    """What to do. `gap_s`: between two blows, from and to; `streams`: requests at once."""

    kills: int
    seed: int
    size: Size
    streams: int
    tokens_max: int
    gap_s: tuple[float, float]


class Result(msgspec.Struct):
    """What came of it. Times in seconds, memory in MiB."""

    plan: Plan
    seconds: float = 0.0
    kills: Counter[str] = msgspec.field(default_factory=Counter)
    freezes: Counter[str] = msgspec.field(default_factory=Counter)
    redrawn: int = 0
    requests: int = 0
    ended: Counter[str] = msgspec.field(default_factory=Counter)
    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    tokens: int = 0
    tried_again: int = 0
    pauses: Pauses = msgspec.field(default_factory=Pauses)
    log: LogReport | None = None
    memory_begin: list[Memory] = msgspec.field(default_factory=list)
    memory_end: list[Memory] = msgspec.field(default_factory=list)
    violations: list[Violation] = msgspec.field(default_factory=list)

    @property
    def killed(self) -> int:
        """All kills together."""
        return self.kills.total()


class Run:
    """One run in a directory of its own. `tell` is called whenever a figure of `result` changed."""

    def __init__(self, plan: Plan, directory: Path, tell: Callable[[], None]) -> None:
        self.result = Result(plan)
        self._plan = plan
        self._directory = directory
        self._tell = tell
        self._cluster = Cluster(directory, plan.size)
        self._rng = random.Random(f"blows {plan.seed}")
        self._seen: Fold | None = None
        self._frozen: list[tuple[float, float]] = []

    async def run(self) -> Result:
        """From `up` to the last look at what it left. Never raises what is the cluster's fault: that is a violation."""
        began_s = time.monotonic()
        try:
            await self._cluster.start()
            self.result.memory_begin = self._cluster.memory()
            await self._under_load()
            self.result.memory_end = self._cluster.memory()
        except Failed as error:
            self._violated("cluster", str(error))
        finally:
            for said in await self._cluster.stop():
                self._violated("end", said)
        await self._read_log()
        self.result.seconds = time.monotonic() - began_s
        return self.result

    async def _under_load(self) -> None:
        plan = self._plan
        urls = list(self._cluster.urls.values())
        async with self._following() as follower, AsyncHoldfast(urls) as client:
            rng = random.Random(f"requests {plan.seed}")
            load = Load(client, rng, plan.tokens_max, self._take, self._frozen)
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch(load))
                for _ in range(plan.streams):
                    group.create_task(load.work())
                try:
                    await self._blows()
                finally:
                    load.stopping = True
                    watch.cancel()
            self._count(load)
            if not await self._cluster.strong_within(STRENGTH_TIMEOUT_S, SETTLED_S):
                lacking = self._cluster.lacking(await self._cluster.view())
                self._violated("cluster", f"not at full strength after {STRENGTH_TIMEOUT_S:g} s: {lacking}")
            if open_ones := await self._cluster.idle_within(IDLE_TIMEOUT_S):
                self._violated("cluster", f"no client is there any more, and {open_ones}")
            await self._note_fold(follower)

    async def _blows(self) -> None:
        """All of them; what is frozen is thawed when this returns. Ends early if the cluster is not fit for more."""
        async with asyncio.TaskGroup() as group:
            while self.result.killed < self._plan.kills:
                blow = draw_blow(self._rng, self._plan.gap_s)
                await asyncio.sleep(blow.gap_s)
                found = await self._safe(blow)
                if found is None:
                    return
                blow, view, victims = found
                if blow.freeze_s is None:
                    victims = victims[: self._plan.kills - self.result.killed]
                if blow.freeze_s is not None:
                    self._note_blow(blow, view, victims)
                    processes = [process for victim in victims for process in victim]
                    group.create_task(self._freeze(processes, blow.freeze_s))
                    continue
                self._note_blow(blow, view, [_kill(victim) for victim in victims])
                self._tell()

    async def _safe(self, blow: Blow) -> tuple[Blow, View, list[list[Process]]] | None:
        """Wait until the blow, or another one, is a single failure; None if that does not come, or `up` has ended."""
        began_s = drawn_s = time.monotonic()
        while True:
            try:
                view = await self._cluster.view()
            except Failed:
                return None
            victims = choose(blow, view)
            if victims is not None:
                return blow, view, victims
            now_s = time.monotonic()
            if now_s - began_s > SAFE_TIMEOUT_S:
                lacking = self._cluster.lacking(view)
                self._violated("cluster", f"for {SAFE_TIMEOUT_S:g} s not fit for another failure: {lacking}")
                return None
            if now_s - drawn_s > REDRAW_S:
                self.result.redrawn += 1
                blow, drawn_s = draw_blow(self._rng, self._plan.gap_s), now_s
            await asyncio.sleep(LOOK_S)

    async def _freeze(self, victims: list[Process], seconds: float) -> None:
        frozen = {process.pid for process in victims if send(process, signal.SIGSTOP)}
        self._cluster.frozen |= frozen
        if any(process.kind is Kind.GATEWAY for process in victims):
            self._frozen.append((time.time(), time.time() + seconds + THAWING_S))
        try:
            await asyncio.sleep(seconds)
        finally:
            for process in victims:
                send(process, signal.SIGCONT)
            self._cluster.frozen -= frozen

    # --- what is noted ----------------------------------------------------------------------------------

    def _note_blow(self, blow: Blow, view: View, victims: list[list[Process]]) -> None:
        counts = self.result.kills if blow.freeze_s is None else self.result.freezes
        for target, victim in zip(blow.targets, victims, strict=False):
            counts[str(target.kind)] += bool(victim)
        hit = [process for victim in victims for process in victim]
        self._append("blows.jsonl", {"at": time.time(), "freeze_s": blow.freeze_s, "victims": hit, "ready": view.ready})

    def _take(self, violation: Violation) -> None:
        self.result.violations.append(violation)
        self._append("violations.jsonl", violation)
        self._tell()

    def _violated(self, what: str, text: str) -> None:
        self._take(Violation(what, text, time.time()))

    def _append(self, name: str, line: object) -> None:
        with (self._directory / name).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    async def _watch(self, load: Load) -> None:
        """Keep the result's figures up to date while the load runs."""
        while True:
            self._count(load)
            self._tell()
            await asyncio.sleep(1)

    def _count(self, load: Load) -> None:
        result = self.result
        result.requests, result.ended, result.kinds, result.errors = load.asked, load.ended, load.kinds, load.errors
        result.tokens, result.tried_again, result.pauses = load.tokens, load.tried_again, load.pauses

    # --- the log ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _following(self) -> AsyncIterator[Follower]:
        """Somebody who follows the log through all that happens, and never starts again."""
        described = self._cluster.description()
        async with existing_log(settings_for(described.cluster, described.nats.urls)) as log:
            follower = Follower(log)
            task = asyncio.create_task(follower.run())
            try:
                yield follower
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _note_fold(self, follower: Follower) -> None:
        try:
            async with asyncio.timeout(CATCH_UP_TIMEOUT_S):
                await follower.catch_up()
            self._seen = Fold(follower.state.sequence, state_hash(follower.state))
        except (HoldfastError, TimeoutError) as error:
            self._violated("log", f"the follower that lived through it all can't read the log's end: {error!r}")

    async def _read_log(self) -> None:
        described = self._cluster.directory.read_cluster()
        if described is None:
            return
        files, copy = self._cluster.directory.nats, self._directory / "events.jsonl"
        try:
            self.result.log = await read_ended(files, described.cluster, self._seen, copy)
        except (HoldfastError, TimeoutError) as error:
            self._violated("log", f"it can't be read after the end: {error!r}")
            return
        for problem in self.result.log.problems:
            self._violated("log", problem)


def _kill(victim: list[Process]) -> list[Process]:
    """SIGKILL to the processes of a victim; those that it met, which still were there."""
    return [process for process in victim if send(process, signal.SIGKILL)]
