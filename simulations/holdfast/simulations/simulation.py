"""One run: a seed becomes a plan, the plan a cluster's life, and that life is judged."""

from __future__ import annotations

import gc
import hashlib
import logging
import traceback
from asyncio import events
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from random import Random
from time import perf_counter

import msgspec

from holdfast.gateway.link import STALL_LOOK_S
from holdfast.gateway.stalls import BARREN_STEPS, STALL_STEPS
from holdfast.simulations.checkers import judge
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.cluster.cluster import Cluster
from holdfast.simulations.cluster.engines import BARREN_STEP_S
from holdfast.simulations.cluster.passings import Passings, limits_of
from holdfast.simulations.cluster.samples import Sampler
from holdfast.simulations.faults.injection import Injector
from holdfast.simulations.faults.kinds import KINDS, draw_faults
from holdfast.simulations.history import History
from holdfast.simulations.plan import Knobs, Plan, Scenario, draw_knobs
from holdfast.simulations.records import STREAMS_MIN, Settle
from holdfast.simulations.work.workload import Workload, draw_work
from holdfast.simulations.world.guards import LeftTheSimulation, sealed
from holdfast.simulations.world.world import World

SETTLE_BOUND_S = 18.0
"""After the last fault the goal is reached within this (virtual seconds): dead connections take `GIVE_UP_S` to show,
then leases end and replicas start anew."""


MOVE_S = 2.0
"""Within so long (virtual seconds) after a replica was silent for too long its streams are on another one."""


STALL_MOVE_S = 1.0
"""The same for a stream that stood still for too long (virtual seconds)."""

STREAM_BLOCKS_MAX = 10
"""A stream takes no more blocks of an engine's KV cache."""

PACE_MAX = 1.65
"""A step of an engine takes so many times its time at most: after updates, and with its jitter."""


class Result(msgspec.Struct, frozen=True):
    """What came of a run. `trace` is equal for two runs only if they took the same turns to the same end. `judged`:
    by checker, how many things of each kind were.
    """

    seed: int
    scenario: str
    trace: str
    violations: list[Violation]
    faults: dict[str, int]
    counts: dict[str, int]
    wall_s: float
    judged: dict[str, Judged]


def draw_plan(seed: int, scenario: Scenario) -> Plan:
    """Everything that is drawn before a run begins."""
    knobs = draw_knobs(Random(f"{seed}/knobs"), scenario)
    faults = draw_faults(Random(f"{seed}/faults"), scenario, knobs)
    work = draw_work(Random(f"{seed}/work"), scenario)
    return Plan(seed, scenario, knobs, faults, work, scenario.lasts_s)


def run(
    plan: Plan, *, narrating: bool = False, mutant: AbstractContextManager[object] | None = None
) -> tuple[Result, History]:
    """Run a plan. `mutant` is entered for the time of the run: production code without one of its guards.

    A run that raises has a history as well, up to there, and that it broke off is its violation.
    """
    began_s = perf_counter()
    world, history = World(str(plan.seed)), History(narrating=narrating)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with mutant or nullcontext(), sealed(lambda: world.now_s), _logging(world, history):
            try:
                _live(world, plan, history)
            except (Exception, LeftTheSimulation):
                history.broke_off(world.now_s, traceback.format_exc())
            finally:
                trace_of_turns, turns = world.scheduler.trace, world.scheduler.turns
                world.close()
    finally:
        if collecting:
            gc.enable()
    verdict = judge(history)
    trace = _trace(trace_of_turns, history)
    counts = _counts(turns, history)
    faults = Counter(fault.kind for fault in history.faults if fault.struck)
    wall_s = perf_counter() - began_s
    result = Result(
        plan.seed, plan.scenario.name, trace, verdict.violations, dict(faults), counts, wall_s, verdict.judged
    )
    return result, history


