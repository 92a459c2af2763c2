"""What clients and operators of a run will do, as data: drawn before the run begins, and each item without the others.

A run may be repeated without some of its items, so none depends on another one, nor on how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from holdfast.actors.engines.mock import mock_text, prompt_text
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.requests import EngineRequest, Sampling
from holdfast.core.thresholds import Thresholds
from holdfast.gateway.requests import MODES as CANCEL_MODES

if TYPE_CHECKING:
    from holdfast.simulations.plan import Knobs, Scenario

APPLICATION: Final = "app"
MODELS: Final = ("alpha", "beta")
"""One application of two models; the first has two thirds of the replicas, and of the requests."""

CLIENTS: Final = 3
"""Client processes, each on a host of its own."""

DEPLOY: Final = "deploy"
SCALE: Final = "scale"
UPDATE: Final = "update"
ROLL_BACK: Final = "roll back"
DELETE: Final = "delete"
DRAIN_NODE: Final = "drain node"
DRAIN_GATEWAY: Final = "drain gateway"
TAKE_OUT_NODE: Final = "take out node"
TAKE_OUT_REPLICA: Final = "take out replica"
TAKE_OUT_GATEWAY: Final = "take out gateway"
TAKE_OUT: Final = (TAKE_OUT_NODE, TAKE_OUT_REPLICA, TAKE_OUT_GATEWAY)
"""Drains by the log, which are lifted after a while; the two above are by a signal, which ends the process."""

OPERATIONS: Final = (*(SCALE, UPDATE, DRAIN_NODE, DRAIN_GATEWAY) * 3, *TAKE_OUT * 2, *(ROLL_BACK,) * 2, DELETE)
"""What operators do after the first deployment, as often as it stands here. There is no autoscaling to be simulated."""

CHOICES_MAX: Final = 2
"""So many choices are asked for at most."""

POISON: Final = "poison"
"""Prompts with this word break the engine that takes them in."""

POISON_DEADLINE_S: Final = 10.0
"""Who asks such a thing gives up after so long, in seconds."""

WORK_FROM_S: Final = 3.0
"""Before that nobody asks for anything: the cluster starts."""

PARENT_WITHIN_S: Final = 3.0
"""Requests belong to others that were asked no longer ago."""

THRESHOLDS: Final[Mapping[str, tuple[float, ...]]] = {
    "active_decode_blocks_threshold": (0.5, 0.9),
    "requests_in_flight_threshold": (2, 8),
    "queue_age_threshold_s": (0.5, 5.0),
}
"""Which are changed in a run, and to what."""

AT_ONCE_S: Final = 0.05
LASTS_S: Final = (1.0, 6.0)
"""Two are changed within the first of these, and taken back between so long and so long after it (seconds)."""

PRIORITIES: Final = ("critical", "default", "batch")

END_S: Final = 0.5
"""So long before the end of the run everybody's time is over."""

BURST_S: Final = 0.2
WORDS: Final = ("hold", "fast", "every", "stream", "through", "any", "one", "failure", "until", "it", "ends")


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A request, and the habits of the client that makes it. Times in seconds, tokens over all choices.

    `seed` None: the gateway draws it. `logprobs` as in `EngineRequest`. The client leaves once it has `leaves_after`
    tokens (-1: never) or after `leaves_after_s` (0: never), in its way of `leaving`, and goes on with the stream
    `returns_after_s` later (-1: never). After each of its first `pauses` reads it takes nothing for `pause_s`.
    It belongs to the request with the number `parent` (-1: to none), and asks gateways for no more than `timeout_s`
    (0: does not). `priority` is empty where it says none.
    """

    number: int
    at_s: float
    client: int
    model: str
    prompt: str
    chat: bool
    streamed: bool
    deadline_s: float
    seed: int | None = None
    max_tokens: int = 0
    n: int = 1
    stops: tuple[str, ...] = ()
    logprobs: int = -1
    wants_usage: bool = False
    leaves_after: int = -1
    leaves_after_s: float = 0.0
    leaving: str = "close"
    returns_after_s: float = -1.0
    pauses: int = 0
    pause_s: float = 0.0
    parent: int = -1
    timeout_s: float = 0.0
    priority: str = ""


class Operation(msgspec.Struct, frozen=True, tag=True):
    """What an operator does. `amount` (0 to 1) says how much, or whom it befalls."""

    number: int
    at_s: float
    kind: str
    amount: float


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Somebody cancels the request of the `ask` of that number; `amount` (0 to 1) says at which gateway."""

    number: int
    at_s: float
    ask: int
    mode: str
    amount: float


