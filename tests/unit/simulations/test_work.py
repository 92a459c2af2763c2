"""The work of a run, drawn before it begins: right requests, and everything that users do."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from holdfast.actors.engines.mock import MockSettings, mock_text, prompt_text
from holdfast.core.requests import EngineRequest, Sampling
from holdfast.gateway.asking import ask_chat, ask_completion
from holdfast.gateway.http_settings import HttpSettings
from holdfast.simulations.plan import SCENARIOS, Knobs
from holdfast.simulations.work.calls import CLOSE, RESET, VANISH
from holdfast.simulations.work.clients import record_of
from holdfast.simulations.work.items import (
    AT_ONCE_S,
    MODELS,
    OPERATIONS,
    PARENT_WITHIN_S,
    THRESHOLDS,
    WORK_FROM_S,
    Ask,
    Cancel,
    Change,
    Operation,
    WorkItem,
    body_of,
    draw_work,
    first_application,
    seen_prompt,
)

STANDARD = SCENARIOS["standard"]
RUNS = 60
KV_BLOCKS_MIN = 12


def work_of(seed: int) -> tuple[WorkItem, ...]:
    return draw_work(Random(f"{seed}/work"), STANDARD)


def asks() -> list[Ask]:
    return [item for seed in range(RUNS) for item in work_of(seed) if isinstance(item, Ask)]


def operations() -> list[Operation]:
    return [item for seed in range(RUNS) for item in work_of(seed) if isinstance(item, Operation)]


def test_a_seed_gives_the_same_work_again_and_another_seed_other_work() -> None:
    assert work_of(1) == work_of(1)
    assert work_of(1) != work_of(2)


def test_work_comes_by_its_times_and_within_them() -> None:
    for seed in range(RUNS):
        work = work_of(seed)
        assert [item.at_s for item in work] == sorted(item.at_s for item in work)
        asked = [item for item in work if isinstance(item, Ask)]
        assert sorted(ask.number for ask in asked) == list(range(STANDARD.requests + STANDARD.late_requests))
        late = [ask for ask in asked if ask.number >= STANDARD.requests]
        assert all(WORK_FROM_S <= ask.at_s <= STANDARD.healed_s for ask in asked if ask not in late)
        assert all(STANDARD.late_from_s <= ask.at_s <= STANDARD.late_until_s for ask in late)
        assert all(ask.at_s + ask.deadline_s <= STANDARD.lasts_s for ask in asked), "every end comes within the run"
        assert len({ask.prompt for ask in asked}) == len(asked)


def test_more_operations_change_no_request() -> None:
    few, many = (
        [
            item
            for item in draw_work(Random(1), msgspec.structs.replace(STANDARD, operations=count))
            if type(item) is Ask
        ]
        for count in (0, 9)
    )
    assert few == many


def test_work_can_be_written_down_and_read_again() -> None:
    work = work_of(1)
    assert msgspec.json.decode(msgspec.json.encode(work), type=tuple[WorkItem, ...]) == work


@pytest.mark.parametrize("chat", [False, True])
def test_gateways_understand_requests_as_they_are_meant(chat: bool) -> None:
    for ask in asks():
        if ask.chat is not chat:
            continue
        body = {**body_of(ask), **({"stream": True} if ask.streamed else {})}
        asked = (ask_chat if chat else ask_completion)(msgspec.json.encode(body), HttpSettings())
        record, first = record_of(ask, 1.0), asked.choices[0]
        assert (asked.model, len(asked.choices), asked.stream) == (ask.model, ask.n, ask.streamed)
        assert tuple(asked.stops) == record.stops == ask.stops
        assert prompt_text(first) == record.prompt == seen_prompt(ask)
        assert first.max_tokens == record.max_tokens
        assert (asked.logprobs, asked.include_usage) == (ask.logprobs, ask.wants_usage)
        assert ask.seed is None or asked.seed == ask.seed


def test_every_request_fits_into_the_smallest_engine() -> None:
    room = KV_BLOCKS_MIN * MockSettings().block_tokens
    for ask in asks():
        assert len(seen_prompt(ask).split()) + (record_of(ask, 0.0).max_tokens or 64) <= room


def test_one_stop_string_comes_and_the_other_never_does() -> None:
    stopped = [ask for ask in asks() if ask.stops]
    assert len(stopped) > RUNS
    for ask in stopped:
        assert ask.seed is not None
        request = EngineRequest(prompt=seen_prompt(ask), sampling=Sampling(seed=ask.seed))
        comes, never = ask.stops
        assert comes in mock_text(request, 16)
        assert never not in mock_text(request, 64)


def test_everything_that_users_do_is_drawn() -> None:
    drawn = asks()
    assert {ask.leaving for ask in drawn if ask.leaves_after > 0} == {CLOSE, RESET, VANISH}
    assert {ask.model for ask in drawn} == set(MODELS)
    assert {ask.n for ask in drawn} == {1, 2}
    for habit in (
        [ask for ask in drawn if ask.leaves_after_s],
        [ask for ask in drawn if ask.returns_after_s == 0.0],
        [ask for ask in drawn if ask.returns_after_s > 0.0],
        [ask for ask in drawn if ask.pause_s >= 5.0],
        [ask for ask in drawn if ask.pauses > 1],
        [ask for ask in drawn if ask.seed is None],
        [ask for ask in drawn if ask.seed is not None and ask.seed < 0],
        [ask for ask in drawn if not ask.max_tokens],
        [ask for ask in drawn if ask.logprobs == 0],
        [ask for ask in drawn if not ask.streamed],
    ):
        assert len(habit) > RUNS / 10
    assert {operation.kind for operation in operations()} == {"deploy", *OPERATIONS}
    deploys = [operation for operation in operations() if operation.kind == "deploy"]
    assert len(deploys) == RUNS, "a run begins with one"


def test_some_runs_have_a_burst() -> None:
    def most_at_once(seed: int) -> int:
        times_s = [item.at_s for item in work_of(seed) if isinstance(item, Ask)]
        return max(sum(at_s <= other_s <= at_s + 0.2 for other_s in times_s) for at_s in times_s)

    assert sum(most_at_once(seed) >= 8 for seed in range(RUNS)) > RUNS / 6


def test_the_first_application_has_the_scenarios_replicas() -> None:
    for scenario in SCENARIOS.values():
        application = first_application(scenario, Knobs())
        assert sum(deployment.num_replicas for deployment in application.deployments) == scenario.replicas
        assert [deployment.name for deployment in application.deployments] == list(MODELS)


def test_some_belong_to_others_some_have_little_time_and_some_are_cancelled() -> None:
    cancels = [item for seed in range(RUNS) for item in work_of(seed) if isinstance(item, Cancel)]
    assert {item.mode for item in cancels} == {"stop", "kill"}
    assert 0.1 < len(cancels) / len(asks()) < 0.3
    assert 0.05 < sum(ask.timeout_s > 0 for ask in asks()) / len(asks()) < 0.2
    for seed in range(RUNS):
        at_s = {item.number: item.at_s for item in work_of(seed) if isinstance(item, Ask)}
        for item in work_of(seed):
            if isinstance(item, Ask) and item.parent >= 0:
                assert 0 <= at_s[item.number] - at_s[item.parent] <= PARENT_WITHIN_S
            elif isinstance(item, Cancel):
                assert item.at_s > at_s[item.ask]
    assert 0.1 < sum(ask.parent >= 0 for ask in asks()) / len(asks()) < 0.35


def test_in_half_of_the_runs_two_thresholds_are_changed_at_once() -> None:
    runs = [[item for item in work_of(seed) if isinstance(item, Change)] for seed in range(RUNS)]
    changed = [run for run in runs if run]
    assert 0.3 < len(changed) / RUNS < 0.7
    for run in changed:
        one, other = sorted(run, key=lambda change: change.number)
        assert one.model == other.model
        assert one.threshold != other.threshold
        assert abs(one.at_s - other.at_s) <= AT_ONCE_S
    assert {change.threshold for run in changed for change in run} == set(THRESHOLDS)