def _live(world: World, plan: Plan, history: History) -> None:
    """Let a cluster live from its start to the end of the run. Nothing but the world may hold it then."""
    cluster = Cluster(world, plan, history)
    cluster.start()
    Workload(cluster, plan.work).arm()
    injector = Injector(cluster, plan.faults, KINDS)
    injector.arm()
    sampler = Sampler(cluster)
    sampler.arm()
    if plan.scenario.uneven:
        Passings(cluster).arm()
    history.limits = limits_of(plan.knobs)
    settle_s = plan.scenario.healed_s if plan.scenario.heals else plan.scenario.faults_until_s
    history.room_min = _room_min(plan.knobs)
    history.token_s = plan.knobs.itl_ms / 1000 * PACE_MAX
    history.first_token_s = plan.knobs.ttft_ms / 1000 + history.token_s
    history.attempts_max = plan.knobs.migration_limit + 1
    history.move_bound_s = plan.knobs.heartbeat_timeout_s + plan.knobs.heartbeat_interval_s + MOVE_S
    history.stall_bound_s = _stall_bound_s(plan.knobs)
    history.barren_bound_s = _barren_bound_s(plan.knobs)
    history.node_waits_s = plan.knobs.node_drain_timeout_s
    if settle_s + SETTLE_BOUND_S <= plan.lasts_s:  # a run cut short may not be blamed for what it had no time for
        history.settle = Settle(settle_s, SETTLE_BOUND_S, tuple(cluster.core))
    world.scheduler.run(plan.lasts_s)
    sampler.finish()
    injector.finish()
    cluster.over = True
    history.ended_s = world.now_s


def _stall_bound_s(knobs: Knobs) -> float:
    """How long a stream may stay on an engine that lost it: gateways wait, also for steps, of which heartbeats tell."""
    steps_s = STALL_STEPS * knobs.itl_ms / 1000 * PACE_MAX
    return max(knobs.stream_stall_timeout_s, steps_s) + knobs.heartbeat_interval_s + STALL_LOOK_S + STALL_MOVE_S


def _barren_bound_s(knobs: Knobs) -> float:
    """How long a stream may stay on an engine that makes nothing: gateways wait, also for steps, from their first look
    at it on. Heartbeats tell of those.
    """
    steps_s = BARREN_STEPS * BARREN_STEP_S
    return max(knobs.stream_stall_timeout_s, steps_s) + knobs.heartbeat_interval_s + 2 * STALL_LOOK_S + STALL_MOVE_S


def _room_min(knobs: Knobs) -> int:
    """How many streams each replica takes at least: as many as gateways may begin, and as its engine has room for."""
    engine = max(STREAMS_MIN, min(knobs.streams_max, knobs.kv_blocks // STREAM_BLOCKS_MAX))
    return min(knobs.max_ongoing_requests, engine)


def _trace(trace_of_turns: int, history: History) -> str:
    """Turns, the log, and what clients got."""
    trace = hashlib.blake2b(str(trace_of_turns).encode(), digest_size=16)
    for entry in history.appended:
        trace.update(f"{entry.at_s!r} {entry.sequence} {entry.subject} {entry.message_id}".encode() + entry.data)
    for request in history.requests:
        trace.update(f"{request.id} {request.ended_s!r} {request.how} {request.code} {len(request.events)}".encode())
    return trace.hexdigest()


def _counts(turns: int, history: History) -> dict[str, int]:
    """Figures of the run, for the runner's table."""
    counts = Counter(f"requests {request.how or 'open'}" for request in history.requests)
    counts.update(f"error {request.code}" for request in history.requests if request.code)
    counts["turns"] = turns
    counts["log entries"] = len(history.appended)
    counts["tokens"] = sum(len(request.events) for request in history.requests)
    counts["processes"] = len(history.processes)
    return dict(counts)


class _Narrator(logging.Handler):
    """What actors log becomes part of the narration."""

    def __init__(self, world: World, history: History) -> None:
        super().__init__(logging.INFO)
        self._world = world
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        if self._history.ended_s:
            return  # what is said where the world's end cuts somebody off is no part of the run
        loop = events._get_running_loop()
        process = getattr(loop, "process", None)
        self._history.note(self._world.now_s, process.name if process else "world", record.getMessage())


@contextmanager
def _logging(world: World, history: History) -> Iterator[None]:
    """Let logging reach the history where somebody wants to read it, and nobody else."""
    logger = logging.getLogger("holdfast")
    if not history.narrating:
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
        return
    handler, level, propagates = _Narrator(world, history), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