class Change(msgspec.Struct, frozen=True, tag=True):
    """Somebody sets a model's threshold, and takes it back `lasts_s` later; `amount` (0 to 1) says at which gateway."""

    number: int
    at_s: float
    model: str
    threshold: str
    value: float
    amount: float
    lasts_s: float


WorkItem = Ask | Operation | Cancel | Change


def draw_work(rng: Random, scenario: Scenario) -> tuple[WorkItem, ...]:
    """The work of a run, by its times."""
    operators, clients = Random(rng.getrandbits(64)), Random(rng.getrandbits(64))
    cancellers = Random(rng.getrandbits(64))
    drawn = sorted(_asks(clients, scenario), key=lambda ask: ask.at_s)
    asks = [_with_ties(cancellers, ask, drawn[:at]) for at, ask in enumerate(drawn)]
    asks = _with_priorities(Random(rng.getrandbits(64)), asks)
    work: list[WorkItem] = [*_operations(operators, scenario), *asks, *_cancels(cancellers, asks)]
    work += _changes(Random(rng.getrandbits(64)), scenario)
    return tuple(sorted(work, key=lambda item: (item.at_s, item.number)))


def first_application(scenario: Scenario, knobs: Knobs) -> ApplicationConfig:
    """What is deployed when a run begins."""
    beta = scenario.replicas // 3
    counts = (scenario.replicas - beta, beta)
    return ApplicationConfig(
        APPLICATION,
        [_deployment(model, count, knobs) for model, count in zip(MODELS, counts, strict=True) if count],
    )


def _deployment(model: str, replicas: int, knobs: Knobs) -> DeploymentConfig:
    arguments = {
        "itl_ms": knobs.itl_ms,
        "ttft_ms": knobs.ttft_ms,
        "kv_blocks": knobs.kv_blocks,
        "streams_max": knobs.streams_max,
        "jitter": 0.1,
    }
    return DeploymentConfig(
        model,
        EngineConfig("mock", arguments),
        num_replicas=replicas,
        max_ongoing_requests=knobs.max_ongoing_requests,
        max_queued_requests=knobs.max_queued_requests,
        thresholds=Thresholds(queue_age_threshold_s=knobs.queue_age_threshold_s or None),
        graceful_shutdown_timeout_s=knobs.graceful_shutdown_timeout_s,
        engine_stall_timeout_s=knobs.engine_stall_timeout_s,
        engine_first_step_timeout_s=knobs.engine_first_step_timeout_s,
        health_check_period_s=knobs.health_check_period_s,
        health_check_failures=knobs.health_check_failures,
        start_timeout_s=knobs.start_timeout_s,
        canary_wait_s=knobs.canary_wait_s,
        canary_timeout_s=knobs.canary_timeout_s,
    )


# --- operators ------------------------------------------------------------------------------------------


def _operations(rng: Random, scenario: Scenario) -> list[Operation]:
    """The first deployment, and others while there are faults."""
    times_s = sorted(rng.uniform(scenario.faults_from_s, scenario.faults_until_s) for _ in range(scenario.operations))
    drawn = [(rng.uniform(0.0, 0.5), DEPLOY), *((at_s, rng.choice(OPERATIONS)) for at_s in times_s)]
    return [Operation(number, at_s, kind, rng.random()) for number, (at_s, kind) in enumerate(drawn)]


