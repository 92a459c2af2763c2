"""Tests that miss the guards of what gateways do about replicas that serve badly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from holdfast.core.rows import ATTEMPTS, Row
from tests.unit.core import test_outliers
from tests.unit.serving import test_link_record, test_shedding
from tests.unit.support.replicas import Site


def _on_site(test: Callable[[Site], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    return lambda: asyncio.run(_at(test))


async def _at(test: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    await test(Site())


def _kept() -> None:
    asyncio.run(test_link_record.test_few_attempts_are_kept_until_they_are_enough_or_too_old())


LENIENT_WITNESSES: dict[str, Callable[[], object]] = {
    "few-ejected": test_outliers.test_the_worst_are_passed_over_first,
    "ejection-ends": (
        test_outliers.test_it_is_back_after_a_while_and_passed_over_for_longer_the_next_time_up_to_a_bound
    ),
    "ejected-out-of-reach": (
        test_outliers.test_who_is_out_of_reach_for_a_moment_stays_passed_over_and_for_longer_the_next_time
    ),
    "ejected-again": _on_site(
        test_shedding.test_who_was_used_while_all_others_were_gone_is_passed_over_again_once_they_are_back
    ),
    "ejection-doubles": (
        test_outliers.test_it_is_back_after_a_while_and_passed_over_for_longer_the_next_time_up_to_a_bound
    ),
    "recent-showing": _kept,
    "row-ends": lambda: test_outliers.test_one_good_one_among_the_last_or_too_few_of_them_say_nothing(
        Row(ATTEMPTS, ATTEMPTS - 1)
    ),
    "retry-asked": _on_site(
        test_shedding.test_streams_without_a_token_begin_again_only_within_the_budget_and_others_always
    ),
    "retry-spent": test_outliers.test_all_that_is_open_may_begin_again_once_and_not_twice,
    "retry-allowed": test_outliers.test_all_that_is_open_may_begin_again_once_and_not_twice,
    "retry-earned": test_outliers.test_requests_and_time_earn_more,
}