def _changes(rng: Random, scenario: Scenario) -> list[Change]:
    """In half of the runs two thresholds of a model are changed at once, at any gateways, while there are faults."""
    changed, model = rng.random() < 0.5, rng.choice(MODELS)
    at_s = rng.uniform(max(scenario.faults_from_s, WORK_FROM_S), scenario.faults_until_s)
    names = rng.sample(sorted(THRESHOLDS), 2)
    drawn = [
        Change(
            number,
            at_s + rng.uniform(0.0, AT_ONCE_S),
            model,
            name,
            rng.choice(THRESHOLDS[name]),
            rng.random(),
            rng.uniform(*LASTS_S),
        )
        for number, name in enumerate(names)
    ]
    return drawn if changed else []


# --- clients --------------------------------------------------------------------------------------------


def _asks(rng: Random, scenario: Scenario) -> list[Ask]:
    """Requests spread over the time of faults, a burst of them that is too much at once, and some when that is over."""
    burst_s = rng.uniform(WORK_FROM_S, scenario.healed_s - BURST_S)
    in_burst = rng.choice((0.0,) if scenario.uneven else (0.0, 0.3, 0.9))
    asks = []
    for number in range(scenario.requests):
        if rng.random() < in_burst:
            at_s = burst_s + rng.uniform(0.0, BURST_S)
        else:
            at_s = rng.uniform(WORK_FROM_S, scenario.healed_s)
        asks.append(_ask(rng, number, at_s))
    for number in range(scenario.requests, scenario.requests + scenario.late_requests):
        late = _ask(rng, number, rng.uniform(scenario.late_from_s, scenario.late_until_s))
        left_s = scenario.lasts_s - END_S - late.at_s  # every end comes within the run
        asks.append(msgspec.structs.replace(late, deadline_s=min(late.deadline_s, left_s)))
    return [_poisoned(ask) if ask.number < scenario.poisoned else ask for ask in asks]


def _poisoned(ask: Ask) -> Ask:
    """The same, but that it breaks engines, and for one stream only."""
    return msgspec.structs.replace(ask, prompt=f"{ask.prompt} {POISON}", n=1, stops=(), deadline_s=POISON_DEADLINE_S)


def _ask(rng: Random, number: int, at_s: float) -> Ask:
    chat, streamed = rng.random() < 0.4, rng.random() < 0.8
    seed = rng.choice((None, rng.getrandbits(31), -rng.getrandbits(40)))
    ask = Ask(
        number,
        at_s,
        rng.randrange(CLIENTS),
        MODELS[rng.random() < 1 / 3],
        f"request {number}: " + " ".join(rng.choices(WORDS, k=rng.randint(1, 40))),
        chat,
        streamed,
        deadline_s=rng.choice((6.0, 10.0, 14.0)),
        seed=seed,
        max_tokens=rng.choice((0, rng.randint(1, 8), rng.randint(8, 40), rng.randint(8, 40))),
        n=rng.choice((1, 1, 1, CHOICES_MAX)),
        logprobs=rng.choice((-1, -1, -1, 0, 2)),
        wants_usage=streamed and rng.random() < 0.3,
    )
    if seed is not None and rng.random() < 0.25:
        ask = msgspec.structs.replace(ask, stops=_stops(rng, ask, seed))
    return _with_habits(rng, ask) if streamed else ask


def _stops(rng: Random, ask: Ask, seed: int) -> tuple[str, ...]:
    """One that comes, over the border between two tokens or within one, and one that never does."""
    text = mock_text(EngineRequest(prompt=seen_prompt(ask), sampling=Sampling(seed=seed)), 16)
    at = rng.randrange(4, len(text) - 8)
    return (text[at : at + rng.randint(2, 8)], "no engine says this")


def _with_habits(rng: Random, ask: Ask) -> Ask:
    """Most clients read to the end; others leave, and come back, or are slow."""
    habit = rng.random()
    way = rng.choice(("close", "reset", "vanish"))
    if habit < 0.08:
        return msgspec.structs.replace(ask, leaves_after_s=rng.uniform(0.02, 2.0), leaving=way)
    if habit < 0.16:
        return msgspec.structs.replace(ask, leaves_after=rng.randint(1, 12), leaving=way)
    if habit < 0.26 and ask.n == 1:
        again_s = rng.choice((0.0, rng.uniform(0.1, 4.0)))
        return msgspec.structs.replace(ask, leaves_after=rng.randint(1, 12), leaving=way, returns_after_s=again_s)
    if habit < 0.36:
        pauses, pause_s = rng.choice(((100, 0.1), (10, 0.3), (1, 5.0)))
        return msgspec.structs.replace(ask, pauses=pauses, pause_s=pause_s)
    return ask


def _with_ties(rng: Random, ask: Ask, before: list[Ask]) -> Ask:
    """Some belong to one that was asked not long ago, and some are given little time. As much is drawn for each."""
    parent, timeout_s, tie, haste = rng.random(), rng.uniform(0.2, 5.0), rng.random(), rng.random()
    recent = [one for one in before if ask.at_s - one.at_s <= PARENT_WITHIN_S]
    if tie < 0.3 and recent:
        ask = msgspec.structs.replace(ask, parent=recent[int(parent * len(recent))].number)
    return msgspec.structs.replace(ask, timeout_s=timeout_s) if haste < 0.12 else ask


def _with_priorities(rng: Random, asks: list[Ask]) -> list[Ask]:
    """In some runs nobody says how important a request is, in others most are critical, or batch."""
    weights = rng.choice(((1, 0, 0, 0), (2, 1, 1, 2), (0, 6, 1, 3), (0, 1, 2, 6)))
    drawn = rng.choices(("", *PRIORITIES), weights, k=len(asks))
    return [msgspec.structs.replace(ask, priority=priority) for ask, priority in zip(asks, drawn, strict=True)]


def _cancels(rng: Random, asks: list[Ask]) -> list[Cancel]:
    """A few of all requests are cancelled while they may be open."""
    drawn = [(rng.random(), rng.uniform(0.02, 2.5), rng.choice(CANCEL_MODES), rng.random(), ask) for ask in asks]
    chosen = [(after_s, mode, amount, ask) for chance, after_s, mode, amount, ask in drawn if chance < 0.2]
    return [
        Cancel(number, ask.at_s + after_s, ask.number, mode, amount)
        for number, (after_s, mode, amount, ask) in enumerate(chosen)
    ]


# --- as they are sent -----------------------------------------------------------------------------------


def body_of(ask: Ask) -> dict[str, Any]:
    """The request's body, but for `stream`."""
    body: dict[str, Any] = {"model": ask.model}
    if ask.chat:
        body["messages"] = _messages(ask)
    else:
        body["prompt"] = ask.prompt
    for name, value in (("seed", ask.seed), ("max_tokens", ask.max_tokens or None), ("stop", list(ask.stops) or None)):
        if value is not None:
            body[name] = value
    if ask.n > 1:
        body["n"] = ask.n
    if ask.logprobs >= 0:
        body.update({"logprobs": True, "top_logprobs": ask.logprobs} if ask.chat else {"logprobs": ask.logprobs})
    if ask.wants_usage and ask.streamed:
        body["stream_options"] = {"include_usage": True}
    return body


def seen_prompt(ask: Ask) -> str:
    """The prompt as the engine sees it."""
    return prompt_text(EngineRequest(messages=_messages(ask)) if ask.chat else EngineRequest(prompt=ask.prompt))


def _messages(ask: Ask) -> list[dict[str, Any]]:
    return [{"role": "user", "content": ask.prompt}]
